"""Whether a database can be used by this version: it answers, in time, and has this version's schema."""

from __future__ import annotations

import asyncio

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.db.migration import require_head
from svc_infra.exceptions import SchemaMissing

ANSWER_SECONDS = 2.0
DATABASE_ERRORS = (SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a database that is away, or a pool without a free connection, raises; drivers do not wrap all."""


async def why_not_ready(engine: AsyncEngine, *, within_seconds: float = ANSWER_SECONDS) -> str | None:
    """Return why the database cannot be used, in words that name no host; None if it can."""
    try:
        async with asyncio.timeout(within_seconds):
            await require_head(engine)
    except SchemaMissing as error:
        return str(error)
    except TimeoutError:
        return f"the database did not answer within {within_seconds:g} s"
    except DATABASE_ERRORS:
        return "the database does not answer"
    return None
