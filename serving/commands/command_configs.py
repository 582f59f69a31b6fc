"""Defines the settings of the client-side commands; the attributes' docstrings are the flags' help."""

from __future__ import annotations

from pathlib import Path  # pydantic reads the annotations

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

from foldserve.artifact.promotion import MAX_VERSION
from foldserve.serving.client.connection_config import DEFAULT_SERVER, ConnectionConfig
from foldserve.serving.security.tokens import Role, check_name  # pydantic reads the annotations


class TokenConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Make a bearer token: print it once, and add its hash to the file that `serve --tokens` reads."""

    name: str
    """Who the token is for. The server logs this name when the token is used to load or unload models."""
    role: Role = "infer"
    """Permissions: infer allows everything except loading and unloading models, admin allows that too."""
    tokens: Path | None = None
    """The server's file of tokens, to which the hash is added. By default the line is only printed."""

    _check_name = field_validator("name")(check_name)


class ClassifyConfig(ConnectionConfig, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Classify images with a running server."""

    images: CliPositionalArg[list[Path]] = Field(min_length=1)
    """Image files (JPEG, PNG, WebP, GIF or BMP), or folders of them."""
    model: str = Field(min_length=1)
    """Name of the model."""
    model_version: str = ""
    """Version of the model. By default the promoted one, or the newest that is ready."""
    server: str = DEFAULT_SERVER
    """Address of the server, as HOST:PORT."""
    top_k: int = Field(default=3, ge=1)
    """Number of labels to print per image."""
    min_confidence: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Probability below which the answer is `unknown`."""
    jsonl: bool = False
    """Print one JSON object per line, in UTF-8, instead of a table. Failed images have an error in it."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds to wait for each answer."""


class ListConfig(ConnectionConfig, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """List the models in a repository, or on a running server (exit status 1 if none of them is ready)."""

    repository: Path | None = None
    """Folder of models to read."""
    server: str | None = None
    """Address of a server to ask instead, as HOST:PORT. By default, without --repository, 127.0.0.1:8001."""

    @field_validator("server")
    @classmethod
    def _check_source(cls, server: str | None, info: object) -> str | None:
        given = getattr(info, "data", {})
        if server is not None and given.get("repository") is not None:
            raise ValueError("give --repository or --server, not both")
        return server


class _VersionConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """The settings of the commands that change one model of a repository."""

    name: CliPositionalArg[str] = Field(min_length=1)
    """Name of the model."""


class PromoteConfig(_VersionConfig, frozen=True):
    """Let a version answer the requests that name none; a running server follows without a failed call."""

    version: CliPositionalArg[int] = Field(ge=1, le=MAX_VERSION)
    """Version to promote."""
    repository: Path = Path("models")
    """Folder of models."""


class RollbackConfig(_VersionConfig, frozen=True):
    """Go back to the version that was promoted before, or to the newest if there was none."""

    repository: Path = Path("models")
    """Folder of models."""


class DeleteConfig(_VersionConfig, frozen=True):
    """Delete a version; the one that answers requests that name none only with --force."""

    version: CliPositionalArg[int] = Field(ge=1)
    """Version to delete."""
    repository: Path = Path("models")
    """Folder of models."""
    force: bool = False
    """Delete the version even if it answers the requests that name none."""
