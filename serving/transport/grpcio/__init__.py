"""Serves over grpcio: every RPC, TLS, limits on connections."""
