"""Golden pairs: reproduced ones pass, and any way of differing is told with count, size and tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.artifact import Golden
from serving.errors import ArtifactError
from serving.golden_replay import replay

if TYPE_CHECKING:
    from tests.serving.artifacts import TinyNetwork

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@pytest.fixture
def golden(network: TinyNetwork) -> Golden:
    images = network.random_images(10)
    logits = network.logits(images)
    return Golden(images, logits, logits, 1e-3, 1e-5, synthetic=True)


def refusal(infer: Infer, golden: Golden) -> str:
    with pytest.raises(ArtifactError) as caught:
        replay(infer, golden, batch_size=4, where="here")
    return str(caught.value)


def test_reproduced_pairs_pass_in_batches_and_alone(network: TinyNetwork, golden: Golden) -> None:
    sizes: list[int] = []

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(len(images))
        return network.logits(images)

    assert replay(infer, golden, batch_size=4, where="here") == 0.0
    assert sizes == [4, 4, 2, 1]


def test_reference_tolerance_is_checked_first_and_named(network: TinyNetwork, golden: Golden) -> None:
    text = refusal(lambda images: network.logits(images) + np.float32(0.5), golden)
    assert "10 of 10 golden pairs" in text
    assert "largest logit difference is 0.5, the tolerance 0.001" in text
    assert "the trained PyTorch model" in text


def test_runtime_tolerance_catches_what_the_reference_lets_pass(network: TinyNetwork, golden: Golden) -> None:
    text = refusal(lambda images: network.logits(images) + np.float32(1e-4), golden)
    assert "this file at export" in text
    assert "tolerance 1e-05" in text


def test_one_wrong_pair_is_enough(network: TinyNetwork, golden: Golden) -> None:
    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = network.logits(images)
        logits[(images == golden.images[7]).all(axis=(1, 2, 3)), 1] += 1
        return logits

    assert "1 of 10 golden pairs" in refusal(infer, golden)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "infinity", "minus-infinity"])
def test_answers_that_are_no_numbers_never_pass(golden: Golden, value: float) -> None:
    text = refusal(lambda images: np.full((len(images), 3), value, np.float32), golden)
    assert "10 of 10" in text


def test_infinite_tolerance_does_not_make_nan_pass(golden: Golden) -> None:
    lax = replace(golden, reference_tolerance=np.inf, runtime_tolerance=np.inf)
    assert "not a number" in refusal(lambda images: np.full((len(images), 3), np.nan, np.float32), lax)


def test_lone_image_computed_differently_is_refused(network: TinyNetwork, golden: Golden) -> None:
    text = refusal(lambda images: network.logits(images) + np.float32(len(images) == 1), golden)
    assert "one image alone" in text


def test_other_class_count_is_refused(golden: Golden) -> None:
    assert "do not belong together" in refusal(lambda images: np.zeros((len(images), 4), np.float32), golden)
