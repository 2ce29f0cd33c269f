"""Usage-based billing, a durable job queue and transactional webhooks on one database."""

__version__ = "0.1.0"
