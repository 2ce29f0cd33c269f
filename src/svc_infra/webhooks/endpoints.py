"""Endpoints: who wants which topics, where, and signed with which secret."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlsplit

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.clock import SystemClock
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidEndpoint, InvalidTopic, NotFound
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.message import check_topic
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from svc_infra.webhooks.signature import new_secret, secret_key

MAX_URL_LENGTH = 2048
_MAX_DESCRIPTION_LENGTH = 500
_MAX_REASON_LENGTH = 200
_ANY_TOPIC = "*"
_WILDCARD = ".*"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. Without ``tenant_id`` it is the operator's and gets the messages of every tenant.

    ``secret`` is set only in what ``add_endpoint`` returns: it is shown once.
    """

    id: str
    url: str
    topics: tuple[str, ...]
    tenant_id: str | None
    description: str
    is_enabled: bool
    disabled_reason: str | None
    created_at: datetime
    secret: str | None = field(default=None, repr=False)


def check_url(url: str) -> str:
    """Return ``url`` if a webhook may be sent to it: http or https, a host, no user name or password.

    Raises:
        InvalidEndpoint: it is something else; the message never repeats a password.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or len(url) > MAX_URL_LENGTH:
        raise InvalidEndpoint(
            f"the URL must be printable ASCII without spaces and backslashes, {MAX_URL_LENGTH} characters at "
            "most; write an international host name in its xn-- form"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidEndpoint(f"the URL cannot be read: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidEndpoint("the URL must be http:// or https:// with a host")
    if "@" in parts.netloc:
        raise InvalidEndpoint(
            "the URL holds a user name or password; remove it and verify signatures instead"
        )
    if port == 0:
        raise InvalidEndpoint("the port in the URL must be between 1 and 65535")
    return url


def check_pattern(pattern: str) -> str:
    """Return ``pattern`` if it is a topic, a topic followed by ``.*``, or ``*``.

    Raises:
        InvalidTopic: it is something else.
    """
    if pattern != _ANY_TOPIC:
        try:
            check_topic(pattern.removesuffix(_WILDCARD))
        except InvalidTopic as error:
            raise InvalidTopic(f"{error}; or end it with '.*', or use '*' for every topic") from None
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Tell whether ``pattern`` wants ``topic``: ``billing.*`` wants all below ``billing``, at any depth."""
    if pattern.endswith(_WILDCARD):
        return topic.startswith(pattern[:-1])
    return pattern in (topic, _ANY_TOPIC)


def is_wanted(
    topic: str, tenant_id: str | None, *, patterns: Iterable[str], endpoint_tenant_id: str | None
) -> bool:
    """Tell whether an endpoint gets a message: it is the operator's or the message's own tenant's."""
    is_theirs = endpoint_tenant_id is None or endpoint_tenant_id == tenant_id
    return is_theirs and any(matches(pattern, topic) for pattern in patterns)


def add_endpoint(
    session: Session,
    *,
    url: str,
    topics: Sequence[str],
    tenant_id: str | None = None,
    secret: str | None = None,
    description: str = "",
    now: datetime | None = None,
) -> Endpoint:
    """Store an endpoint and return it with its signing secret, made here unless given.

    Messages that were relayed before get no delivery to it. From async code call it with
    ``await async_session.run_sync(add_endpoint, url=…, topics=…)``.

    Raises:
        InvalidEndpoint: the URL or the description cannot be used, or there is no topic.
        InvalidTopic: a topic is neither a topic nor one with a trailing wildcard.
        InvalidSecret: the secret cannot sign.
    """
    if isinstance(topics, str) or not topics:
        raise InvalidEndpoint("an endpoint needs a list of at least one topic; ['*'] is every topic")
    if len(description) > _MAX_DESCRIPTION_LENGTH:
        raise InvalidEndpoint(f"a description has {_MAX_DESCRIPTION_LENGTH} characters at most")
    secret = new_secret() if secret is None else secret
    secret_key(secret)
    row = EndpointRow(
        id=new_id(),
        tenant_id=tenant_id,
        url=check_url(url),
        description=description,
        topics=[check_pattern(topic) for topic in dict.fromkeys(topics)],
        secrets=[secret],
        is_enabled=True,
        created_at=now or SystemClock().now(),
    )
    session.add(row)
    session.flush()
    return _as_endpoint(row, secret)


def list_endpoints(session: Session, *, tenant_id: str | None = None) -> list[Endpoint]:
    """Return all endpoints in the order of their making, or those of one tenant only."""
    query = select(EndpointRow).order_by(EndpointRow.id)
    if tenant_id is not None:
        query = query.where(EndpointRow.tenant_id == tenant_id)
    return [_as_endpoint(row) for row in session.scalars(query)]


def get_endpoint(session: Session, endpoint_id: str, *, tenant_id: str | None = None) -> Endpoint:
    """Return one endpoint; given ``tenant_id``, only if it is that tenant's.

    Raises:
        NotFound: there is none with this id, or it is another tenant's.
    """
    row = session.get(EndpointRow, endpoint_id)
    if row is None or (tenant_id is not None and row.tenant_id != tenant_id):
        raise NotFound(f"no webhook endpoint {endpoint_id!r}; 'worker.py endpoints list' shows them")
    return _as_endpoint(row)


def disable_endpoint(session: Session, endpoint_id: str, *, reason: str) -> bool:
    """Stop sending to an endpoint and hold what waits for it; False if it was disabled (or gone) already.

    Of several that disable it at once, exactly one gets True. What is being sent at this moment is not
    recalled.
    """
    disabled = session.execute(
        update(EndpointRow)
        .where(EndpointRow.id == endpoint_id, EndpointRow.is_enabled)
        .values(is_enabled=False, disabled_reason=reason[:_MAX_REASON_LENGTH])
        .returning(EndpointRow.id)
    ).all()
    if not disabled:
        return False
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.endpoint_id == endpoint_id, DeliveryRow.state == DeliveryState.PENDING.value)
        .values(state=DeliveryState.HELD.value)
        .execution_options(synchronize_session=False)
    )
    return True


class SqlWebhookEndpoints:
    """The endpoints of a database, as a ``WebhookService`` takes them.

    ``add`` is ``add_endpoint`` in a transaction of its own.
    """

    def __init__(self, session_factory: async_sessionmaker[AsyncSession]) -> None:
        self.session_factory = session_factory

    async def add(
        self,
        *topics: str,
        url: str,
        secret: str | None = None,
        tenant_id: str | None = None,
        description: str = "",
    ) -> Endpoint:
        """Store an endpoint and return it with its secret; raises what ``add_endpoint`` raises."""

        def _add(session: Session) -> Endpoint:
            return add_endpoint(
                session, url=url, topics=topics, tenant_id=tenant_id, secret=secret, description=description
            )

        async with self.session_factory.begin() as session:
            return await session.run_sync(_add)


def _as_endpoint(row: EndpointRow, secret: str | None = None) -> Endpoint:
    return Endpoint(
        id=row.id,
        url=row.url,
        topics=tuple(row.topics),
        tenant_id=row.tenant_id,
        description=row.description,
        is_enabled=row.is_enabled,
        disabled_reason=row.disabled_reason,
        created_at=row.created_at,
        secret=secret,
    )
