"""Calls a server: blocking and asyncio clients."""
