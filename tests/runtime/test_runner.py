"""Tests running batches: padding, measured batch invariance, and errors for NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.artifact.format import Golden, TensorSpec
from foldserve.artifact.golden import Replay, replay
from foldserve.artifact.model_outputs import softmax
from foldserve.errors import ArtifactError, ModelOutputError
from foldserve.runtime import verified_model
from foldserve.runtime.model_settings import ModelSettings
from foldserve.runtime.options import CudaOptions
from foldserve.runtime.runner import ModelRunner
from foldserve.runtime.session import CUDA_PROVIDER, Session
from foldserve.runtime.verified_model import open_verified
from tests.support.artifacts import TinyNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


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


def runner(disturb: Callable[[NDArray[np.float32]], NDArray[np.float32]], *padded_sizes: int) -> ModelRunner:
    session = cast("Session", FakeSession(disturb))
    return ModelRunner(session, [(size, session) for size in padded_sizes])


IMAGES = TinyNetwork().random_images(8)


def test_padding_makes_a_model_that_depends_on_the_size_invariant() -> None:
    def disturb(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits + np.float32(1e-4 / len(logits))

    padded = runner(disturb, 8)
    logits = padded.run_unchecked(IMAGES)[0]
    golden = Golden(IMAGES, logits, logits, 1e-3, 1e-3, synthetic=True)
    for tried, is_invariant in ((runner(disturb), False), (padded, True)):
        replayed = replay(tried.run_unchecked, golden, batch_size=8, where="here")
        assert replayed.batch_invariant == is_invariant


def test_padding_runs_one_size_and_returns_the_requested_rows() -> None:
    session = FakeSession(lambda logits: logits)
    padded = ModelRunner(cast("Session", session), [(8, cast("Session", session))])
    for count in (1, 3, 8):
        logits, _ = padded(IMAGES[:count])
        assert (logits == IMAGES[:count].reshape(count, -1)[:, :3]).all()
    assert session.sizes == [8, 8, 8]


@given(counts=st.lists(st.integers(1, 8), min_size=1, max_size=20))
def test_each_session_sees_batches_of_one_size(counts: list[int]) -> None:
    """A GPU plans a session's convolutions anew at every change of the batch size."""
    sessions = {size: FakeSession(lambda logits: logits) for size in (1, 4, 8)}
    padded = ModelRunner(
        cast("Session", sessions[8]), [(size, cast("Session", each)) for size, each in sessions.items()]
    )
    for count in counts:
        logits, _ = padded(IMAGES[:count])
        assert (logits == IMAGES[:count].reshape(count, -1)[:, :3]).all()
    for size, session in sessions.items():
        assert set(session.sizes) <= {size}
    smallest = [min(size for size in sessions if size >= count) for count in counts]
    assert sorted(size for each in sessions.values() for size in each.sizes) == sorted(smallest)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        pytest.param({"max_batch_size": 32}, {1, 8, 32}, id="three sizes"),
        pytest.param({"max_batch_size": 4}, {1, 4}, id="none above a full batch"),
        pytest.param({"max_batch_size": 32, "batch_invariant": True}, {32}, id="batch invariant"),
        pytest.param(
            {"max_batch_size": 32, "cuda": CudaOptions(gpu_mem_limit_mib=1024)},
            {32},
            id="a limit on memory, which holds per session",
        ),
    ],
)
def test_a_model_on_a_gpu_runs_few_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], sizes: set[int]
) -> None:
    seen: list[tuple[Session, int]] = []

    class OnGpu(Session):
        """Computes on the CPU and says that it is a GPU."""

        def __init__(self, model: bytes, **options: Any) -> None:
            super().__init__(model, **options | {"device": "cpu"})
            self.provider = CUDA_PROVIDER

        def run(self, output_names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> Any:
            seen.append((self, len(feeds["image"])))
            return super().run(output_names, feeds)

    monkeypatch.setattr(verified_model, "Session", OnGpu)
    verified = open_verified(TinyNetwork().publish(tmp_path / "tiny"), ModelSettings(**settings))
    seen.clear()
    for count in (1, 2, 5, 1, 9, 3):
        if count <= max(sizes):
            verified.runner(TinyNetwork().random_images(count))
    assert {size for _, size in seen} <= sizes
    assert len({id(session) for session, _ in seen}) == len({size for _, size in seen})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    def disturb(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits[1, 2] = value
        return logits

    with pytest.raises(ModelOutputError, match="NaN or infinity for 1 of 3 images"):
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

    with pytest.raises(ModelOutputError, match="NaN or infinity for 1 of 3 images"):
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
