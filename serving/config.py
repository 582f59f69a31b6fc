"""Settings of the serving commands: one frozen model a command, whose docstrings are the flags' help."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg  # noqa: TC002  # pydantic reads the annotations

Device = Literal["auto", "cpu", "cuda"]

DEFAULT_SERVER = "127.0.0.1:8001"


class ServeConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Serve every version in a model repository over gRPC."""

    repository: Path = Path("models")
    """Folder of models, laid out as REPOSITORY/NAME/VERSION/."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only, 0.0.0.0 from anywhere."""
    port: int = Field(default=8001, ge=0, le=65535)
    """Port to listen on; 0 lets the operating system choose (see --port-file)."""
    port_file: Path | None = None
    """File to write the port to once the server listens."""
    control: Literal["poll", "explicit"] = "poll"
    """When models are loaded: poll follows what changes in the repository, explicit loads and unloads what it
    is told to (RepositoryModelLoad, RepositoryModelUnload, --load-model)."""
    poll_s: float = Field(default=1.0, ge=0.1, le=3600)
    """Seconds between two looks at the repository."""
    load_model: list[str] = Field(default_factory=list)
    """With --control explicit, a model to load at start-up; may be given several times."""
    device: Device = "auto"
    """What runs the models: auto takes CUDA where it works, cuda takes it or fails, cpu never looks."""
    transport: Literal["auto", "grpcio", "native"] = "auto"
    """What meets the wire: native (pygrpc-native, several times faster), grpcio, or auto for native where it
    is installed."""
    max_batch_size: int = Field(default=32, ge=1, le=65536)
    """Most images in one execution; larger requests are cut and rejoined."""
    max_queue_delay_ms: float = Field(default=0.0, ge=0, le=10_000)
    """Milliseconds that a request may wait for company, where something else is in flight; a lone one never
    waits."""
    batch_invariant: bool = False
    """Make an image's logits the same bits in any batch, padding every execution to --max-batch-size where
    needed."""
    instances: int = Field(default=1, ge=1, le=256)
    """Executions of one model that may run at the same time."""
    intra_op_threads: int | None = Field(default=None, ge=1)
    """Threads one execution may use. By default measured: one where a full batch takes under 5 ms, else an
    instance's share of the usable processors."""
    max_queue_rows: int = Field(default=8192, ge=1)
    """Most images that may wait for one model; more are refused at once with RESOURCE_EXHAUSTED."""
    max_queue_mib: int = Field(default=256, ge=1)
    """Most MiB of images that may wait for one model, or to be decoded; more are refused at once with
    RESOURCE_EXHAUSTED."""
    max_message_mib: int = Field(default=64, ge=1, le=2047)
    """Largest request in MiB; more is refused with RESOURCE_EXHAUSTED."""
    model_control: bool | None = None
    """Let callers load and unload models (RepositoryModelLoad, RepositoryModelUnload); by default only where
    the server listens on a loopback address, which none but this machine reaches."""
    grace_period_s: float = Field(default=30.0, ge=0)
    """Seconds that accepted requests have to finish after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged, to standard error."""

    @model_validator(mode="after")
    def _loads_by_name_only_where_explicit(self) -> Self:
        if self.load_model and self.control != "explicit":
            raise ValueError("--load-model goes with --control explicit; without it all models are loaded")
        return self

    @property
    def allows_model_control(self) -> bool:
        """Whether callers may load and unload models: as told, else only where no stranger reaches it."""
        return _is_loopback(self.host) if self.model_control is None else self.model_control


class ClassifyConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
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
    """Print a JSON object a line instead, and go on after a file that is no image."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds to wait for each answer."""


class ListConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
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


class VerifyConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Check that every version in a repository still proves itself: hashes, then golden pairs."""

    repository: Path = Path("models")
    """Folder of models to verify."""
    device: Device = "auto"
    """What runs the golden pairs: auto takes CUDA where it works, cuda takes it or fails, cpu never looks."""


def _is_loopback(host: str) -> bool:
    """Tell whether ``host`` is this machine's own address; a name other than localhost may be anything."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
