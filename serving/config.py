"""Settings of `foldserve serve`; the attributes' docstrings are the flags' help."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from foldserve.imaging import MAX_PIXELS
from foldserve.runtime.model_settings import ModelSettings, SharedSettings
from foldserve.runtime.options import Device  # noqa: TC001  # pydantic reads the annotations


class ListenConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What is served, where, and over which transport."""

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
    load_timeout_s: float = Field(default=300.0, ge=1, le=86_400)
    """Seconds that reading a version, and proving it, may take each; a step of it (an endless loop is one)
    may take a fifth, or 60. What takes longer is stopped and refused."""
    load_model: list[str] = Field(default_factory=list)
    """With --control explicit, a model to load at start-up; may be given several times."""
    device: Device = "auto"
    """What runs the models: auto takes CUDA where it works, cuda takes it or fails, cpu never looks."""
    transport: Literal["auto", "grpcio", "native"] = "auto"
    """What meets the wire: native (pygrpc-native, several times faster), grpcio, or auto for native where it
    is installed and callers are trusted: on a loopback address, or with --trust-callers."""
    trust_callers: bool = False
    """Let auto take native on an address that others reach. Any of them can then end the server with a few
    bytes: say so only where you trust everybody who reaches the port."""


class ServeConfig(SharedSettings, ListenConfig, frozen=True):
    """Serve every version in a model repository over gRPC."""

    max_model_memory_mib: int | None = Field(default=None, ge=64)
    """Most MiB that all models together may take on the CPU; a model or request that would need more is
    refused. By default four fifths of what this process may use."""
    max_message_mib: int | None = Field(default=None, ge=1, le=2047)
    """Largest request in MiB; more is refused with RESOURCE_EXHAUSTED. By default a full batch of whatever
    model serves, but from 32 (for encoded images) to 128."""
    max_image_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MAX_PIXELS)
    """Most pixels, width times height, of an encoded image; larger ones are refused before they are
    decoded."""
    max_metadata_kib: int = Field(default=16, ge=1, le=1024)
    """Most KiB of metadata (headers) that a call may carry."""
    max_concurrent_streams: int = Field(default=1024, ge=1, le=2**31 - 1)
    """Most calls that one connection may have open; its client waits with further ones."""
    max_connections: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Most connections at a time; further ones are closed at once. By default, and at most, what the limit on
    file descriptors leaves room for; given, it needs grpcio."""
    max_connection_age_s: float | None = Field(default=None, gt=0, le=1e6)
    """Seconds, give or take a tenth, after which a connection is closed in favour of a new one, so that load
    spreads over replicas; its calls may take --grace-period-s to end. No limit by default. Needs grpcio."""
    max_connection_idle_s: float | None = Field(default=None, gt=0, le=1e6)
    """Seconds without a call after which a connection is closed. No limit by default. Needs grpcio."""
    tls_cert: Path | None = None
    """PEM file of the server's certificate, with its chain: serves TLS. Read again when it changes. Needs
    grpcio."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    tls_client_ca: Path | None = None
    """PEM file of the authorities whose client certificates are let in; all others are not (mutual TLS)."""
    tokens: Path | None = None
    """File of hashed bearer tokens, as `foldserve token` makes them: every call but health checks must
    carry one. Read again when it changes."""
    allow_plaintext_tokens: bool = False
    """Take tokens without TLS on an address that others reach, as behind a proxy that ends TLS."""
    reflection: bool = True
    """Let callers ask which services and messages there are (server reflection)."""
    model_control: bool | None = None
    """Let callers load and unload models (RepositoryModelLoad, RepositoryModelUnload); by default with an
    admin token where --tokens is given, else only where the server listens on a loopback address, which none
    but this machine reaches."""
    metrics: bool = True
    """Serve /metrics for Prometheus, /healthz and /readyz for probes, over HTTP on the same address."""
    metrics_port: int = Field(default=8002, ge=0, le=65535)
    """Port for them; 0 lets the operating system choose (see --metrics-port-file)."""
    metrics_port_file: Path | None = None
    """File to write that port to once it is listened on."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """Seconds that everything is still answered after SIGTERM, while health and readiness already say no, so
    that load balancers notice."""
    grace_period_s: float = Field(default=30.0, ge=0)
    """Seconds that accepted requests have to finish after SIGTERM and --drain-delay-s."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged, to standard error; debug logs each request."""
    log_format: Literal["human", "json"] = "human"
    """What is written: lines to read, or a JSON object a line."""

    @model_validator(mode="after")
    def _loads_by_name_only_where_explicit(self) -> Self:
        if self.load_model and self.control != "explicit":
            raise ValueError("--load-model goes with --control explicit; without it all models are loaded")
        return self

    @property
    def model_defaults(self) -> ModelSettings:
        """The settings of a model that has no model.toml."""
        shared = self.model_dump(include={"device", *SharedSettings.model_fields})
        return ModelSettings.model_validate(shared)

    @property
    def allows_model_control(self) -> bool:
        """Whether callers may load and unload models: as told, else only where no stranger can."""
        if self.model_control is None:
            return self.tokens is not None or _is_loopback(self.host)
        return self.model_control

    @property
    def grpcio_flags(self) -> list[str]:
        """The flags given that only the grpcio transport can honour."""
        only_grpcio = {
            "--tls-cert": self.tls_cert,
            "--max-connections": self.max_connections,
            "--max-connection-age-s": self.max_connection_age_s,
            "--max-connection-idle-s": self.max_connection_idle_s,
        }
        return [flag for flag, value in only_grpcio.items() if value is not None]

    @property
    def trusts_callers(self) -> bool:
        """Whether nobody reaches the port who would end the server on purpose: as told, or on loopback."""
        return self.trust_callers or _is_loopback(self.host)

    @property
    def why_not_native(self) -> str | None:
        """Why auto takes grpcio even where native is installed, if it does, and how to have native."""
        if self.grpcio_flags:
            return f"native, which is several times faster, cannot do {' and '.join(self.grpcio_flags)}"
        if not self.trusts_callers:
            return (
                "native would take a quarter of the processor time for a request, but whoever reaches "
                f"{self.host} could end it with a few bytes; if you trust them all, give --trust-callers"
            )
        return None

    @property
    def is_open_to_strangers(self) -> bool:
        """Whether others than this machine reach the server, and need neither certificate nor token."""
        return not _is_loopback(self.host) and self.tokens is None and self.tls_client_ca is None

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("cert", "key") if self.tls_cert is not None else ("key", "cert")
            raise ValueError(f"--tls-{given} needs --tls-{missing} beside it: TLS takes both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs TLS: give --tls-cert and --tls-key as well")
        return self

    @model_validator(mode="after")
    def _native_can_do_it(self) -> Self:
        if self.transport == "native" and self.grpcio_flags:
            raise ValueError(
                f"--transport native cannot do {' and '.join(self.grpcio_flags)}; use --transport grpcio "
                "or auto"
            )
        return self

    @model_validator(mode="after")
    def _tokens_stay_secret(self) -> Self:
        if self.tokens is None or self.tls_cert is not None or _is_loopback(self.host):
            return self
        if not self.allow_plaintext_tokens:
            raise ValueError(
                f"--tokens on {self.host} without TLS would send tokens in the clear: give --tls-cert and "
                "--tls-key, or --allow-plaintext-tokens where a proxy in front ends TLS"
            )
        return self


def _is_loopback(host: str) -> bool:
    """Tell whether ``host`` is this machine's own address; a name other than localhost may be anything."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
