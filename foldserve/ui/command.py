"""Carries out `foldserve ui`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from foldserve.replacing import write_replacing
from foldserve.serving.addresses import listening_sockets, to_target
from foldserve.serving.client.channel import Connection, connection_options
from foldserve.ui.corrections import Corrections
from foldserve.ui.errors import UiError
from foldserve.ui.page import Page
from foldserve.ui.server_connection import ServerConnection

if TYPE_CHECKING:
    import socket

    from foldserve.ui.config import UiConfig

_LOOPBACK = ("127.", "::1")


def serve_page(config: UiConfig) -> int:
    """Serve the page until it is interrupted; return 0. The server need not run yet.

    Raises:
        UiError: a folder cannot be used, or the port is taken.
        ServingError: the host is none of this machine, or a file of the connection cannot be read.
    """
    if config.repository is not None and not config.repository.is_dir():
        raise UiError(f"--repository {config.repository} is not a folder; expected one of MODEL/VERSION")
    if config.port_file is not None:
        _check_writable(config.port_file)
    options = connection_options(config)
    Connection(**options)  # raises now what a wrong token or certificate raises
    page = Page(
        ServerConnection(config.server, options, timeout_s=config.timeout_s),
        top_k=config.top_k,
        max_upload_bytes=config.max_upload_mib * 1024 * 1024,
        repository=config.repository,
        corrections=None if config.keep is None else Corrections(config.keep),
    )
    sockets = _listen(config)
    port: int = sockets[0].getsockname()[1]
    only_loopback = all(each.getsockname()[0].startswith(_LOOPBACK) for each in sockets)
    with tempfile.TemporaryDirectory(prefix="foldserve-ui-", ignore_cleanup_errors=True) as uploads:
        # Imported here: loading Gradio takes seconds, and a wrong flag shall be told at once.
        from foldserve.ui.web import page_app, run  # noqa: PLC0415

        app = page_app(page, Path(uploads), only_loopback=only_loopback)
        print(f"page on http://{to_target(config.host, port)}, server {config.server}", flush=True)
        if config.port_file is not None:
            write_replacing(config.port_file, f"{port}\n")
        run(app, sockets)
    return 0


def _listen(config: UiConfig) -> list[socket.socket]:
    try:
        return listening_sockets(config.host, config.port)
    except OSError as error:
        raise UiError(
            f"cannot listen on {to_target(config.host, config.port)}: {error.strerror}; choose another --port"
        ) from error


def _check_writable(port_file: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=port_file.parent):  # it has no name and is gone at once
            pass
    except OSError as error:
        raise UiError(f"--port-file {port_file} cannot be written: {error.strerror or error}") from error
