"""Tests golden pairs: reproduced ones pass, and differences are reported with count, size and tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from foldserve.artifact.format import Golden
from foldserve.artifact.golden import Replay, replay
from foldserve.artifact.model_outputs import softmax, softmax_errors
from foldserve.errors import ArtifactError

if TYPE_CHECKING:
    from tests.support.artifacts import TinyNetwork

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Answers = list[NDArray[np.float32]]
Run = Callable[[NDArray[np.uint8]], Answers]


@pytest.fixture
def golden(network: TinyNetwork) -> Golden:
    images = network.random_images(10)
    logits = network.logits(images)
    return Golden(images, logits, logits, 1e-3, 1e-5, synthetic=True)


def with_softmax(infer: Infer) -> Run:
    """Make a model whose probabilities are right for any logits."""

    def run(images: NDArray[np.uint8]) -> Answers:
        logits = infer(images)
        return [logits, softmax(logits).astype(np.float32)]

    return run


def refusal(infer: Infer, golden: Golden) -> str:
    return refusal_of(with_softmax(infer), golden)


def refusal_of(run: Run, golden: Golden) -> str:
    with pytest.raises(ArtifactError) as caught:
        replay(run, golden, batch_size=8, where="here")
    return str(caught.value)


def test_reproduced_pairs_pass_in_batches_and_alone(network: TinyNetwork, golden: Golden) -> None:
    sizes: list[int] = []

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(len(images))
        return network.logits(images)

    replayed = replay(with_softmax(infer), golden, batch_size=4, where="here")
    assert replayed == Replay(largest_difference=0.0, batch_invariant=True)
    assert sizes[:3] == [4, 4, 2]
    assert sizes[3:11] == [1] * 8
    assert sorted(sizes[11:]) == [2, 2, 3, 3, 4, 4]


def test_reference_tolerance_is_checked_first_and_named(network: TinyNetwork, golden: Golden) -> None:
    text = refusal(lambda images: network.logits(images) + np.float32(0.5), golden)
    assert "10 of 10 golden pairs" in text
    assert "largest logit difference is 0.5, the tolerance is 0.001" in text
    assert "the trained PyTorch model" in text


def test_runtime_tolerance_catches_what_the_reference_lets_pass(network: TinyNetwork, golden: Golden) -> None:
    text = refusal(lambda images: network.logits(images) + np.float32(1e-4), golden)
    assert "this file at export" in text
    assert "tolerance is 1e-05" in text


def test_one_wrong_pair_is_enough(network: TinyNetwork, golden: Golden) -> None:
    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = network.logits(images)
        logits[(images == golden.images[7]).all(axis=(1, 2, 3)), 1] += 1
        return logits

    assert "1 of 10 golden pairs" in refusal(infer, golden)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "infinity", "minus-infinity"])
def test_outputs_that_are_not_finite_never_pass(golden: Golden, value: float) -> None:
    text = refusal(lambda images: np.full((len(images), 3), value, np.float32), golden)
    assert "10 of 10" in text


def test_infinite_tolerance_does_not_make_nan_pass(golden: Golden) -> None:
    lax = replace(golden, reference_tolerance=np.inf, runtime_tolerance=np.inf)
    assert "is NaN" in refusal(lambda images: np.full((len(images), 3), np.nan, np.float32), lax)


def test_lone_image_computed_differently_is_refused(network: TinyNetwork, golden: Golden) -> None:
    text = refusal(lambda images: network.logits(images) + np.float32(len(images) == 1), golden)
    assert "one image alone" in text


def test_other_class_count_is_refused(golden: Golden) -> None:
    assert "the golden pairs are of another model" in refusal(
        lambda images: np.zeros((len(images), 4), np.float32), golden
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_logits_that_depend_on_the_size_of_the_batch_are_refused(
    network: TinyNetwork, golden: Golden, size: int
) -> None:
    """They differ by more than rounding; smaller differences only make it not batch invariant."""
    text = refusal(lambda images: network.logits(images) + np.float32(len(images) == size), golden)
    # Ten images are a full batch and one of two, before other sizes are tried.
    how = {1: ", one image alone,", 2: "", 8: ""}.get(size, f", in a batch of {size},")
    assert f"the trained PyTorch model{how} the largest" in text


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("output", [0, 1], ids=["logits", "probabilities"])
def test_one_bit_at_one_size_in_either_output_is_not_batch_invariant(
    network: TinyNetwork, golden: Golden, size: int, output: int
) -> None:
    def run(images: NDArray[np.uint8]) -> Answers:
        answers = with_softmax(network.logits)(images)
        if len(images) == size:
            answers[output][-1, 0] = np.nextafter(answers[output][-1, 0], np.float32(np.inf))
        return answers

    assert not replay(run, golden, batch_size=8, where="here").batch_invariant


WRONG_PROBABILITIES: dict[str, Callable[[NDArray[np.float32]], NDArray[np.floating]]] = {
    "negated": lambda logits: -softmax(logits),
    "of the negated logits": lambda logits: softmax(-logits),
    "over the images": lambda logits: softmax(logits.T).T,
    "over everything": lambda logits: softmax(logits.reshape(1, -1)).reshape(logits.shape),
    "constant": lambda logits: np.full(logits.shape, 1 / logits.shape[1]),
    "NaN": lambda logits: np.full(logits.shape, np.nan),
    "infinite": lambda logits: np.full(logits.shape, np.inf),
    "the logits": lambda logits: logits,
    "twice": lambda logits: softmax(softmax(logits)),
    "of a sigmoid": lambda logits: 1 / (1 + np.exp(-logits)),
    "logarithms": lambda logits: np.log(softmax(logits)),
    "of shifted classes": lambda logits: np.roll(softmax(logits), 1, axis=1),
    "of the neighbour": lambda logits: np.roll(softmax(logits), 1, axis=0),
    "a little too warm": lambda logits: softmax(logits / 1.001),
    "rounded": lambda logits: softmax(logits).astype(np.float16),
}


@pytest.mark.parametrize("case", WRONG_PROBABILITIES)
def test_probabilities_that_are_not_the_softmax_over_classes_are_refused(
    network: TinyNetwork, golden: Golden, case: str
) -> None:
    def run(images: NDArray[np.uint8]) -> Answers:
        logits = network.logits(images)
        return [logits, WRONG_PROBABILITIES[case](logits).astype(np.float32)]

    text = refusal_of(run, golden)
    assert "golden images on here" in text
    assert "are not the softmax of their logits over the classes" in text


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_probabilities_wrong_at_one_size_only_are_refused(
    network: TinyNetwork, golden: Golden, size: int
) -> None:
    def run(images: NDArray[np.uint8]) -> Answers:
        logits, probabilities = with_softmax(network.logits)(images)
        return [logits, probabilities[:, ::-1] if len(images) == size else probabilities]

    assert "are not the softmax" in refusal_of(run, golden)


@pytest.mark.parametrize(
    "change",
    [
        lambda probabilities: probabilities[:, :2],
        lambda probabilities: probabilities[:-1],
        lambda probabilities: probabilities[..., None],
        lambda probabilities: probabilities.astype(np.float64),
        lambda probabilities: probabilities[0, 0],
    ],
    ids=["a class less", "a row less", "another side", "doubles", "one number"],
)
def test_probabilities_of_another_shape_or_type_are_refused(
    network: TinyNetwork, golden: Golden, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    def run(images: NDArray[np.uint8]) -> Answers:
        logits, probabilities = with_softmax(network.logits)(images)
        return [logits, change(probabilities)]

    text = refusal_of(run, golden)
    assert "the model's probabilities are float" in text
    assert "for 8 images, expected float32 [8, 3]" in text


@pytest.mark.parametrize("class_count", [1, 2, 10, 1000, 21841])
def test_a_float32_softmax_is_within_the_tolerance(class_count: int) -> None:
    """Covers logits of all sizes, summed one by one: the least exact way."""
    random = np.random.default_rng(class_count)
    for scale in (1e-3, 1.0, 20.0, 1000.0):
        logits = (scale * random.normal(size=(8, class_count))).astype(np.float32)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / np.cumsum(powers, axis=1, dtype=np.float32)[:, -1:]
        wrong, _ = softmax_errors(logits, probabilities)
        assert not wrong.any()
