"""Defines the settings of `foldserve serve`; the attributes' docstrings are the flags' help."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from foldserve.imaging import MAX_PIXELS
from foldserve.runtime.model_settings import ModelSettings, SharedSettings
from foldserve.runtime.options import Device  # noqa: TC001  # pydantic reads the annotations
from foldserve.serving.addresses import is_loopback


class ListenConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Repository, address, device and transport of a server."""

    repository: Path = Path("models")
    """Folder of models, laid out as REPOSITORY/NAME/VERSION/."""
    model_name: str | None = None
    """Serve the files in the repository's folder itself (model.onnx, golden.npz, manifest.json) as version 1
    of a model of this name, the only one: so KServe lays them."""
    host: str = "127.0.0.1"
    """Address to listen on. The default can be reached from this machine only, 0.0.0.0 from anywhere."""
    port: int = Field(default=8001, ge=0, le=65535)
    """Port to listen on; 0 lets the operating system choose (see --port-file)."""
    reuse_port: bool = False
    """Share the port with other servers of this machine and user that are given this flag, too: the kernel
    spreads connections over them. Listens only once it has loaded. Each needs a --metrics-port of its own."""
    port_file: Path | None = None
    """File to which the port is written once the server listens."""
    control: Literal["poll", "explicit"] = "poll"
    """When models are loaded: poll follows changes in the repository; explicit loads and unloads models only
    on request (RepositoryModelLoad, RepositoryModelUnload, --load-model)."""
    poll_s: float = Field(default=1.0, ge=0.1, le=3600)
    """Seconds between polls of the repository."""
    load_timeout_s: float = Field(default=300.0, ge=1, le=86_400)
    """Longest time to read a version, and again to verify it, in seconds. A single step may take a fifth of
    it, or 60 seconds if that is more. A version that takes longer is stopped and refused."""
    load_model: list[str] = []
    """With --control explicit: a model to load at start-up. May be given several times."""
    device: Device = "auto"
    """Device that runs the models: cuda, cpu, or auto for CUDA if it works and otherwise the CPU."""
    transport: Literal["auto", "grpcio", "native"] = "auto"
    """gRPC implementation: native (pygrpc-native, several times faster), grpcio, or auto for native if it is
    installed and callers are trusted (on a loopback address, or with --trust-callers)."""
    trust_callers: bool = False
    """Let auto use native on an address that other machines can reach. Anyone who reaches the port can then
    crash the server with a few bytes: use it only if you trust them all."""


