"""Which topics an endpoint wants: exact ones, all below a prefix, or every one."""

from __future__ import annotations

from collections.abc import Iterable

from svc_infra.exceptions import InvalidTopic
from svc_infra.webhooks.message import check_topic

OPERATIONAL_PREFIX = "webhooks."
_ANY_TOPIC = "*"
_WILDCARD = ".*"


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
    """Tell whether ``pattern`` wants ``topic``: ``billing.*`` wants all below ``billing``, at any depth.

    What webhooks say about themselves (``webhooks.endpoint.disabled`` and the like) is wanted only by name
    or as ``webhooks.*``: an endpoint for every business topic does not expect it.
    """
    if pattern == _ANY_TOPIC:
        return not topic.startswith(OPERATIONAL_PREFIX)
    if pattern.endswith(_WILDCARD):
        return topic.startswith(pattern[:-1])
    return pattern == topic


def is_wanted(
    topic: str, tenant_id: str | None, *, patterns: Iterable[str], endpoint_tenant_id: str | None
) -> bool:
    """Tell whether an endpoint gets a message: it is the operator's or the message's own tenant's."""
    is_theirs = endpoint_tenant_id is None or endpoint_tenant_id == tenant_id
    return is_theirs and any(matches(pattern, topic) for pattern in patterns)
