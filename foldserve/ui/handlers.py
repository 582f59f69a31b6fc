"""Turns the events of the page into calls of `Page`, and their results or errors into HTML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import gradio as gr

from foldserve.errors import FoldserveError
from foldserve.serving.errors import DeadlineExceededError, NotFoundError, UnavailableError
from foldserve.ui import fragments
from foldserve.ui.drawings import read_drawing
from foldserve.ui.page import Page, Shown

# Gradio reads the annotations of the methods that it calls.
from foldserve.ui.server_connection import ServerStatus  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Sequence

Updates: TypeAlias = tuple[Any, ...]

# Errors that say nothing of the picture: the server is gone, or starts and has not found the model yet.
_PASSING = (DeadlineExceededError, NotFoundError, UnavailableError)

# The choice that names no version.
BY_DEFAULT = ("promoted, or else newest", "")


class Handlers:
    """Turns the events of one page into calls, and results or errors into HTML."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def refresh(
        self, seen: ServerStatus | None, shown: Shown | None, model: str | None, version: str
    ) -> Updates:
        """Update what the server's state changes: banner, models, and an answer that is still owed."""
        status = self._page.status()
        # A server that is back is reached before its models are ready, so that being reached is not enough.
        can_answer = shown is not None and shown.is_owed and bool(status.models)
        if status == seen and not can_answer:
            return (gr.skip(),) * 6
        models = list(status.models)
        chosen = model if model in status.models or not models else models[0]
        names = [] if not chosen else status.models.get(chosen, [])
        kept = version if version in ("", *names) else ""
        answers: Updates = (gr.skip(), gr.skip())
        if can_answer:
            answers = self.classify(shown, chosen, kept)
        if not status.is_reached:  # what was chosen stays: it may well be there again
            return (
                fragments.banner(status, self._page.server.server),
                gr.skip(),
                gr.skip(),
                *answers,
                status,
            )
        return (
            fragments.banner(status, self._page.server.server),
            _choices(models, chosen, model),
            _choices([BY_DEFAULT, *names], kept, version),
            *answers,
            status,
        )

    def versions(self, model: str | None, seen: ServerStatus | None) -> Any:
        """Offer the versions of another model."""
        names = seen.models.get(model or "", []) if seen else []
        return gr.update(choices=[BY_DEFAULT, *names], value="")

    def offer(self, model: str | None, version: str) -> Updates:
        """Offer the examples and the labels of another model or version."""
        try:
            labels: Sequence[str] = self._page.labels(model, version) if model else ()
            examples = fragments.examples(self._page.examples(model or "", version))
        except FoldserveError as error:
            return f'<p class="fs-hint">No examples: {fragments.text(str(error))}</p>', gr.skip()
        return examples, gr.update(choices=list(labels))

    def upload(self, path: str | None, model: str | None, version: str) -> Updates:
        """Classify an uploaded, pasted or photographed file."""
        if path is None:
            return None, fragments.HINT
        try:
            with Path(path).open("rb") as file:
                picture = file.read(self._page.max_upload_bytes + 1)
        except OSError as error:
            return None, fragments.alert(f"the picture cannot be read: {error.strerror}; choose it again")
        return self._take(picture, model, version)

    def draw(self, drawing: str | None, model: str | None, version: str) -> Updates:
        """Classify a drawing."""
        try:
            picture = read_drawing(drawing)
        except FoldserveError as error:
            return None, fragments.alert(str(error))
        return self._take(picture, model, version)

    def take_example(self, model: str | None, version: str, event: gr.EventData) -> Updates:
        """Classify one of the examples, by its number."""
        number = event._data.get("number") if isinstance(event._data, dict) else None
        try:
            examples = self._page.examples(model or "", version)
        except FoldserveError as error:
            return None, fragments.alert(str(error))
        if not isinstance(number, int) or not 0 <= number < len(examples):
            return None, fragments.alert("there is no such example; reload the page")
        return self._take(examples[number][0].png, model, version)

    def _take(self, picture: bytes, model: str | None, version: str) -> Updates:
        try:
            shown = self._page.take(picture)
        except FoldserveError as error:
            return None, fragments.alert(str(error))
        return self.classify(shown, model, version)

    def classify(self, shown: Shown | None, model: str | None, version: str) -> Updates:
        """Return what is shown now, and the answer or the error as HTML."""
        if shown is None:
            return None, gr.skip()
        try:
            shown = self._page.classify(shown, model or "", version)
        except FoldserveError as error:
            is_owed = not model or isinstance(error, _PASSING)
            return Shown(shown.picture, is_owed=is_owed), fragments.alert(str(error))
        assert shown.answer is not None
        try:
            seen = self._page.seen(shown)
        except FoldserveError:  # the server could prepare the picture, so the labels stand without a preview
            seen = None
        return shown, fragments.answer(shown.answer, seen)

    def explain(self, shown: Shown | None) -> str:
        """Return the heat map."""
        if shown is None:
            return fragments.alert("there is no picture yet")
        try:
            return fragments.explanation(self._page.explain(shown))
        except FoldserveError as error:
            return fragments.alert(str(error))

    def keep(self, shown: Shown | None, label: str | None) -> str:
        """Keep the picture with its right label."""
        if shown is None:
            return fragments.alert("there is no picture yet")
        try:
            return fragments.kept(self._page.keep(shown, label or ""))
        except FoldserveError as error:
            return fragments.alert(str(error))


def _choices(choices: Sequence[Any], chosen: str | None, before: str | None) -> Any:
    """Offer ``choices``; change what is chosen only if it must be, since a visitor may be choosing now."""
    return gr.update(choices=choices) if chosen == before else gr.update(choices=choices, value=chosen)
