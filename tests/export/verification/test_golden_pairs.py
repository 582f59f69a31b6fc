"""Golden pairs: which images are taken, and that no damage to a weight hides from them."""

from dataclasses import replace as with_changes

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from foldserve.artifact.golden import replay
from foldserve.errors import ArtifactError
from foldserve.export.errors import ParityError
from foldserve.export.verification.golden_pairs import choose_golden, golden_count, make_golden, replay_golden
from foldserve.export.verification.parity import check_parity, largest_rounding
from foldserve.export.verification.reference import TorchReference
from foldserve.export.verification.tolerances import reference_tolerance, runtime_tolerance
from foldserve.runtime.runner import ModelRunner
from foldserve.runtime.session import Session


@pytest.fixture
def golden(built, checkpoint, dataset):
    chosen = choose_golden(dataset.test_labels.numpy(), 300, 256)
    images = dataset.test_images.numpy()[chosen]
    session = Session(built.content, device="cpu", intra_op_threads=1)
    reference = TorchReference(checkpoint.build())
    rounding = largest_rounding(check_parity(session, reference, images))
    return make_golden(session, reference.logits(images), images, rounding=rounding, synthetic=False)


def replay_on_cpu(content: bytes, golden) -> float:
    session = Session(content, device="cpu", intra_op_threads=1)
    return replay(ModelRunner(session).run_unchecked, golden, batch_size=32, where="CPU").largest_difference


def test_every_class_is_among_the_chosen_however_rare():
    labels = np.array([0] * 500 + [1] * 3 + [2] * 500)
    chosen = choose_golden(labels, len(labels), 10)
    assert len(chosen) == len(set(chosen)) == 10
    assert np.bincount(labels[chosen]).tolist() == [4, 3, 3]


def test_the_choice_is_the_same_every_time_and_in_order():
    labels = np.arange(1000) % 7
    first, second = choose_golden(labels, 1000, 256), choose_golden(labels, 1000, 256)
    assert (first == second).all()
    assert (np.diff(first) > 0).all()


def test_few_images_are_all_taken():
    assert choose_golden(np.array([0, 1, 1]), 3, 256).tolist() == [0, 1, 2]
    assert choose_golden(None, 3, 256).tolist() == [0, 1, 2]


def test_small_networks_get_256_pairs_and_every_class_has_room():
    assert golden_count((1, 28, 28), 10) == 256
    assert golden_count((3, 224, 224), 10) == 64
    assert golden_count((3, 224, 224), 1000) == 1000


def test_tolerances_grow_with_the_logits_from_their_floors():
    assert reference_tolerance(np.array([[3.0, -20.0]])) == pytest.approx(1e-4)
    assert reference_tolerance(np.array([[3.0, -200.0]])) == pytest.approx(1e-3)
    assert runtime_tolerance(np.array([[3.0, -5.0]]), 1e-6) == pytest.approx(1e-5)
    assert runtime_tolerance(np.array([[3.0, -50.0]]), 1e-6) == pytest.approx(1e-4)
    assert runtime_tolerance(np.array([[3.0, -5.0]]), 1e-5) == pytest.approx(4e-5)


def test_the_exported_file_reproduces_its_golden_pairs(built, golden):
    assert replay_on_cpu(built.content, golden) < golden.reference_tolerance / 2


def test_pairs_that_a_session_does_not_reproduce_are_refused(built, golden):
    session = Session(built.content, device="cpu", intra_op_threads=1)
    replay_golden([session], golden)
    wrong = golden.runtime_logits.copy()
    wrong[-1, 0] += 10 * golden.reference_tolerance
    with pytest.raises(ParityError, match="nothing was published"):
        replay_golden([session], with_changes(golden, runtime_logits=wrong))


def test_a_flipped_exponent_bit_of_any_weight_is_seen(built, golden):
    """Forty flips over all tensors, any of the eight exponent bits: each must be refused."""
    generator = np.random.default_rng(2)
    model_proto = onnx.load_from_string(built.content)
    floats = [
        tensor for tensor in model_proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    missed = []
    for flip in range(40):
        tensor = floats[flip % len(floats)]
        sound = numpy_helper.to_array(tensor)
        damaged = sound.copy()
        position, bit = generator.integers(damaged.size), 23 + int(generator.integers(8))
        damaged.view(np.uint32).reshape(-1)[position] ^= np.uint32(1 << bit)
        tensor.CopyFrom(numpy_helper.from_array(damaged, tensor.name))
        try:
            replay_on_cpu(model_proto.SerializeToString(), golden)
        except ArtifactError:
            pass
        else:
            missed.append((tensor.name, int(position), bit))
        tensor.CopyFrom(numpy_helper.from_array(sound, tensor.name))
    assert missed == []
    replay_on_cpu(
        model_proto.SerializeToString(), golden
    )  # all bits are back: it was the flips that were seen
