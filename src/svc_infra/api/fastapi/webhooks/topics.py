"""The event catalogue over HTTP: what may be subscribed to, with the JSON Schema of each body."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from svc_infra.api.fastapi.fields import Answer, Text
from svc_infra.api.fastapi.route import ApiRoute, refusals
from svc_infra.api.fastapi.webhooks.access import Parts, Reader
from svc_infra.exceptions import NotFound
from svc_infra.webhooks.catalogue import TopicCatalogue, TopicType

router = APIRouter(route_class=ApiRoute, tags=["webhook topics"])


class Topic(Answer):
    """A topic; ``json_schema`` (2020-12) is that of the whole body, the envelope and its data."""

    topic: str
    version: int
    description: str
    example: dict[str, Any]
    json_schema: dict[str, Any]


class TopicList(Answer):
    """All topics by name."""

    items: list[Topic]


@router.get("/topics", operation_id="webhooks_list_topics")
async def list_all(_: Reader, parts: Parts) -> TopicList:
    """List the topics that can be subscribed to."""
    return TopicList(items=[_shown(topic, parts.topics) for topic in parts.topics])


@router.get(
    "/topics/{topic}", operation_id="webhooks_get_topic", responses=refusals(_404="There is no such topic.")
)
async def get(
    topic: Annotated[Annotated[Text, Field(min_length=1, max_length=200)], Path(examples=["webhooks.test"])],
    _: Reader,
    parts: Parts,
) -> Topic:
    """Return one topic."""
    for known in parts.topics:
        if known.topic == topic:
            return _shown(known, parts.topics)
    raise NotFound("there is no such topic")


def _shown(topic: TopicType, topics: TopicCatalogue) -> Topic:
    return Topic(
        topic=topic.topic,
        version=topic.version,
        description=topic.description,
        example=dict(topic.example),
        json_schema=topics.json_schema(topic.topic),
    )
