"""The payloads of billing's jobs and webhook topics, exactly as promised to whoever reads them.

Unknown keys are ignored, so that a newer writer may add some; missing ones and nulls are refused. Written
payloads hold text only: instants in UTC ending in ``Z``, decimals without exponent or trailing zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictStr,
    ValidationError,
)

from svc_infra.billing.columns import CALENDAR_CYCLE, METRIC_LENGTH
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.db.base import TENANT_ID_LENGTH
from svc_infra.exceptions import InvalidPayload

P = TypeVar("P", bound="Payload")


def _written_instant(value: Any) -> Any:
    if not isinstance(value, (str, datetime)):
        raise ValueError("an instant is written in ISO 8601 with an offset")
    return value


TenantId = Annotated[StrictStr, Field(min_length=1, max_length=TENANT_ID_LENGTH)]
Metric = Annotated[StrictStr, Field(min_length=1, max_length=METRIC_LENGTH)]
Text = Annotated[StrictStr, Field(min_length=1)]
# A number would be read as seconds since 1970, which nobody promised.
Instant = Annotated[AwareDatetime, BeforeValidator(_written_instant), PlainSerializer(canonical_instant)]
Total = Annotated[Decimal, PlainSerializer(canonical_decimal)]


class Payload(BaseModel):
    """A payload as a Python value; ``to_payload`` writes it, ``parse`` reads it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def parse(cls: type[P], payload: Mapping[str, Any]) -> P:
        """Read a payload.

        Raises:
            InvalidPayload: a key is missing or has a value of another kind; the message names each.
        """
        try:
            return cls.model_validate(payload)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'payload'}: {fault['msg']}" for fault in error.errors()
            )
            raise InvalidPayload(f"not a payload of {cls.__name__}: {faults}") from None

    def to_payload(self) -> dict[str, Any]:
        """Write the payload with its promised keys."""
        return self.model_dump()


class AggregateDaily(Payload):
    """Of the job ``billing.aggregate_daily``. ``day_start`` may be any instant of the tenant's day."""

    tenant_id: TenantId
    metric: Metric
    day_start: Instant


class GenerateMonthlyInvoice(Payload):
    """Of the job ``billing.generate_monthly_invoice``: the half-open period, and an ISO 4217 code.

    ``cycle`` is given for the subscriptions that have a billing cycle of their own.
    """

    tenant_id: TenantId
    period_start: Instant
    period_end: Instant
    currency: Text
    cycle: Text = CALENDAR_CYCLE

    def to_payload(self) -> dict[str, Any]:
        """Write the payload with its promised keys, and the cycle if it is not the calendar."""
        return self.model_dump(exclude={"cycle"} if self.cycle == CALENDAR_CYCLE else set())


class FinalizeInvoice(Payload):
    """Of the job ``billing.finalize_invoice``."""

    tenant_id: TenantId
    invoice_id: Text


class BillLateUsage(Payload):
    """Of the job ``billing.bill_late_usage``."""

    tenant_id: TenantId


class UsageAggregated(Payload):
    """Of the topic ``billing.usage_aggregated``: a quantity, and the local midnight that began its day."""

    tenant_id: TenantId
    metric: Metric
    day_start: Instant
    total: Total


class InvoiceCreated(Payload):
    """Of the topic ``billing.invoice.created``."""

    tenant_id: TenantId
    invoice_id: Text
    period_start: Instant
    period_end: Instant
    currency: Text


class QuotaThreshold(Payload):
    """Of the topic ``billing.quota.threshold``: ``used`` reached ``percent`` of ``limit``, all quantities.

    The window is the half-open span of the tenant's day or month.
    """

    tenant_id: TenantId
    key: Metric
    window: Text
    window_start: Instant
    window_end: Instant
    percent: int
    limit: int
    used: Total
