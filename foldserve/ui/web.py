"""Serves the page over HTTP: Gradio inside FastAPI, behind the guard, run by uvicorn."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from foldserve.ui.guard import Guard

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

    from foldserve.ui.guard import App
    from foldserve.ui.page import Page

# A session holds a picture's key and an answer; Gradio keeps 10,000 of them by default.
_MAX_SESSIONS = 1000
_MAX_CONNECTIONS = 512
_GRACE_S = 3


def page_app(page: Page, uploads: Path, *, only_loopback: bool) -> App:
    """Return the page as an ASGI application that puts uploaded files into the folder ``uploads``."""
    _keep_offline(uploads)
    # Imported here: Gradio reads the variables above when it is loaded.
    import gradio as gr  # noqa: PLC0415
    from fastapi import FastAPI  # noqa: PLC0415

    from foldserve.ui.layout import ASSETS, lay_out  # noqa: PLC0415

    # What a browser sends may name an address instead of an uploaded file, which Gradio would load.
    gr.processing_utils.async_ssrf_protected_download = _refuse_address
    blocks = lay_out(page, uploads)
    # Or a file of this machine, which Gradio refuses only after its own `launch`.
    blocks.has_launched = True
    blocks.state_session_capacity = _MAX_SESSIONS
    fonts = ("system-ui", "sans-serif")
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        # Gradio's own themes name fonts to load.
        theme=gr.themes.Base(font=fonts, font_mono=("ui-monospace", "monospace")),
        css_paths=[ASSETS / "page.css"],
        head=f"<script>{(ASSETS / 'page.js').read_text(encoding='utf-8')}</script>",
        max_file_size=page.max_upload_bytes,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    return Guard(
        cast("App", app),
        uploads=uploads,
        max_upload_bytes=page.max_upload_bytes,
        only_loopback=only_loopback,
    )


def run(app: App, sockets: Sequence[socket.socket]) -> None:
    """Serve ``app`` on listening ``sockets`` until SIGINT or SIGTERM."""
    import uvicorn  # noqa: PLC0415

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        # Open pages hold a connection each, which never ends by itself.
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run(sockets=list(sockets))


async def _refuse_address(url: str, cache_dir: str) -> str:  # noqa: ARG001  # Gradio's signature
    raise ValueError("this page loads nothing from elsewhere")


def _keep_offline(uploads: Path) -> None:
    """Set the variables that keep Gradio, and what it loads, from asking other machines for anything."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(uploads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
