"""Defines the settings of `foldserve ui`; the attributes' docstrings are the flags' help."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotations

from pydantic import Field

from foldserve.serving.client.connection_config import DEFAULT_SERVER, ConnectionConfig


class UiConfig(ConnectionConfig, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Serve a page on which people try the models of a running server."""

    server: str = DEFAULT_SERVER
    """Address of the server, as HOST:PORT."""
    repository: Path | None = None
    """Folder of the models that the server serves: their golden images are offered as examples."""
    keep: Path | None = None
    """Folder for pictures that were labelled wrongly, kept as FOLDER/LABEL/*: `train --dataset` takes it."""
    host: str = "127.0.0.1"
    """Address to listen on. The default can be reached from this machine only, 0.0.0.0 from anywhere: whoever
    reaches the page calls the server with the page's token, and adds to --keep."""
    port: int = Field(default=7860, ge=0, le=65535)
    """Port of the page; 0 lets the operating system choose (see --port-file)."""
    port_file: Path | None = None
    """File to which the port is written once the page is served."""
    top_k: int = Field(default=5, ge=1, le=100)
    """Number of labels to show per picture."""
    max_upload_mib: int = Field(default=16, ge=1, le=1024)
    """Largest picture accepted, in MiB."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds to wait for each answer of the server."""
