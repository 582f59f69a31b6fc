"""Settings of the commands that call a server or read a repository; docstrings are the flags' help."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotations

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

from foldserve.serving.client.connection_config import DEFAULT_SERVER, ConnectionConfig
from foldserve.serving.security.tokens import Role, check_name  # pydantic reads the annotations


class TokenConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Make a bearer token: print it, once, and write its hash where `serve --tokens` finds it."""

    name: str
    """Who it is for; stands in the server's log when models are loaded or unloaded with it."""
    role: Role = "infer"
    """What it allows: infer everything but loading and unloading models, admin that as well."""
    tokens: Path | None = None
    """The server's file of tokens, to which the hash is added; by default the line is only shown."""

    _name_fits_a_line = field_validator("name")(check_name)


class ClassifyConfig(ConnectionConfig, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Classify images with a running server."""

    images: CliPositionalArg[list[Path]] = Field(min_length=1)
    """Image files (JPEG, PNG, WebP, GIF or BMP), or folders of them."""
    model: str = Field(min_length=1)
    """Name of the model."""
    model_version: str = ""
    """Version of the model; the newest that serves by default."""
    server: str = DEFAULT_SERVER
    """Address of the server, as HOST:PORT."""
    top_k: int = Field(default=3, ge=1)
    """Labels to print for each image."""
    jsonl: bool = False
    """Print a JSON object a line, in UTF-8, instead of a table; without an answer it says why."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds to wait for each answer."""


class ListConfig(ConnectionConfig, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """List the models in a repository, or those of a running server (exit status 1 where it serves none)."""

    repository: Path | None = None
    """Folder of models to read."""
    server: str | None = None
    """Address of a server to ask instead, as HOST:PORT; asks 127.0.0.1:8001 where neither is given."""

    @field_validator("server")
    @classmethod
    def _not_both(cls, server: str | None, info: object) -> str | None:
        given = getattr(info, "data", {})
        if server is not None and given.get("repository") is not None:
            raise ValueError("give --repository or --server, not both")
        return server
