"""The FastAPI parts: routers, dependencies and middleware."""