class ServeConfig(SharedSettings, ListenConfig, frozen=True):
    """Serve every version in a model repository over gRPC and, with --http, over HTTP."""

    max_model_memory_mib: int | None = Field(default=None, ge=64)
    """Most memory for all models together on the CPU, in MiB. A model or request that would need more is
    refused. By default four fifths of the memory that this process may use."""
    max_message_mib: int | None = Field(default=None, ge=1, le=2047)
    """Largest request in MiB; larger ones are refused with RESOURCE_EXHAUSTED. By default a full batch of the
    model with the largest images, but at least 32 (for encoded images) and at most 128."""
    max_image_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MAX_PIXELS)
    """Most pixels (width times height) of an encoded image. Larger ones are refused before they are
    decoded."""
    max_metadata_kib: int = Field(default=16, ge=1, le=1024)
    """Most KiB of metadata (headers) per call."""
    max_concurrent_streams: int = Field(default=1024, ge=1, le=2**31 - 1)
    """Most open calls per connection; the client holds further ones back."""
    max_connections: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Most connections at the same time; further ones are closed at once. By default, and at most, as many as
    the limit on file descriptors allows. If given, needs grpcio."""
    max_connection_age_s: float | None = Field(default=None, gt=0, le=1e6)
    """Seconds (plus or minus a tenth) after which a connection is closed, so that clients reconnect and load
    spreads over replicas; open calls have --grace-period-s to finish. No limit by default. Needs grpcio."""
    max_connection_idle_s: float | None = Field(default=None, gt=0, le=1e6)
    """Seconds without a call after which a connection is closed. No limit by default. Needs grpcio."""
    tls_cert: Path | None = None
    """PEM file with the server's certificate and its chain: enables TLS. Read again when it changes. Needs
    grpcio."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key."""
    tls_client_ca: Path | None = None
    """PEM file with the certificate authorities of clients (mutual TLS). Clients without a certificate from
    one of them are refused."""
    tokens: Path | None = None
    """File of hashed bearer tokens, made with `foldserve token`. Every call except health checks must then
    carry one. Read again when it changes."""
    allow_plaintext_tokens: bool = False
    """Accept tokens without TLS on an address that other machines can reach, for use behind a proxy that ends
    TLS."""
    reflection: bool = True
    """Let callers list services and messages (gRPC server reflection)."""
    model_control: bool | None = None
    """Let callers load and unload models (RepositoryModelLoad, RepositoryModelUnload). By default with an
    admin token if --tokens is given, otherwise only if the server listens on a loopback address."""
    metrics: bool = True
    """Serve /metrics for Prometheus, /healthz and /readyz for probes, over HTTP on the same address."""
    metrics_port: int = Field(default=8002, ge=0, le=65535)
    """Port for --metrics; 0 lets the operating system choose (see --metrics-port-file)."""
    metrics_port_file: Path | None = None
    """File to which the metrics port is written once the server listens on it."""
    http: bool = False
    """Serve the Open Inference Protocol's REST API over HTTP, too, and pictures at
    /v2/models/NAME/classify, on the same address."""
    http_port: int = Field(default=8000, ge=0, le=65535)
    """Port for --http; 0 lets the operating system choose (see --http-port-file)."""
    http_port_file: Path | None = None
    """File to which the port of --http is written once the server listens on it."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """Seconds after SIGTERM during which calls are still accepted while health and readiness already fail, so
    that load balancers stop sending new ones."""
    grace_period_s: float = Field(default=30.0, ge=0)
    """Seconds that accepted requests have to finish, after SIGTERM and --drain-delay-s."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged, to standard error. debug logs every request."""
    log_format: Literal["human", "json"] = "human"
    """Format of the log: lines for people, or one JSON object per line."""

    @model_validator(mode="after")
    def _check_load_model(self) -> Self:
        if self.load_model and self.control != "explicit":
            raise ValueError("--load-model needs --control explicit; otherwise all models are loaded")
        return self

    @property
    def model_defaults(self) -> ModelSettings:
        """The settings of a model that has no model.toml."""
        shared = self.model_dump(include={"device", *SharedSettings.model_fields})
        return ModelSettings.model_validate(shared)

    @property
    def allows_model_control(self) -> bool:
        """Whether callers may load and unload models: as set, else with tokens or on loopback only."""
        if self.model_control is None:
            return self.tokens is not None or is_loopback(self.host)
        return self.model_control

    @property
    def grpcio_flags(self) -> list[str]:
        """Flags in use that only the grpcio transport supports."""
        only_grpcio = {
            "--tls-cert": self.tls_cert,
            "--max-connections": self.max_connections,
            "--max-connection-age-s": self.max_connection_age_s,
            "--max-connection-idle-s": self.max_connection_idle_s,
        }
        return [flag for flag, value in only_grpcio.items() if value is not None]

    @property
    def trusts_callers(self) -> bool:
        """Whether everyone who can reach the port is trusted: as set, or on loopback."""
        return self.trust_callers or is_loopback(self.host)

    @property
    def why_not_native(self) -> str | None:
        """Why auto uses grpcio even if native is installed, and how to get native; None if it uses native."""
        if self.grpcio_flags:
            return f"native, which is several times faster, cannot do {' and '.join(self.grpcio_flags)}"
        if not self.trusts_callers:
            return (
                "native would take a quarter of the CPU time per request, but whoever reaches "
                f"{self.host} could end it with a few bytes; if you trust them all, give --trust-callers"
            )
        return None

    @property
    def is_for_this_machine(self) -> bool:
        """Whether only this machine can reach the server, and calls it as it likes."""
        return is_loopback(self.host) and self.tokens is None and self.tls_cert is None

    @property
    def is_open_to_strangers(self) -> bool:
        """Whether other machines can reach the server and need neither certificate nor token."""
        return not is_loopback(self.host) and self.tokens is None and self.tls_client_ca is None

    @field_validator("model_name")
    @classmethod
    def _names_a_folder(cls, name: str | None) -> str | None:
        if name is not None and (not name or "/" in name or name.startswith(".") or not name.isprintable()):
            raise ValueError(
                "a model's name could be a folder's: printable, no '/' in it, no '.' in front, not empty"
            )
        return name

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("cert", "key") if self.tls_cert is not None else ("key", "cert")
            raise ValueError(f"--tls-{given} needs --tls-{missing} as well: TLS needs both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs TLS: give --tls-cert and --tls-key as well")
        return self

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        if self.transport == "native" and self.grpcio_flags:
            raise ValueError(
                f"--transport native cannot do {' and '.join(self.grpcio_flags)}; use --transport grpcio "
                "or auto"
            )
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.tokens is None or self.tls_cert is not None or is_loopback(self.host):
            return self
        if not self.allow_plaintext_tokens:
            raise ValueError(
                f"--tokens on {self.host} without TLS would send tokens in the clear: give --tls-cert and "
                "--tls-key, or --allow-plaintext-tokens if a proxy in front ends TLS"
            )
        return self
