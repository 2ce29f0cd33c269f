"""The state of a quota as ``RateLimit`` headers (draft-ietf-httpapi-ratelimit-headers)."""

from __future__ import annotations

from decimal import ROUND_FLOOR
from math import ceil
from urllib.parse import quote

from svc_infra.billing.entitlements import Quota

# What a structured field can say of an integer.
_MAX_INTEGER = 999_999_999_999_999


def rate_limit_headers(quota: Quota, *, reset_seconds: float) -> dict[str, str]:
    """Return ``RateLimit-Policy`` and ``RateLimit``; nothing for a quota without a limit.

    The policy's name is the quota's key, percent-encoded where it is no plain text; ``q`` is the limit, ``w``
    the length of the window and ``t`` the time until it is renewed, in seconds, ``r`` the whole units left.
    """
    if quota.limit is None or quota.limit > _MAX_INTEGER:
        return {}
    left = max(0, int((quota.limit - quota.used).to_integral_value(ROUND_FLOOR)))
    window = int((quota.period.end - quota.period.start).total_seconds())
    name = f'"{quote(quota.key, safe=" !#$&()*+,-./:;<=>?@[]^_`{|}~")}"'
    return {
        "RateLimit-Policy": f"{name};q={quota.limit};w={window}",
        "RateLimit": f"{name};r={left};t={max(0, ceil(reset_seconds))}",
    }
