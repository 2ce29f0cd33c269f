"""Middleware and error handlers that an application puts around its routes."""
