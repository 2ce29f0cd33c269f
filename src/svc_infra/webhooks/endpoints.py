"""Endpoints: who wants which topics, where, and signed with which secret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.canonical import is_storable
from svc_infra.clock import SystemClock
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidEndpoint, NotFound
from svc_infra.webhooks import ed25519, stored_secrets
from svc_infra.webhooks.addresses import AddressPolicy
from svc_infra.webhooks.audit import DEFAULT_ACTOR, note_act, without_query
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.guard import UrlPolicy
from svc_infra.webhooks.models import EndpointRow
from svc_infra.webhooks.sealing import KeyRing, SecretPlace
from svc_infra.webhooks.signature import check_secret, new_secret
from svc_infra.webhooks.stored_options import shown_options, store_options
from svc_infra.webhooks.topic_patterns import check_pattern

_MAX_DESCRIPTION_LENGTH = 500
_MAX_TOPICS = 100
_ANY_URL = UrlPolicy(allow_http=True, ports=None)

Signing = Literal["v1", "v1a"]


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """What the operator's settings say about endpoints: the URLs that may be used, and the sealing keys.

    Without ``addresses`` and with the URL policy of the default, every URL is taken that could be sent to
    under some settings; the sender refuses later what its own settings forbid. Without ``keys`` secrets are
    stored as they are. ``per_tenant`` is how many endpoints a tenant may have.
    """

    urls: UrlPolicy = _ANY_URL
    addresses: AddressPolicy | None = None
    keys: KeyRing | None = None
    per_tenant: int = 1_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. Without ``tenant_id`` it is the operator's and gets the messages of every tenant.

    ``secret`` is set only in what ``add_endpoint`` and ``rotate_secret`` return: it is shown once. An
    endpoint that signs with ed25519 shows ``public_keys`` instead. ``options.headers`` show names only.
    """

    id: str
    url: str
    topics: tuple[str, ...]
    tenant_id: str | None
    description: str
    is_enabled: bool
    disabled_reason: str | None
    created_at: datetime
    options: EndpointOptions = field(default_factory=EndpointOptions)
    disabled_at: datetime | None = None
    failing_since: datetime | None = None
    paused_until: datetime | None = None
    public_keys: tuple[str, ...] = ()
    secret: str | None = field(default=None, repr=False)


def check_url(url: str) -> str:
    """Return ``url`` if, under some settings, a webhook may be sent to it.

    Raises:
        InvalidEndpoint: it is something else; the message never repeats a password.
    """
    return _ANY_URL.check(url)


def add_endpoint(
    session: Session,
    *,
    url: str,
    topics: Sequence[str],
    tenant_id: str | None = None,
    secret: str | None = None,
    signing: Signing = "v1",
    description: str = "",
    options: EndpointOptions | None = None,
    rules: EndpointRules | None = None,
    actor: str = DEFAULT_ACTOR,
    now: datetime | None = None,
) -> Endpoint:
    """Store an endpoint and return it with its signing secret, made here unless given.

    With ``signing="v1a"`` an ed25519 key is made, whose public half is in ``public_keys``. Messages that were
    relayed before get no delivery to it; a replay sends them. From async code call it with
    ``await async_session.run_sync(add_endpoint, url=…, topics=…)``.

    Raises:
        InvalidEndpoint: the URL or the description cannot be used, there is no topic, or the tenant has as
            many endpoints as the rules let it have.
        InvalidTopic: a topic is neither a topic nor one with a trailing wildcard.
        InvalidSecret: the secret cannot sign.
    """
    rules = rules or EndpointRules()
    options = options or EndpointOptions()
    secret = check_secret(make_secret(signing) if secret is None else secret)
    _check_number(session, tenant_id, rules.per_tenant)
    endpoint_id = new_id()
    row = EndpointRow(
        id=endpoint_id,
        tenant_id=tenant_id,
        url=rules.urls.check(url, rules.addresses),
        description=_checked_description(description),
        topics=_checked_topics(topics),
        secrets=[stored_secrets.stored(secret, SecretPlace(tenant_id, endpoint_id, 1), rules.keys)],
        is_enabled=True,
        created_at=now or SystemClock().now(),
    )
    store_options(row, options, rules.keys)
    session.add(row)
    note_act(session, row, actor, "add", {"url": without_query(url)})
    session.flush()
    return as_endpoint(row, secret)


