"""Runs ASGI applications over HTTP, by uvicorn on threads of their own, with bounded connections."""
