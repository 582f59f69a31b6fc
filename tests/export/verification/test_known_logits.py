"""What was computed is remembered, and nothing else is taken for known."""

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES
from foldserve.export.verification import known_logits
from foldserve.export.verification.agreement import check_agreement
from foldserve.export.verification.golden_pairs import make_golden, replay_golden
from foldserve.export.verification.known_logits import KnownLogits, RememberingSession
from foldserve.export.verification.reference import TorchReference
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized


@pytest.fixture
def runs(monkeypatch):
    """The number of images of each run."""
    sizes: list[int] = []
    run = Session.run

    def counted(self, output_names, feeds):
        sizes.append(len(feeds[IMAGE]))
        return run(self, output_names, feeds)

    monkeypatch.setattr(Session, "run", counted)
    return sizes


@pytest.fixture
def images(dataset):
    return dataset.test_images.numpy()[:40]


def remembering(built) -> RememberingSession:
    return RememberingSession(built.content, device="cpu", intra_op_threads=1)


def test_a_batch_is_run_once(built, images, runs):
    session = remembering(built)
    (logits,) = session.run([LOGITS], {IMAGE: images})
    both = session.run([PROBABILITIES, LOGITS], {IMAGE: images.copy()})
    assert runs == [40]
    assert np.array_equal(both[1], logits)
    assert np.allclose(both[0].sum(1), 1)
    both[1][:] = 0  # a copy
    assert np.array_equal(session.run([LOGITS], {IMAGE: images})[0], logits)


def test_other_batches_are_run(built, images, runs):
    session = remembering(built)
    for batch in (images, images[::-1], images[:39], images[:1], images[:1].repeat(2, axis=0)):
        session.run([LOGITS], {IMAGE: batch})
    assert runs == [40, 40, 39, 1, 2]


def test_no_more_than_some_outputs_are_remembered(built, images, runs, monkeypatch):
    session = remembering(built)
    monkeypatch.setattr(known_logits, "_MOST_BYTES", 2 * 40 * 10 * 4)
    for batch in (images, images[:1], images, images[:1]):
        session.run([LOGITS], {IMAGE: batch})
    assert runs == [40, 1, 1]


def test_golden_pairs_are_run_with_the_verification_images(built, checkpoint, images, runs, monkeypatch):
    """What the replay adds: images alone, and in batches of other sizes and orders."""
    monkeypatch.setattr("foldserve.export.verification.reference._MAX_BATCH_SIZE", 8)
    session = remembering(built)
    expected = TorchReference(checkpoint.build()).logits(images)
    check_agreement(session, expected, images, None)
    assert runs == [8] * 5
    golden = make_golden(session, expected, images, rounding=1e-5, synthetic=True)
    replay_golden([session], golden, 8)
    assert runs[5:13] == [1] * 8
    assert sorted(runs[13:]) == [2, 2, 3, 3, 7, 7, 8]  # of the two batches of 8, one is the first of all


def test_rows_are_computed_once_and_in_order():
    known = KnownLogits()
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    asked: list[list[int]] = []

    def compute(missing):
        asked.append(missing.ravel().tolist())
        return np.stack([missing.ravel(), -missing.ravel().astype(np.int64)], axis=1)

    told: list[int] = []
    known.complete(images[2:4], compute, told.append)
    rows = known.complete(images[::-1], compute, told.append)
    assert asked == [[2, 3], [5, 4, 1, 0]]
    assert told == [0, 2]
    assert rows[:, 0].tolist() == [5, 4, 3, 2, 1, 0]


def test_a_wrong_number_of_rows_is_handed_on():
    known = KnownLogits()
    images = np.zeros((3, 1, 2, 2), np.uint8)
    assert len(known.complete(images, lambda _: np.zeros((1, 5)))) == 1
    assert known.complete(images, lambda _: np.ones((3, 5))).sum() == 15


def test_the_reference_computes_an_image_once():
    seen: list[int] = []

    class Flat(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.flatten(1)

    reference = TorchReference(Normalized(Flat(), (0.5,), (0.25,)).eval())
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 3, 3), dtype=np.uint8)
    first = reference.logits(images[:5])
    told: list[int] = []
    every = reference.logits(images, told.append)
    assert sum(seen) == 12
    assert sum(told) == 12
    assert np.array_equal(every[:5], first)
    with torch.no_grad():
        assert np.allclose(every, (images.reshape(12, 9) / 255 - 0.5) / 0.25, atol=1e-6)
