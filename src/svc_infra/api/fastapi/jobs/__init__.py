"""Jobs, queues and schedules over HTTP, for the operator."""