def _check_number(session: Session, tenant_id: str | None, most: int) -> None:
    """Refuse one endpoint too many. Two that are added at the same moment may both be the last."""
    if tenant_id is None:
        return
    count = select(func.count()).select_from(EndpointRow).where(EndpointRow.tenant_id == tenant_id)
    if session.execute(count).scalar_one() >= most:
        raise InvalidEndpoint(
            f"tenant {tenant_id!r} has {most:,} endpoints, as many as webhooks.endpoints_per_tenant allows; "
            "delete one or raise the setting"
        )


def change_endpoint(
    session: Session,
    endpoint_id: str,
    *,
    tenant_id: str | None = None,
    url: str | None = None,
    topics: Sequence[str] | None = None,
    description: str | None = None,
    options: EndpointOptions | None = None,
    rules: EndpointRules | None = None,
    actor: str = DEFAULT_ACTOR,
) -> Endpoint:
    """Change what is given of an endpoint; what is being sent at this moment goes to the old URL.

    ``options`` replace all options there are; begin with those of ``get_endpoint``, in which the values of
    headers are hidden: such a value keeps the stored one.

    Raises:
        NotFound: there is none with this id, or it is another tenant's.
        InvalidEndpoint: as ``add_endpoint``; and the ordering of an endpoint does not change.
        InvalidTopic: as ``add_endpoint``.
    """
    rules = rules or EndpointRules()
    row = locked_row(session, endpoint_id, tenant_id=tenant_id)
    if options is not None:
        if options.ordering != row.ordering:
            raise InvalidEndpoint("the ordering of an endpoint does not change; add another endpoint")
        store_options(row, options, rules.keys)
    if url is not None:
        row.url = rules.urls.check(url, rules.addresses)
    if topics is not None:
        row.topics = _checked_topics(topics)
    if description is not None:
        row.description = _checked_description(description)
    given = {"url": url, "topics": topics, "description": description, "options": options}
    changed = [name for name, value in given.items() if value is not None]
    note_act(session, row, actor, "change", {"changed": changed})
    session.flush()
    return as_endpoint(row)


def list_endpoints(
    session: Session, *, tenant_id: str | None = None, after: str | None = None, limit: int | None = None
) -> list[Endpoint]:
    """Return all endpoints in the order of their making, or those of one tenant only.

    For the next page give the last id as ``after``.
    """
    query = select(EndpointRow).where(EndpointRow.removed_at.is_(None)).order_by(EndpointRow.id).limit(limit)
    if tenant_id is not None:
        query = query.where(EndpointRow.tenant_id == tenant_id)
    if after is not None:
        query = query.where(EndpointRow.id > after)
    return [as_endpoint(row) for row in session.scalars(query)]


def get_endpoint(session: Session, endpoint_id: str, *, tenant_id: str | None = None) -> Endpoint:
    """Return one endpoint; given ``tenant_id``, only if it is that tenant's.

    Raises:
        NotFound: there is none with this id, or it is another tenant's.
    """
    return as_endpoint(existing_row(session, endpoint_id, tenant_id=tenant_id))


def existing_row(session: Session, endpoint_id: str, *, tenant_id: str | None = None) -> EndpointRow:
    """Return the row of an endpoint, to look at.

    Raises:
        NotFound: there is none with this id, or it is another tenant's.
    """
    return _existing(session.get(EndpointRow, endpoint_id), endpoint_id, tenant_id)


