"""All routes of billing, as ``add_billing`` mounts them."""

from __future__ import annotations

from fastapi import APIRouter

from svc_infra.api.fastapi.billing.usage import usage_router


def make_router() -> APIRouter:
    """Make the router that ``add_billing`` mounts."""
    router = APIRouter(tags=["billing"])
    router.include_router(usage_router())
    return router
