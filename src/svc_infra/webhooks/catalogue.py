"""The event catalogue: every topic with the model of its payload, so that nothing else can be published."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from svc_infra.canonical import plain_json
from svc_infra.exceptions import InvalidPayload, InvalidTopic
from svc_infra.webhooks.message import check_topic

_SCHEMA_POINTER = "#/webhooks/{}/post/requestBody/content/application~1json/schema"
_EXAMPLE_INSTANT = "2025-01-31T12:00:00Z"


@dataclass(frozen=True, slots=True)
class TopicType:
    """A topic that may be published: ``model`` is its payload, ``version`` rises when that changes."""

    topic: str
    model: type[BaseModel]
    description: str
    example: Mapping[str, Any]
    version: int = 1


class TopicCatalogue:
    """The topics of an application, by name."""

    def __init__(self) -> None:
        self._topics: dict[str, TopicType] = {}

    def add(
        self,
        topic: str,
        model: type[BaseModel],
        *,
        description: str,
        example: Mapping[str, Any],
        version: int = 1,
    ) -> TopicType:
        """Register a topic and return it.

        Raises:
            InvalidTopic: the topic's syntax is wrong, or it is registered already.
            InvalidPayload: the example is no payload of the model.
        """
        check_topic(topic)
        if topic in self._topics:
            raise InvalidTopic(
                f"the topic {topic!r} is registered already; a payload's next version replaces it"
            )
        added = TopicType(topic, model, description, dict(example), version)
        _require_fit(added, example)
        self._topics[topic] = added
        return added

    def include(self, other: TopicCatalogue) -> None:
        """Register all topics of another catalogue.

        Raises:
            InvalidTopic: one is registered already, as something else.
        """
        for topic in other:
            if self._topics.setdefault(topic.topic, topic) != topic:
                raise InvalidTopic(f"the topic {topic.topic!r} is registered twice; rename one of them")

    def __iter__(self) -> Iterator[TopicType]:
        return iter(sorted(self._topics.values(), key=lambda topic: topic.topic))

    def __len__(self) -> int:
        return len(self._topics)

    def __contains__(self, topic: object) -> bool:
        return topic in self._topics

    def require(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Let only a known topic pass, and only a payload that fits its model.

        Raises:
            InvalidTopic: it is not registered; the message names the nearest one that is.
            InvalidPayload: the payload does not fit; the message names each fault.
        """
        found = self._topics.get(topic)
        if found is None:
            nearest = difflib.get_close_matches(topic, self._topics, n=1, cutoff=0)
            hint = f"; the nearest one is {nearest[0]!r}" if nearest else ""
            raise InvalidTopic(f"the topic {topic!r:.80} is not in the catalogue: register it{hint}")
        _require_fit(found, payload)

    def json_schema(self, topic: str, *, at: str = "#") -> dict[str, Any]:
        """Return the JSON Schema (2020-12) of the topic's whole body, the envelope and its data.

        ``at`` is the JSON pointer to the schema in the document that will hold it, for its references.

        Raises:
            InvalidTopic: it is not registered.
        """
        found = self._topics.get(topic)
        if found is None:
            raise InvalidTopic(f"the topic {topic!r:.80} is not in the catalogue")
        data = found.model.model_json_schema(mode="serialization", ref_template=f"{at}/$defs/{{model}}")
        definitions = data.pop("$defs", None)
        schema: dict[str, Any] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": found.topic,
            "description": found.description,
            "type": "object",
            "properties": {
                "type": {"const": found.topic},
                "timestamp": {"type": "string", "format": "date-time"},
                "data": data,
            },
            "required": ["type", "timestamp", "data"],
            "examples": [_envelope(found)],
            "x-version": found.version,
        }
        return {**schema, "$defs": definitions} if definitions else schema

    def openapi_webhooks(self) -> dict[str, Any]:
        """Return the ``webhooks`` section of an OpenAPI 3.1 document."""
        return {topic.topic: {"post": self._operation(topic)} for topic in self}

    def _operation(self, topic: TopicType) -> dict[str, Any]:
        schema = self.json_schema(topic.topic, at=_SCHEMA_POINTER.format(topic.topic))
        headers = [
            ("webhook-id", "The same at every attempt; process each id once."),
            ("webhook-timestamp", "Unix seconds of this attempt."),
            ("webhook-signature", "Signatures by Standard Webhooks, one for each valid secret."),
        ]
        return {
            "operationId": topic.topic,
            "summary": topic.description,
            "parameters": [
                {
                    "name": name,
                    "in": "header",
                    "required": True,
                    "description": text,
                    "schema": {"type": "string"},
                }
                for name, text in headers
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            },
            "responses": {"2XX": {"description": "Received; any other answer is tried again later."}},
        }


def _envelope(topic: TopicType) -> dict[str, Any]:
    data = plain_json(dict(topic.example), floats_allowed=False)
    return {"type": topic.topic, "timestamp": _EXAMPLE_INSTANT, "data": data}


def _require_fit(topic: TopicType, payload: Mapping[str, Any]) -> None:
    try:
        model = topic.model.model_validate(payload)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'payload'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise InvalidPayload(f"not a payload of {topic.topic}: {faults}") from None
    promised = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    sent = plain_json(dict(payload), floats_allowed=False)
    if (path := _converted(sent, promised, "")) is not None:
        raise InvalidPayload(
            f"not a payload of {topic.topic}: {path or 'payload'}: it only fits after a conversion, and is "
            "sent as it is; pass what the model serializes to"
        )


def _converted(sent: Any, promised: Any, path: str) -> str | None:
    """Return the path of the first value that is sent as another JSON type than the schema promises."""
    if isinstance(sent, dict) and isinstance(promised, dict):
        pairs = [(f"{path}.{key}".lstrip("."), sent[key], promised[key]) for key in promised if key in sent]
    elif isinstance(sent, list) and isinstance(promised, list):
        pairs = [
            (f"{path}[{n}]", one, other) for n, (one, other) in enumerate(zip(sent, promised, strict=False))
        ]
    else:
        return None if type(sent) is type(promised) else path
    for pair in pairs:
        if (found := _converted(pair[1], pair[2], pair[0])) is not None:
            return found
    return None
