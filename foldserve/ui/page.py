"""What the page does, without knowing how it looks: asks the server, explains, keeps corrections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.errors import ArtifactError
from foldserve.imaging import ImageError, prepare_image
from foldserve.serving.errors import UnavailableError
from foldserve.ui.answers import Answer, ask
from foldserve.ui.errors import UiError
from foldserve.ui.examples import Example, read_examples
from foldserve.ui.heat_map import draw_heat, enlarged, to_image, to_png
from foldserve.ui.occlusion import Occlusion, occlude
from foldserve.ui.picture_store import PictureStore

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.serving.client.messages import Description
    from foldserve.ui.corrections import Corrections, Kept
    from foldserve.ui.server_connection import ServerConnection, ServerStatus


@dataclass(frozen=True)
class Shown:
    """A picture that a visitor looks at.

    Attributes:
        picture: its key in the store.
        answer: the answer; None if there is none.
        is_owed: whether there is none because nobody could give it, and it comes once somebody can.
    """

    picture: str
    answer: Answer | None = None
    is_owed: bool = False


@dataclass(frozen=True)
class Explanation:
    """Why a label: the label's name, the measurement, and a PNG file that shows it."""

    label: str
    occlusion: Occlusion
    png: bytes


class Page:
    """Serves all visitors of one page. Methods may be called from any thread."""

    def __init__(
        self,
        server: ServerConnection,
        *,
        top_k: int,
        max_upload_bytes: int,
        repository: Path | None = None,
        corrections: Corrections | None = None,
    ) -> None:
        self.server = server
        self.max_upload_bytes = max_upload_bytes
        self.corrections = corrections
        self._top_k = top_k
        self._repository = repository
        self._pictures = PictureStore()

    def status(self) -> ServerStatus:
        """Return whether the server answers, and with which models."""
        return self.server.status()

    def take(self, picture: bytes) -> Shown:
        """Hold an encoded picture, not yet classified.

        Raises:
            UiError: it is too large.
        """
        if len(picture) > self.max_upload_bytes:
            raise UiError(
                f"the picture has {len(picture):,} bytes; at most {self.max_upload_bytes >> 20} MiB are taken"
            )
        return Shown(self._pictures.add(picture))

    def classify(self, shown: Shown, model: str, version: str) -> Shown:
        """Ask ``model`` for the labels of a picture; version "" is the one that answers by default.

        Raises:
            UiError: no model was chosen, or the picture is no longer held.
            ServingError: for the status that the server returns, in its words.
        """
        if not model:
            raise UiError("no model is chosen: the server has none that is ready")
        picture = self._pictures.get(shown.picture)
        try:
            answer = ask(self.server.client(), model, version, picture, top_k=self._top_k)
        except UnavailableError:
            self.server.forget()
            raise
        return Shown(shown.picture, answer)

    def explain(self, shown: Shown) -> Explanation:
        """Find out which part of the picture the likeliest label depends on.

        Raises:
            UiError: nothing was classified yet, the picture is no longer held or cannot be prepared.
            ServingError: for the status that the server returns, as when the version was unloaded meanwhile.
        """
        if shown.answer is None:
            raise UiError("there is no label to explain yet")
        model = shown.answer.description
        pixels = self._prepare(shown, model)
        client = self.server.client()

        def logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return client.infer(model.name, images, model.version)["logits"]

        top = shown.answer.top
        result = occlude(
            logits, pixels, top.index, fill=model.metadata.mean, temperature=model.metadata.temperature
        )
        return Explanation(top.name, result, draw_heat(pixels, result.heat))

    def seen(self, shown: Shown) -> bytes:
        """Return a PNG file of the picture as the network that answered sees it.

        Raises:
            UiError: nothing was classified yet, the picture is no longer held or cannot be prepared.
        """
        if shown.answer is None:
            raise UiError("no network has seen the picture yet")
        return to_png(enlarged(to_image(self._prepare(shown, shown.answer.description))))

    def _prepare(self, shown: Shown, model: Description) -> NDArray[np.uint8]:
        """Return the picture as uint8 [C, H, W], by the rule that the server prepares it by."""
        try:
            return prepare_image(self._pictures.get(shown.picture), model.metadata.image)
        except ImageError as error:
            raise UiError(str(error)) from error

    def keep(self, shown: Shown, label: str) -> Kept:
        """Keep a picture with its right label.

        Raises:
            UiError: no folder was named, the label cannot name a folder, or the folder is full.
        """
        if self.corrections is None:
            raise UiError("nothing is kept: start the page with --keep FOLDER")
        if shown.answer is None:
            raise UiError("there is no answer to correct yet")
        return self.corrections.keep(self._pictures.get(shown.picture), label)

    def labels(self, model: str, version: str) -> tuple[str, ...]:
        """Return the model's labels.

        Raises:
            ServingError: for the status that the server returns.
        """
        return self.server.client().describe(model, version).metadata.labels

    def examples(self, model: str, version: str) -> tuple[tuple[Example, str], ...]:
        """Return golden images with their labels; none without a repository.

        Raises:
            ServingError: for the status that the server returns.
            ArtifactError: the version in the repository is not what is served, or is damaged.
        """
        if self._repository is None or not model:
            return ()
        described = self.server.client().describe(model, version)
        names = described.metadata.labels
        found = read_examples(self._repository, described)
        if any(example.index >= len(names) for example in found):
            raise ArtifactError("the golden images are of more classes than the model has labels")
        return tuple((example, names[example.index]) for example in found)
