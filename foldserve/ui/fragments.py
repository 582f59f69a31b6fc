"""Writes the parts of the page that are plain HTML. All text from outside is escaped."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

from foldserve.text import legible
from foldserve.ui.heat_map import name_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foldserve.ui.answers import Answer
    from foldserve.ui.corrections import Kept
    from foldserve.ui.examples import Example
    from foldserve.ui.page import Explanation
    from foldserve.ui.server_connection import ServerStatus

HINT = '<p class="fs-hint">Choose, paste, photograph or draw a picture, or take an example.</p>'


def text(given: str) -> str:
    """Return ``given`` as HTML text: escaped, without characters that would change its appearance."""
    return html.escape(legible(given))


def banner(status: ServerStatus, server: str) -> str:
    """Return the line that says whether the server answers."""
    if not status.is_reached:
        return (
            '<div class="fs-banner fs-gone"><strong>The server is gone.</strong> '
            f"Reason: {text(_sentence(status.trouble))} This page tries again every two seconds.</div>"
        )
    if status.trouble:
        return (
            '<div class="fs-banner fs-gone"><strong>Nothing to serve.</strong> '
            f"{text(_sentence(status.trouble))}</div>"
        )
    return f'<div class="fs-banner">Connected to <code>{text(server)}</code>.</div>'


def alert(message: str) -> str:
    """Return an error message."""
    return f'<div class="fs-alert" role="alert">{text(_sentence(message))}</div>'


def answer(given: Answer, seen: bytes | None) -> str:
    """Return the labels as bars, and what computed them; ``seen`` is a PNG file of what the network saw."""
    bars = "".join(_bar(label.name, label.probability) for label in given.labels)
    model = given.description
    metadata = model.metadata
    kind = (
        f"calibrated, temperature {metadata.temperature:.4g}"
        if metadata.temperature != 1.0
        else "not calibrated: the model has no temperature"
    )
    facts = {
        "Model": f"{text(model.name)}, version {text(model.version)}",
        "SHA-256": f'<code class="fs-hash">{text(model.sha256)}</code>',
        "Answered in": (
            f"{given.round_trip_ms:.1f} ms: {given.queue_ms:.2f} ms in the queue, {given.compute_ms:.2f} ms "
            "in the model, the rest on the way and for preparing the picture"
        ),
        "Computed by": text(model.provider),
        "Probabilities": kind,
    }
    return (
        f'<div class="fs-answer"><div class="fs-head">{_thumbnail(seen)}'
        f'<p class="fs-top">{text(given.top.name)} '
        f"<strong>{given.top.probability:.1%}</strong></p></div>"
        f'<ol class="fs-bars">{bars}</ol><dl class="fs-facts">'
        + "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items())
        + "</dl></div>"
    )


def _thumbnail(png: bytes | None) -> str:
    return f'<img alt="The picture as the network sees it" src="{data_address(png)}">' if png else ""


def _bar(name: str, probability: float) -> str:
    return (
        f'<li><span class="fs-name">{text(name)}</span><span class="fs-value">{probability:.1%}</span>'
        '<span class="fs-track" aria-hidden="true">'
        f'<span style="inline-size:{probability:.2%}"></span></span></li>'
    )


def explanation(given: Explanation) -> str:
    """Return the heat map with its meaning in words."""
    found = given.occlusion
    label = text(given.label)
    place = name_place(found.strongest, len(found.drops))
    if found.stands_out:
        meaning = (
            f"<strong>{label}</strong> depends most on the <strong>{place}</strong>: with that part hidden "
            f"its probability falls from {found.probability:.1%} to {found.least_probability:.1%}."
        )
        shows = f"The picture in grey as the network sees it, orange where it matters; most in the {place}"
    else:
        meaning = f"Hiding no single part makes <strong>{label}</strong> noticeably less likely."
        shows = "The picture in grey as the network sees it; no part stands out"
    return (
        f'<figure class="fs-why"><img alt="{html.escape(shows)}" src="{data_address(given.png)}">'
        f"<figcaption>{meaning} Found by hiding {found.image_count - 1:,} parts in turn: "
        f"{found.request_count} requests, {found.duration_s:.2f} s.</figcaption></figure>"
    )


def examples(given: Sequence[tuple[Example, str]]) -> str:
    """Return the examples as buttons, numbered for the event that they cause."""
    if not given:
        return ""
    buttons = "".join(
        f'<li><button type="button" data-example="{number}"><img alt="" src="{data_address(example.png)}">'
        f"<span>{text(label)}</span></button></li>"
        for number, (example, label) in enumerate(given)
    )
    return (
        '<h2>Examples</h2><p class="fs-hint">Golden images, with which the server verified this version.</p>'
        f'<ul class="fs-examples">{buttons}</ul>'
    )


def kept(given: Kept) -> str:
    """Return where a picture was kept."""
    again = f", moved from {text(given.moved_from)}" if given.moved_from else ""
    number = "1 picture" if given.count == 1 else f"{given.count:,} pictures"
    return (
        f'<p class="fs-kept" role="status">Kept as <code>{text(str(given.path))}</code>{again}. '
        f"{number} kept in all.</p>"
    )


def data_address(png: bytes) -> str:
    """Return a PNG file as a data: address, which is loaded from nowhere."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _sentence(message: str) -> str:
    """Return ``message`` with a full stop; its words stay as the server chose them."""
    return message if message.endswith((".", "!", "?")) else f"{message}."
