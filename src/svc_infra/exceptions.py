"""Every error this package raises on purpose, under one base.

A message says what is wrong and what to do about it. What a job handler may *return* to end its attempt
(retry, snooze, discard, cancel) is not an error and lives in ``svc_infra.jobs.outcome``.
"""

from __future__ import annotations


class SvcInfraError(Exception):
    """Base of all errors of this package."""


class InvalidSettings(SvcInfraError):
    """A setting is unknown, missing or has a value that cannot be used."""


class SchemaMissing(SvcInfraError):
    """The database has no or an older schema; ``worker.py migrate`` brings it up."""


# --- jobs and schedules ---------------------------------------------------------------------------------


class InvalidPayload(SvcInfraError):
    """A job payload or a message cannot be stored as JSON, or does not have the promised shape."""


class InvalidSchedule(SvcInfraError):
    """A cron expression, time zone or catch-up policy cannot be used."""


class NotInTransaction(SvcInfraError):
    """A durable queue was used without a session: bind it first with ``queue.bind(session)``."""


class UnknownJob(SvcInfraError):
    """No handler is registered for this job name; the job is left for a worker that has one."""


class InvalidAct(SvcInfraError):
    """What was asked for does not fit the state of the job, queue or schedule; nothing was changed."""


class LeaseLost(SvcInfraError):
    """The lease of this claim is gone, so nothing that the attempt did may be kept."""


# --- webhooks ---------------------------------------------------------------------------------------------


class InvalidEndpoint(SvcInfraError):
    """A webhook endpoint cannot be stored or used as given."""


class EndpointNotReady(InvalidEndpoint):
    """The endpoint is disabled, or its delivery is being sent at this moment; nothing was changed."""


class InvalidTopic(SvcInfraError):
    """A topic is not ``part.part`` of letters, digits and underscores."""


class InvalidSecret(SvcInfraError):
    """A signing secret cannot be used."""


class VerificationFailed(SvcInfraError):
    """A received webhook is not what its signature says, or it is too old."""


class AddressRefused(SvcInfraError):
    """The endpoint's address may not be dialled."""


# --- billing ----------------------------------------------------------------------------------------------


class InvalidUsage(SvcInfraError):
    """A usage event cannot be recorded as given."""


class AlreadyCorrected(InvalidUsage):
    """The event was voided or amended before; correct what counts in its place."""


class IdempotencyConflict(SvcInfraError):
    """The idempotency key was used before with another payload; nothing was written."""


class InvalidCurrency(SvcInfraError):
    """Not a known ISO 4217 currency code."""


class InvalidPeriod(SvcInfraError):
    """A period is empty, inverted, naive, or not bounded by the tenant's local midnights."""


class PeriodOverlap(SvcInfraError):
    """The period overlaps one that was invoiced already with other bounds."""


class InvalidMeter(SvcInfraError):
    """A metric's meter, or a filter on its dimensions, cannot be used as given."""


class InvalidPrice(SvcInfraError):
    """A price cannot be rated as given."""


class AmbiguousPrice(SvcInfraError):
    """Two prices bill the same metric of a tenant at the same instant."""


class AmountTooLarge(SvcInfraError):
    """An amount of money does not fit 64-bit minor units."""


class InvalidCatalog(SvcInfraError):
    """The catalog file has an error; the message names the file and the line."""


class InvalidSubscription(SvcInfraError):
    """A subscription cannot be stored as given."""


class NotFound(SvcInfraError):
    """No such record for this tenant."""


class QuotaExceeded(SvcInfraError):
    """The plan's limit for this window is used up; ``retry_after_seconds`` says when it is renewed.

    ``quota`` is the state that refused it, a ``billing.entitlements.Quota``, where there is one.
    """

    retry_after_seconds: float | None = None
    quota: object = None


class ReservationEnded(QuotaExceeded):
    """The reservation was committed or released before; reserve anew."""


class ProviderRefused(SvcInfraError):
    """A payment provider cannot take an invoice as it is; trying again would not help."""


class ProviderUnavailable(SvcInfraError):
    """A payment provider did not answer or has too much to do; try again later."""


# --- the HTTP API -----------------------------------------------------------------------------------------


class InvalidApiKey(SvcInfraError):
    """A key for the HTTP API cannot be made as asked."""


class InvalidCursor(SvcInfraError):
    """A cursor is none of ours, or of another list; pass the ``next_cursor`` of a page of this one."""


class TenantParked(SvcInfraError):
    """The tenant would get more invoices or lines than the safety bound allows, and waits to be looked at."""


class InvalidStatus(SvcInfraError):
    """The invoice is not in a state from which it can move so."""