def locked_row(session: Session, endpoint_id: str, *, tenant_id: str | None = None) -> EndpointRow:
    """Return the row of an endpoint, locked against other changes until the transaction ends.

    Raises:
        NotFound: there is none with this id, or it is another tenant's.
    """
    # "No key update", because a new delivery refers to the endpoint and must not wait for the lock.
    query = select(EndpointRow).where(EndpointRow.id == endpoint_id).with_for_update(key_share=True)
    row = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    return _existing(row, endpoint_id, tenant_id)


def is_owner(session: Session, endpoint_id: str, tenant_id: str | None) -> bool:
    """Tell whether an endpoint is the tenant's; to the operator (no ``tenant_id``) belongs every one."""
    if tenant_id is None:
        return True
    owner = select(EndpointRow.id).where(EndpointRow.id == endpoint_id, EndpointRow.tenant_id == tenant_id)
    return session.scalar(owner) is not None


class SqlWebhookEndpoints:
    """The endpoints of a database, as a ``WebhookService`` takes them.

    ``add`` is ``add_endpoint`` in a transaction of its own.
    """

    def __init__(
        self, session_factory: async_sessionmaker[AsyncSession], *, rules: EndpointRules | None = None
    ) -> None:
        self.session_factory = session_factory
        self.rules = rules or EndpointRules()

    async def add(
        self,
        *topics: str,
        url: str,
        secret: str | None = None,
        tenant_id: str | None = None,
        description: str = "",
        options: EndpointOptions | None = None,
        signing: Signing = "v1",
    ) -> Endpoint:
        """Store an endpoint and return it with its secret; raises what ``add_endpoint`` raises."""

        def _add(session: Session) -> Endpoint:
            return add_endpoint(
                session,
                url=url,
                topics=topics,
                tenant_id=tenant_id,
                secret=secret,
                signing=signing,
                description=description,
                options=options,
                rules=self.rules,
            )

        async with self.session_factory.begin() as session:
            return await session.run_sync(_add)


def make_secret(signing: Signing) -> str:
    """Make a secret that signs with HMAC (``v1``) or with ed25519 (``v1a``)."""
    return new_secret() if signing == "v1" else ed25519.new_private_key()


def _checked_topics(topics: Sequence[str]) -> list[str]:
    if isinstance(topics, str) or not topics:
        raise InvalidEndpoint("an endpoint needs a list of at least one topic; ['*'] is every topic")
    chosen = list(dict.fromkeys(topics))
    if len(chosen) > _MAX_TOPICS:
        raise InvalidEndpoint(f"an endpoint has {_MAX_TOPICS} topics at most; use wildcards")
    return [check_pattern(topic) for topic in chosen]


def _checked_description(description: str) -> str:
    if len(description) > _MAX_DESCRIPTION_LENGTH or not is_storable(description):
        raise InvalidEndpoint(
            f"a description has {_MAX_DESCRIPTION_LENGTH} characters at most, and no NUL or lone surrogate"
        )
    return description


def _existing(row: EndpointRow | None, endpoint_id: str, tenant_id: str | None) -> EndpointRow:
    if row is None or row.removed_at is not None or (tenant_id is not None and row.tenant_id != tenant_id):
        raise NotFound(f"no webhook endpoint {endpoint_id!r}; 'worker.py endpoints list' shows them")
    return row


def as_endpoint(row: EndpointRow, secret: str | None = None) -> Endpoint:
    """Return what may be shown of an endpoint, with its secret if that was made just now."""
    is_private_key = secret is not None and secret.startswith(ed25519.PRIVATE_PREFIX)
    return Endpoint(
        id=row.id,
        url=row.url,
        topics=tuple(row.topics),
        tenant_id=row.tenant_id,
        description=row.description,
        is_enabled=row.is_enabled,
        disabled_reason=row.disabled_reason,
        created_at=row.created_at,
        options=shown_options(row),
        disabled_at=row.disabled_at,
        failing_since=row.failing_since,
        paused_until=row.paused_until,
        public_keys=stored_secrets.public_keys(row.secrets, datetime.now(UTC)),
        secret=None if is_private_key else secret,
    )
