"""What routes depend on: who is asking, and where the sessions come from."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeAlias

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.api.cursors import Cursors, installation_cursors
from svc_infra.api.fastapi.middleware.errors.kinds import NOT_AUTHENTICATED, SCOPE_MISSING, TENANT_MISSING
from svc_infra.api.fastapi.middleware.errors.problem import Refusal
from svc_infra.api.key_cache import KeyCache
from svc_infra.api.keys import is_key
from svc_infra.billing.first_use import ready
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.clock import Clock
from svc_infra.config import BillingSettings, Settings, load_settings
from svc_infra.db.base import TENANT_ID_LENGTH
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.db.tenant_isolation import act_for
from svc_infra.exceptions import InvalidSettings
from svc_infra.webhooks.sealing import KeyRing

SessionFactory: TypeAlias = async_sessionmaker[AsyncSession]

BILLING_SCOPES = frozenset({"billing.read", "billing.write"})
TENANT_HEADER = "Svc-Tenant"
_MAX_ACTOR_LENGTH = 200
_SETTINGS_FILE = Path("config/worker.toml")  # the worker reads it too, and both must see one database


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, after authentication: one tenant, and what may be done in its name.

    ``scopes`` are some of ``svc_infra.api.keys.OPERATOR_SCOPES``; unless given, billing's two. ``name`` tells
    callers of one tenant apart. Where ``tenant_id`` is empty, an operator is asking and has named no tenant.
    """

    tenant_id: str
    scopes: frozenset[str] = BILLING_SCOPES
    name: str = ""

    @property
    def actor(self) -> str:
        """Who is recorded as having done what this request does."""
        acting_for = f"tenant {self.tenant_id}" if self.tenant_id else "operator"
        return (self.name or acting_for)[:_MAX_ACTOR_LENGTH]


PrincipalSource: TypeAlias = Callable[[Request], Principal | Awaitable[Principal | None] | None]


class Database:
    """The database of one application: its engine is made by the first request and ends with the app."""

    def __init__(self, session_factory: SessionFactory | None = None) -> None:
        # Loaded now, so that a wrong setting stops the start and not the first customer.
        self._settings: Settings = load_settings(_SETTINGS_FILE if _SETTINGS_FILE.is_file() else None)
        self._factory = session_factory
        self._engine: AsyncEngine | None = None
        self.cursors: Cursors | None = None  # known from the first page that needs them

    @property
    def session_factory(self) -> SessionFactory:
        """The factory of sessions; the first use makes the engine where the settings name the database."""
        if self._factory is None:
            self._engine = make_engine(**self._settings.database.model_dump(exclude={"tenant_role"}))
            self._factory = make_session_factory(self._engine)
        return self._factory

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the sessions.

        Raises:
            InvalidSettings: the caller's session factory makes sessions of something else.
        """
        bind = self.session_factory.kw.get("bind")
        if not isinstance(bind, AsyncEngine):
            raise InvalidSettings("health needs sessions that are bound to an AsyncEngine")
        return bind

    @property
    def settings(self) -> Settings:
        """The settings that were loaded with it."""
        return self._settings

    def is_of(self, session_factory: SessionFactory | None) -> bool:
        """Whether these are the caller's sessions; without any, whatever is there will do."""
        return session_factory is None or session_factory is self._factory

    async def know_cursors(self, now: datetime) -> None:
        """See to it that the secret of the cursors is known, before a transaction that could not make one."""
        if self.cursors is None:

            def find(session: Session) -> Cursors:
                ready(session)
                return installation_cursors(session, now=now)

            async with self.session_factory.begin() as session:
                cursors = await session.run_sync(find)
            self.cursors = cursors

    async def close(self) -> None:
        """Close the connections, unless the sessions are the caller's own; a later request opens new ones."""
        if self._engine is not None:
            engine, self._engine, self._factory = self._engine, None, None
            await engine.dispose()


@dataclass(slots=True)
class ApiContext:
    """What ``add_billing`` and its siblings leave in ``app.state.svc_infra`` for the dependencies.

    ``secret_keys`` seal kept answers that show a secret. ``tenant_role`` is the database role that acts for
    tenants, if there is one. ``mounted`` are the parts that were added.
    """

    database: Database
    principal: PrincipalSource | None
    clock: Clock
    limits: UsageLimits = NO_LIMITS
    has_provider: bool = False
    keys: KeyCache = field(default_factory=KeyCache)
    secret_keys: KeyRing | None = None
    tenant_role: str = ""
    mounted: set[str] = field(default_factory=set)

    def hold_to_tenant(self, session: AsyncSession, principal: Principal) -> None:
        """Let the session see its tenant's rows only, where the database has the role for that."""
        if self.tenant_role and principal.tenant_id:
            act_for(session, principal.tenant_id, self.tenant_role)


