"""The kinds of problems that the API answers with: each has a ``type`` of its own and is documented.

``docs/reference/errors.md`` lists them; a test holds that list to this one.
"""

from __future__ import annotations

from dataclasses import dataclass

from svc_infra import exceptions
from svc_infra.exceptions import SvcInfraError


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A kind of problem. Its ``slug`` ends the ``type``, which programs compare and which never changes."""

    status: int
    slug: str
    title: str

    @property
    def type(self) -> str:
        """The ``type`` of its problem documents."""
        return f"urn:svc-infra:problem:{self.slug}"


NOT_AUTHENTICATED = ProblemKind(401, "not-authenticated", "This request names no authenticated caller")
SCOPE_MISSING = ProblemKind(403, "scope-missing", "The caller may not do this")
TENANT_MISSING = ProblemKind(400, "tenant-missing", "The request names no tenant")
INVALID_REQUEST = ProblemKind(422, "invalid-request", "The request is not valid")
TOO_LARGE = ProblemKind(413, "too-large", "The request is too large")
CHANGED_MEANWHILE = ProblemKind(412, "changed-meanwhile", "It has changed since it was read")
IF_MATCH_MISSING = ProblemKind(428, "if-match-missing", "Say which state is to be changed")
INVALID_IDEMPOTENCY_KEY = ProblemKind(400, "invalid-idempotency-key", "The key cannot be used")
IDEMPOTENCY_KEY_REUSED = ProblemKind(422, "idempotency-key-reused", "The key was used for another request")
IDEMPOTENCY_KEY_IN_PROGRESS = ProblemKind(
    409, "idempotency-key-in-progress", "The first request with this key is still running"
)
ANSWER_SEALED = ProblemKind(409, "answer-sealed", "The first answer cannot be shown again")
NOT_READY = ProblemKind(503, "not-ready", "Not ready")
UNAVAILABLE = ProblemKind(503, "unavailable", "Something this service needs is away")
INTERNAL = ProblemKind(500, "internal", "Something went wrong on our side")

# What the caller can do something about. Any other error of ours is our own fault: 500, without its message.
OF_ERRORS: dict[type[SvcInfraError], ProblemKind] = {
    exceptions.InvalidUsage: ProblemKind(422, "invalid-usage", "The usage event cannot be recorded"),
    exceptions.AlreadyCorrected: ProblemKind(409, "already-corrected", "The event was corrected before"),
    exceptions.InvalidPayload: ProblemKind(422, "invalid-payload", "The payload cannot be stored"),
    exceptions.InvalidSchedule: ProblemKind(422, "invalid-schedule", "The schedule cannot be used"),
    exceptions.InvalidAct: ProblemKind(409, "invalid-act", "Its state does not allow this"),
    exceptions.InvalidEndpoint: ProblemKind(422, "invalid-endpoint", "The endpoint cannot be used"),
    exceptions.EndpointNotReady: ProblemKind(409, "endpoint-not-ready", "The endpoint cannot be sent to now"),
    exceptions.InvalidTopic: ProblemKind(422, "invalid-topic", "The topic is not one"),
    exceptions.InvalidSecret: ProblemKind(422, "invalid-secret", "The secret cannot sign"),
    exceptions.AddressRefused: ProblemKind(422, "address-refused", "The address may not be dialled"),
    exceptions.InvalidCurrency: ProblemKind(422, "invalid-currency", "The currency is unknown"),
    exceptions.InvalidPeriod: ProblemKind(422, "invalid-period", "The period cannot be billed"),
    exceptions.InvalidPrice: ProblemKind(422, "invalid-price", "The price cannot be rated"),
    exceptions.InvalidMeter: ProblemKind(422, "invalid-meter", "The meter cannot be used"),
    exceptions.InvalidCatalog: ProblemKind(422, "invalid-catalog", "The catalog has an error"),
    exceptions.InvalidSubscription: ProblemKind(
        422, "invalid-subscription", "The subscription cannot be stored"
    ),
    exceptions.AmountTooLarge: ProblemKind(422, "amount-too-large", "The amount is too large"),
    exceptions.VerificationFailed: ProblemKind(400, "verification-failed", "The signature does not verify"),
    exceptions.NotFound: ProblemKind(404, "not-found", "There is no such record"),
    exceptions.IdempotencyConflict: ProblemKind(409, "idempotency-conflict", "The idempotency key is taken"),
    exceptions.PeriodOverlap: ProblemKind(409, "period-overlap", "The period overlaps an invoiced one"),
    exceptions.AmbiguousPrice: ProblemKind(409, "ambiguous-price", "Two prices bill the same usage"),
    exceptions.InvalidStatus: ProblemKind(409, "invalid-status", "Its status does not allow this"),
    exceptions.TenantParked: ProblemKind(409, "tenant-parked", "The tenant is not invoiced at present"),
    exceptions.InvalidCursor: ProblemKind(422, "invalid-cursor", "The cursor is none of ours"),
    exceptions.InvalidApiKey: ProblemKind(422, "invalid-api-key", "The key cannot be made"),
    exceptions.QuotaExceeded: ProblemKind(429, "quota-exceeded", "The quota is used up"),
    exceptions.ReservationEnded: ProblemKind(409, "reservation-ended", "The reservation was ended before"),
    exceptions.SchemaMissing: ProblemKind(503, "schema-missing", "The database is not ready"),
}

ALL_KINDS = (
    NOT_AUTHENTICATED,
    SCOPE_MISSING,
    TENANT_MISSING,
    INVALID_REQUEST,
    TOO_LARGE,
    CHANGED_MEANWHILE,
    IF_MATCH_MISSING,
    INVALID_IDEMPOTENCY_KEY,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENCY_KEY_IN_PROGRESS,
    ANSWER_SEALED,
    NOT_READY,
    UNAVAILABLE,
    INTERNAL,
    *OF_ERRORS.values(),
)


def kind_of(error: SvcInfraError) -> ProblemKind | None:
    """The kind that an error of ours is answered as; None if it is no business of the caller."""
    return next((OF_ERRORS[cls] for cls in type(error).__mro__ if cls in OF_ERRORS), None)
