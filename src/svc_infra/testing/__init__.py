"""The public test kit: what an application needs to test its jobs, schedules and webhooks for real."""

from __future__ import annotations

from svc_infra.testing.postgres import PostgresServer

__all__ = ["PostgresServer"]