async def find_principal(request: Request) -> Principal | None:
    """Return who is asking, None when nobody is known.

    Asked is the ``principal`` given to ``add_billing``; without one ``request.state.principal``, which the
    application's own middleware sets; without that an API key in ``Authorization: Bearer svck_…``. An
    operator's key names the tenant that it acts for in the header ``Svc-Tenant``.

    Raises:
        InvalidSettings: the application said something else than a ``Principal``.
    """
    context = _context_of(request)
    if context is not None and context.principal is not None:
        answer = context.principal(request)
        found = await answer if inspect.isawaitable(answer) else answer
    else:
        found = getattr(request.state, "principal", None)
        if found is None and context is not None:
            found = await _principal_of_key(request, context)
    if found is not None and not isinstance(found, Principal):
        raise InvalidSettings(f"the principal is a {type(found).__name__}; make it a Principal(tenant_id, …)")
    return found


async def _principal_of_key(request: Request, context: ApiContext) -> Principal | None:
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not is_key(text):
        return None
    key = await context.keys.find(text, context.database.session_factory, now=context.clock.now())
    if key is None:
        return None
    tenant_id = request.headers.get(TENANT_HEADER, "") if key.tenant_id is None else key.tenant_id
    return Principal(tenant_id, key.scopes, name=key.id)


async def get_principal(request: Request) -> Principal:
    """Depend on an authenticated caller; ``app.dependency_overrides`` may replace this.

    Raises:
        Refusal: 401, nobody is known for this request.
    """
    found = await find_principal(request)
    if found is None:
        detail = "Send an API key as 'Authorization: Bearer svck_…'."
        raise Refusal(NOT_AUTHENTICATED, detail, {"WWW-Authenticate": "Bearer"})
    return found


CurrentPrincipal = Annotated[Principal, Depends(get_principal)]


# Only for the document: who is asking is found by ``find_principal``, which an application may replace.
_BEARER = HTTPBearer(bearerFormat="svck_…", scheme_name="apiKey", description="An API key.", auto_error=False)


def require_scope(scope: str, *, needs_tenant: bool = True) -> Callable[..., Awaitable[Principal]]:
    """Return a dependency on a caller who has ``scope`` and acts for a tenant; it answers 403 to others.

    ``needs_tenant=False`` is for what belongs to no tenant: an operator's key need not name one then.
    """

    documented = Security(_BEARER, scopes=[scope])

    async def principal_with_scope(
        principal: CurrentPrincipal,
        _: HTTPAuthorizationCredentials | None = documented,
        _tenant: Annotated[
            str | None,
            Header(alias=TENANT_HEADER, description="For which tenant an operator's key acts."),
        ] = None,
    ) -> Principal:
        if scope not in principal.scopes:
            raise Refusal(SCOPE_MISSING, f"This needs the scope {scope}.")
        if needs_tenant and not (0 < len(principal.tenant_id) <= TENANT_ID_LENGTH):
            raise Refusal(TENANT_MISSING, f"Say for which tenant, with its id in {TENANT_HEADER}.")
        return principal

    return principal_with_scope


async def get_session_factory(request: Request) -> SessionFactory:
    """Depend on the factory of sessions; each unit of work opens one and commits before it answers.

    Raises:
        InvalidSettings: ``add_billing`` was not called for this application.
    """
    return context_of(request).database.session_factory


async def get_billing_settings(request: Request) -> BillingSettings:
    """Depend on what the settings say of billing; the defaults for an application without ``add_billing``."""
    context = _context_of(request)
    return BillingSettings() if context is None else context.database.settings.billing


async def get_has_provider(request: Request) -> bool:
    """Depend on whether what is issued is mirrored to a payment provider."""
    return context_of(request).has_provider


class TenantSessions:
    """The sessions of units of work for one tenant, which see no other's rows where a role sees to that."""

    def __init__(self, factory: SessionFactory, principal: Principal, context: ApiContext | None) -> None:
        self._factory = factory
        self._principal = principal
        self._context = context

    @property
    def is_held(self) -> bool:
        """Whether a role of the database sees to it."""
        return self._context is not None and bool(self._context.tenant_role and self._principal.tenant_id)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """Open a session whose transaction is committed at the end, as ``async_sessionmaker.begin`` does."""
        async with self._factory.begin() as session:
            if self._context is not None:
                self._context.hold_to_tenant(session, self._principal)
            yield session


async def get_tenant_sessions(
    request: Request,
    principal: CurrentPrincipal,
    factory: Annotated[SessionFactory, Depends(get_session_factory)],
) -> TenantSessions:
    """Depend on the sessions of the caller's tenant."""
    return TenantSessions(factory, principal, _context_of(request))


async def get_clock(request: Request) -> Clock:
    """Depend on the application's business time."""
    return context_of(request).clock


async def get_usage_limits(request: Request) -> UsageLimits:
    """Depend on how far from now usage may lie."""
    return context_of(request).limits


def context_of(request: Request) -> ApiContext:
    """Return what ``add_billing`` left for this application.

    Raises:
        InvalidSettings: ``add_billing`` was not called for it.
    """
    context = _context_of(request)
    if context is None:
        raise InvalidSettings("this application has no database of ours; call add_billing(app) first")
    return context


def _context_of(request: Request) -> ApiContext | None:
    # By way of the scope: a middleware around the whole application comes before there is a request.app.
    context = getattr(getattr(request.scope.get("app"), "state", None), "svc_infra", None)
    return context if isinstance(context, ApiContext) else None
