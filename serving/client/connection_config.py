"""Defines the flags with which a command connects to a server."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotations
from typing import Self

from pydantic import BaseModel, PrivateAttr, model_validator

DEFAULT_SERVER = "127.0.0.1:8001"


class ConnectionConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """TLS and token settings of a command that calls a server."""

    tls: bool = False
    """Use TLS and trust the public certificate authorities; --tls-ca trusts those in a file instead."""
    tls_ca: Path | None = None
    """PEM file with the certificate authorities to trust: enables TLS."""
    tls_cert: Path | None = None
    """PEM file with the client's own certificate, for a server that requires one (mutual TLS)."""
    tls_key: Path | None = None
    """PEM file with the private key of the client's certificate."""
    token_file: Path | None = None
    """File with the bearer token for the server. The environment variable FOLDSERVE_TOKEN works as well."""
    _token: str | None = PrivateAttr(default=None)  # never a flag: the process list shows flags

    @property
    def token(self) -> str | None:
        """The token from the environment."""
        return self._token

    def with_token(self, token: str) -> Self:
        """Return a copy with ``token``, which is used if no file is given."""
        copy = self.model_copy()
        copy._token = token
        return copy

    @model_validator(mode="after")
    def _check_certificate(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both")
        return self
