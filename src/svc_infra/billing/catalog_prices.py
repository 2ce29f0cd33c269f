"""The versions of stored prices: which one is in force, and making a new one where a catalog says otherwise.

A version is never changed: what was rated with it can always be rated again. A new one begins on a day, in
every tenant's own zone, and ends the one before it there. Periods take the version of the day they begin on,
so no period is rated with two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from svc_infra.billing.catalog import Catalog, PriceSpec
from svc_infra.billing.first_use import ready
from svc_infra.billing.models import SINCE_EVER, Invoice, Plan, Price, Subscription
from svc_infra.billing.periods import add_months
from svc_infra.billing.rating import PriceModel, PriceTerms
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidCatalog, NotFound

# The zone that is furthest ahead: a day has begun somewhere when it has begun there.
_FIRST_ZONE = timedelta(hours=14)

_Identity = tuple[str | None, str, str]


@dataclass(frozen=True, slots=True)
class PriceChange:
    """What applying a catalog does to a price: its terms before and after, and from which day on."""

    name: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    effective_on: date
    is_retroactive: bool = False

    @property
    def is_change(self) -> bool:
        """Whether anything is billed differently."""
        return self.before != self.after


def version_start(now: datetime, wanted: date | None, *, is_retroactive: bool) -> date | None:
    """The day from which a changed price counts: the wanted one, or the first of a month that has not begun.

    None means since ever, where a retroactive change names no day.

    Raises:
        InvalidCatalog: the wanted day has begun for a tenant somewhere, and the change is not retroactive.
    """
    today = (now + _FIRST_ZONE).date()
    if wanted is None:
        return None if is_retroactive else add_months(today.replace(day=1), 1)
    if wanted <= today and not is_retroactive:
        raise InvalidCatalog(
            f"{wanted} has begun already, so prices from that day on would change what was used before; "
            f"choose {today + timedelta(days=1)} or later, or say --retroactive"
        )
    return wanted


def apply_prices(
    session: Session,
    catalog: Catalog,
    plans: Mapping[str, Plan],
    since: date | None,
    *,
    now: datetime,
    is_retroactive: bool,
) -> list[PriceChange]:
    """Make a new version of every price that the catalog states differently, and say what each was and is.

    A price that bills nobody yet (no subscription to its plan; for every tenant: no invoice at all) counts
    since ever. Called under the catalog's lock.

    Raises:
        InvalidCatalog: with the prices that stay, a metric would be billed twice.
    """
    versions = _versions(session)
    subscribed = set(session.scalars(select(Subscription.plan_id).distinct()))
    has_invoices = bool(session.scalar(select(exists().where(Invoice.id.is_not(None)))))
    changes = []
    for spec in catalog.prices:
        plan_id = plans[spec.plan].id if spec.plan is not None else None
        known = versions[plan_id, spec.terms.key, spec.terms.currency]
        bills_nobody = (plan_id not in subscribed) if plan_id is not None else not has_invoices
        begins = SINCE_EVER if since is None or (not known and bills_nobody) else since
        changes.append(_apply(session, spec, plan_id, known, begins, now=now, is_retroactive=is_retroactive))
    _refuse_second_prices(versions.values(), {plan.id: plan.key for plan in plans.values()})
    session.flush()
    return changes


def end_price(
    session: Session,
    *,
    key: str,
    currency: str,
    plan_key: str | None = None,
    ended_on: date | None = None,
    now: datetime,
    is_retroactive: bool = False,
) -> PriceChange:
    """Stop billing a price for what begins on ``ended_on`` (the first of the next month) or later.

    Raises:
        NotFound: there is no such price, or it has ended.
        InvalidCatalog: the day has begun somewhere and ``is_retroactive`` is not set.
    """
    ready(session)
    ends = version_start(now, ended_on, is_retroactive=is_retroactive) or SINCE_EVER
    plan_id = None
    if plan_key is not None:
        plan_id = session.scalar(select(Plan.id).where(Plan.key == plan_key))
        if plan_id is None:
            raise NotFound(f"there is no plan {plan_key!r}")
    open_version = select(Price).where(
        Price.key == key, Price.currency == currency.lower(), Price.ended_on.is_(None)
    )
    of_plan = Price.plan_id.is_(None) if plan_id is None else Price.plan_id == plan_id
    price = session.scalars(open_version.where(of_plan).with_for_update()).one_or_none()
    if price is None:
        raise NotFound(f"there is no open price {key!r} in {currency} of {_scope(plan_key)}")
    price.ended_on = max(ends, price.effective_on)
    session.flush()
    before = price_terms(price).to_snapshot()
    return PriceChange(_name(plan_key, key, price.currency), before, None, price.ended_on, is_retroactive)


def price_terms(price: Price) -> PriceTerms:
    """The terms of a stored price."""
    if price.terms is not None:
        return PriceTerms.from_snapshot(price.terms)
    return PriceTerms(
        key=price.key,
        currency=price.currency,
        model=PriceModel(price.model),
        unit_amount=price.unit_amount,
        metric=price.metric,
        recurring_interval=price.recurring_interval,
    )


def _versions(session: Session) -> dict[_Identity, list[Price]]:
    found: dict[_Identity, list[Price]] = defaultdict(list)
    ordered = select(Price).order_by(Price.effective_on, Price.id)
    # Read over what the session remembers: it may be older than the lock.
    for row in session.scalars(ordered.execution_options(populate_existing=True)):
        found[row.plan_id, row.key, row.currency].append(row)
    return found


def _apply(
    session: Session,
    spec: PriceSpec,
    plan_id: str | None,
    known: list[Price],
    begins: date,
    *,
    now: datetime,
    is_retroactive: bool,
) -> PriceChange:
    terms, name = spec.terms, _name(spec.plan, spec.terms.key, spec.terms.currency)
    wanted = terms.to_snapshot()
    is_open = bool(known) and known[-1].ended_on is None
    before = price_terms(known[-1]).to_snapshot() if is_open else None
    if before == wanted:
        return PriceChange(name, before, wanted, known[-1].effective_on)
    if known:
        _refuse_another_kind(name, price_terms(known[-1]), terms, spec.line)
    for version in known:
        if version.ended_on is None or version.ended_on > begins:
            version.ended_on = max(begins, version.effective_on)
    session.flush()  # the old version ends before the new one is open
    new = Price(
        id=new_id(),
        plan_id=plan_id,
        key=terms.key,
        currency=terms.currency,
        model=PriceModel.FIXED.value if terms.metric is None else terms.model.value,
        unit_amount=terms.unit_amount,
        metric=terms.metric,
        recurring_interval=terms.recurring_interval,
        terms=wanted,
        effective_on=begins,
        created_at=now,
    )
    session.add(new)
    known.append(new)
    return PriceChange(name, before, wanted, begins, is_retroactive and bool(known[:-1]))


def _refuse_another_kind(name: str, before: PriceTerms, after: PriceTerms, line: int) -> None:
    """What was charged with one version must be told from what is charged with the next."""
    for part in ("metric", "recurring_interval", "is_advance", "is_commitment"):
        if getattr(before, part) != getattr(after, part):
            raise InvalidCatalog(
                f"line {line}: {name} cannot change its {part.removeprefix('is_')}; "
                "end it and give the new price a key of its own"
            )


def _refuse_second_prices(versions: Iterable[list[Price]], plan_keys: Mapping[str, str]) -> None:
    """The parser has checked the file; a price that the file no longer has may still bill a metric of it."""
    seen: dict[tuple[Any, ...], dict[str | None, Price]] = {}
    for price in (known[-1] for known in versions if known and known[-1].ended_on is None):
        if price.metric is None:
            continue
        others = seen.setdefault((price.metric, price.currency, price_terms(price).filter), {})
        for plan_id, other in others.items():
            if plan_id is None or price.plan_id is None or plan_id == price.plan_id:
                raise InvalidCatalog(
                    f"the database keeps a price {other.key!r} of {_scope(plan_keys.get(plan_id or ''))} for "
                    f"metric {price.metric!r} in {price.currency}; with {price.key!r} the same usage is "
                    "billed twice, so keep the key or end the other price"
                )
        others[price.plan_id] = price


def _name(plan: str | None, key: str, currency: str) -> str:
    return f"price {key} in {currency} of {'every tenant' if plan is None else f'plan {plan}'}"


def _scope(plan: str | None) -> str:
    return "every tenant" if plan is None else f"plan {plan!r}"
