"""The parts of the HTTP transport, without a server."""
