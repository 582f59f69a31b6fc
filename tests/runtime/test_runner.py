"""Tests running batches: padding, measured batch invariance, and errors for NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from foldserve.artifact.format import Golden, TensorSpec
from foldserve.artifact.golden import Replay, replay
from foldserve.artifact.model_outputs import softmax
from foldserve.errors import ArtifactError, ModelOutputError
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.runner import ModelRunner
from foldserve.runtime.verified_model import open_verified
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foldserve.runtime.session import Session


class FakeSession:
    """Computes logits from each image; ``disturb`` changes those of a whole execution."""

    provider = "FakeProvider"
    outputs = (TensorSpec("logits", "FP32", (-1, 3)), TensorSpec("probabilities", "FP32", (-1, 3)))

    def __init__(self, disturb: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self._disturb = disturb
        self.sizes: list[int] = []

    def run(self, _: Sequence[str], feeds: Mapping[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        images = feeds["image"]
        self.sizes.append(len(images))
        logits = self._disturb(images.reshape(len(images), -1)[:, :3].astype(np.float32))
        return [logits, softmax(logits).astype(np.float32)]


def runner(
    disturb: Callable[[NDArray[np.float32]], NDArray[np.float32]], padded_size: int = 0
) -> ModelRunner:
    return ModelRunner(cast("Session", FakeSession(disturb)), padded_size)


IMAGES = TinyNetwork().random_images(8)


def test_padding_makes_a_model_that_depends_on_the_size_invariant() -> None:
    def disturb(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits + np.float32(1e-4 / len(logits))

    padded = runner(disturb, padded_size=8)
    logits = padded.run_unchecked(IMAGES)[0]
    golden = Golden(IMAGES, logits, logits, 1e-3, 1e-3, synthetic=True)
    for tried, is_invariant in ((runner(disturb), False), (padded, True)):
        replayed = replay(tried.run_unchecked, golden, batch_size=8, where="here")
        assert replayed.batch_invariant == is_invariant


def test_padding_runs_one_size_and_returns_the_requested_rows() -> None:
    session = FakeSession(lambda logits: logits)
    padded = ModelRunner(cast("Session", session), padded_size=8)
    for count in (1, 3, 8):
        logits, _ = padded(IMAGES[:count])
        assert (logits == IMAGES[:count].reshape(count, -1)[:, :3]).all()
    assert session.sizes == [8, 8, 8]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    def disturb(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits[1, 2] = value
        return logits

    with pytest.raises(ModelOutputError, match="NaN or infinite for 1 of 3 images"):
        runner(disturb)(IMAGES[:3])


class EndsWrongly(FakeSession):
    """Gives the outputs of its base class, with probabilities changed by ``change``."""

    def __init__(self, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        super().__init__(lambda logits: logits)
        self._change = change

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        logits, probabilities = super().run(names, feeds)
        return [logits, self._change(probabilities)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_probabilities_that_are_not_finite_are_an_error(value: float) -> None:
    def change(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        probabilities[1, 2] = value
        return probabilities

    with pytest.raises(ModelOutputError, match="NaN or infinite for 1 of 3 images"):
        ModelRunner(cast("Session", EndsWrongly(change)))(IMAGES[:3])


@pytest.mark.parametrize(
    "change", [lambda rows: rows[:-1], lambda rows: rows[:, :2], lambda rows: rows.astype(np.float16)]
)
def test_probabilities_of_another_shape_or_type_are_an_error(
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    """A response declares its number of values before it sends them."""
    with pytest.raises(ModelOutputError, match=r"probabilities are .* expected float32 \[3, 3\]"):
        ModelRunner(cast("Session", EndsWrongly(change)))(IMAGES[:3])


def test_model_that_varies_with_its_batch_despite_padding_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = TinyNetwork().publish(tmp_path / "tiny")
    settings = ModelSettings(device="cpu", intra_op_threads=1, batch_invariant=True)
    assert open_verified(version, settings).batch_invariant
    monkeypatch.setattr(
        "foldserve.runtime.verified_model.replay", lambda *_, **__: Replay(0.0, batch_invariant=False)
    )
    with pytest.raises(ArtifactError, match="serve it without --batch-invariant"):
        open_verified(version, settings)


@pytest.mark.parametrize(
    ("batch_s", "is_quick", "threads"),
    [pytest.param(1e-5, True, 1, id="quick"), pytest.param(1.0, False, 4, id="slow")],
)
def test_quick_model_uses_one_thread_and_slow_model_all(
    *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_s: float, is_quick: bool, threads: int
) -> None:
    monkeypatch.setattr(ModelRunner, "seconds_per_batch", lambda *_: batch_s)
    monkeypatch.setattr("foldserve.runtime.model_settings.usable_cpus", lambda: 4)
    verified = open_verified(TinyNetwork().publish(tmp_path / "tiny"), ModelSettings(device="cpu"))
    assert (verified.is_quick, verified.threads) == (is_quick, threads)


def test_configured_threads_are_used(tmp_path: Path) -> None:
    settings = ModelSettings(device="cpu", intra_op_threads=2)
    assert open_verified(TinyNetwork().publish(tmp_path / "tiny"), settings).threads == 2
