"""Pages of a list: how many, from where on, and the cursor of the next; one helper for every list.

A route takes ``Paging``, reads ``paging.limit + 1`` rows behind ``paging.position(session)`` and lets
``paging.cut`` make the page of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query, Request
from pydantic import BaseModel
from sqlalchemy.orm import Session

from svc_infra.api.cursors import Cursors, installation_cursors
from svc_infra.api.fastapi.dependencies import ApiContext, CurrentPrincipal, context_of
from svc_infra.db.after_commit import call_after_commit

MAX_PAGE = 1_000
DEFAULT_PAGE = 100

Row = TypeVar("Row")
Item = TypeVar("Item", bound=BaseModel)


class Page(BaseModel, Generic[Item]):
    """Items in the order of the list, and the cursor of the next page while there is one."""

    items: list[Item]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What of a list is wanted. Its cursors are of this tenant, this path and these filters only."""

    limit: int
    cursor: str | None
    list_name: str
    context: ApiContext

    @property
    def reach(self) -> int:
        """How many rows to read: one more than are shown tells whether there are more."""
        return self.limit + 1

    def position(self, session: Session) -> list[str] | None:
        """The sort keys of the row to continue behind, as ``cut`` was given them; None at the beginning.

        Raises:
            InvalidCursor: the cursor is none of this list.
        """
        return None if self.cursor is None else self._cursors(session).decode(self.list_name, self.cursor)

    def last_id(self, session: Session) -> str | None:
        """``position`` of a list whose only sort key is an id.

        Raises:
            InvalidCursor: the cursor is none of this list.
        """
        position = self.position(session)
        return None if position is None else position[0]

    def cut(
        self,
        session: Session,
        rows: Sequence[Row],
        *,
        item: Callable[[Row], Item],
        key: Callable[[Row], Sequence[str]],
    ) -> Page[Item]:
        """Make the page of up to ``reach`` rows; ``key`` are the sort keys of a row as text."""
        shown = rows[: self.limit]
        more = len(rows) > self.limit
        return Page(
            items=[item(row) for row in shown],
            next_cursor=self._cursors(session).encode(self.list_name, key(shown[-1])) if more else None,
        )

    def _cursors(self, session: Session) -> Cursors:
        database = self.context.database
        if database.cursors is not None:
            return database.cursors
        cursors = installation_cursors(session, now=self.context.clock.now())

        def remember() -> None:  # not before the commit: a secret that was rolled back is nobody's
            database.cursors = cursors

        call_after_commit(session, remember)
        return cursors


async def page_request(
    request: Request,
    principal: CurrentPrincipal,
    cursor: Annotated[
        str | None, Query(max_length=1_000, description="The next_cursor of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="At most so many items.")] = DEFAULT_PAGE,
) -> PageRequest:
    """Depend on what of a list is wanted."""
    filters = sorted(
        pair for pair in request.query_params.multi_items() if pair[0] not in ("cursor", "limit")
    )
    named = repr((principal.tenant_id, request.url.path, filters))
    name = hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()
    return PageRequest(limit, cursor, name, context_of(request))


Paging = Annotated[PageRequest, Depends(page_request)]
