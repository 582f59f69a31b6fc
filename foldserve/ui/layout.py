"""Lays the page out in Gradio."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from foldserve.ui import fragments
from foldserve.ui.handlers import BY_DEFAULT, Handlers

if TYPE_CHECKING:
    from foldserve.ui.page import Page

ASSETS = Path(__file__).parent / "assets"
_POLL_S = 2.0
# Answered by the request itself. Gradio's queue answers over a stream that the browser closes when idle,
# and an event of that very moment is never answered: of quick strokes the last one was lost.
_DIRECT = {"queue": False, "api_visibility": "private"}
_QUIET = {"show_progress": "hidden", **_DIRECT}
# Of strokes or choices that follow each other fast, the last one is answered too.
_LAST = {"trigger_mode": "always_last"}


def lay_out(page: Page, uploads: Path) -> gr.Blocks:
    """Return the page as Gradio's blocks; ``uploads`` is where Gradio puts uploaded files."""
    handlers = Handlers(page)
    with gr.Blocks(title="foldserve", analytics_enabled=False, fill_width=False) as blocks:
        seen, shown = gr.State(), gr.State()
        gr.HTML("<h1>foldserve</h1>", elem_id="fs-title")
        banner = gr.HTML('<div class="fs-banner">Connecting …</div>', elem_id="fs-banner")
        with gr.Row():
            model = gr.Dropdown([], label="Model", elem_id="fs-model", allow_custom_value=True)
            version = gr.Dropdown(
                [BY_DEFAULT], value="", label="Version", elem_id="fs-version", allow_custom_value=True
            )
        with gr.Row():
            with gr.Column():
                with gr.Tabs():
                    with gr.Tab("Picture"):
                        picture = gr.Image(
                            type="filepath",
                            sources=["upload", "webcam", "clipboard"],
                            label="Picture",
                            buttons=[],
                            height=300,
                            elem_id="fs-picture",
                            webcam_options=gr.WebcamOptions(mirror=False),
                        )
                        # The file as it came: only the server decodes and judges it. (Gradio would write a
                        # stub file beside this one for a class of our own.)
                        picture.preprocess = partial(_path_of, uploads)
                    with gr.Tab("Draw"):
                        drawing = gr.HTML(
                            html_template=_asset("drawing.html"),
                            js_on_load=_asset("drawing.js"),
                            elem_id="fs-drawing",
                        )
                examples = gr.HTML(js_on_load=_asset("examples.js"), elem_id="fs-examples")
            with gr.Column():
                answer = gr.HTML(fragments.HINT, elem_id="fs-answer")
                why = gr.Button("Why this label?", elem_id="fs-why-button")
                reason = gr.HTML(elem_id="fs-reason")
                with gr.Group(visible=page.corrections is not None):
                    right = gr.Dropdown(
                        [],
                        value=None,
                        label="Wrong? The right label",
                        allow_custom_value=True,
                        elem_id="fs-right",
                    )
                    keep = gr.Button("Keep picture with this label", elem_id="fs-keep")
                kept = gr.HTML(elem_id="fs-kept")

        chosen = [model, version]
        told = [shown, answer]
        # What was said of an earlier picture is not about this one.
        cleared = {"fn": lambda: ("", ""), "outputs": [reason, kept], **_QUIET}
        refreshed = {
            "fn": handlers.refresh,
            "inputs": [seen, shown, *chosen],
            "outputs": [banner, *chosen, *told, seen],
            **_QUIET,
        }
        offered = {"fn": handlers.offer, "inputs": chosen, "outputs": [examples, right], **_QUIET}
        asked = {"fn": handlers.classify, "inputs": [shown, *chosen], "outputs": told, **_QUIET}
        # The timer starts once the models are shown: a second first answer, on its way while somebody chooses
        # a model, would take the choice back.
        timer = gr.Timer(_POLL_S, active=False)
        timer.tick(**refreshed)
        blocks.load(**refreshed).then(lambda: gr.Timer(active=True), outputs=timer, **_QUIET)
        model.input(handlers.versions, [model, seen], version, **_QUIET, **_LAST).then(**asked).then(
            **cleared
        )
        version.input(**asked, **_LAST).then(**cleared)
        gr.on([model.change, version.change], **offered, **_LAST)
        picture.change(handlers.upload, [picture, *chosen], told, **_QUIET, **_LAST).then(**cleared)
        drawing.change(handlers.draw, [drawing, *chosen], told, **_QUIET, **_LAST).then(**cleared)
        examples.taken(handlers.take_example, chosen, told, **_QUIET, trigger_mode="multiple").then(**cleared)
        why.click(handlers.explain, shown, reason, show_progress="minimal", **_DIRECT)
        keep.click(handlers.keep, [shown, right], kept, **_QUIET)
    return blocks


def _path_of(uploads: Path, uploaded: Any) -> str | None:
    """Return the path of an uploaded file; it came from the browser, so it may name any file."""
    if uploaded is None:
        return None
    path = Path(uploaded.path).resolve()
    if not path.is_relative_to(uploads.resolve()):
        raise ValueError("the file is none that was uploaded")
    return str(path)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
