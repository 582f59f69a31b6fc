"""Flags with which a command reaches a server."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotations
from typing import Self

from pydantic import BaseModel, PrivateAttr, model_validator

DEFAULT_SERVER = "127.0.0.1:8001"


class ConnectionConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """How a command reaches a server that wants TLS or a token."""

    tls: bool = False
    """Speak TLS, trusting the well-known authorities; --tls-ca trusts those of a file instead."""
    tls_ca: Path | None = None
    """Speak TLS with a server whose certificate is by the authorities in this PEM file."""
    tls_cert: Path | None = None
    """PEM file of the client's own certificate, for a server that wants one."""
    tls_key: Path | None = None
    """PEM file of that certificate's private key."""
    token_file: Path | None = None
    """File with the bearer token for the server; FOLDSERVE_TOKEN in the environment serves as well."""
    _token: str | None = PrivateAttr(default=None)  # never a flag: the process list shows flags

    @property
    def token(self) -> str | None:
        """The token given other than by file."""
        return self._token

    def with_token(self, token: str) -> Self:
        """Return a copy that carries ``token``, for where no file is given."""
        copy = self.model_copy()
        copy._token = token
        return copy

    @model_validator(mode="after")
    def _certificate_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both")
        return self
