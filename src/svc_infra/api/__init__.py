"""What an application mounts: the HTTP edge of billing, webhooks and jobs (extra ``api``)."""
