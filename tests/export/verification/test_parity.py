"""The comparison itself: it passes what is right and fails on what is wrong, with figures."""

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from foldserve.artifact.format import ModelMetadata
from foldserve.export.errors import ParityError
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.sources.torch_network import TorchNetwork
from foldserve.export.sources.verification_images import synthetic_images
from foldserve.export.verification import divergence, parity, reference
from foldserve.export.verification.agreement import check_agreement
from foldserve.export.verification.divergence import LayerRecorder, first_divergence
from foldserve.export.verification.parity import BATCH_SIZES, check_parity, check_within, run_logits
from foldserve.export.verification.reference import TorchReference
from foldserve.export.verification.tolerances import float64_tolerance
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized
from tests.export.conftest import SPEC
from tests.support.architectures.residual import RepVggBlock
from tests.support.torch_networks import build_network, randomised


@pytest.fixture
def module(checkpoint):
    return checkpoint.build()


@pytest.fixture
def content(built):
    return built.content


@pytest.fixture
def session(content):
    return Session(content, device="cpu", intra_op_threads=1)


@pytest.fixture
def images(dataset):
    return dataset.test_images.numpy()


def test_every_batch_size_is_compared_on_random_and_real_images(session, module, images):
    comparisons = check_parity(session, TorchReference(module), images)
    assert [(entry.images, entry.batch_size) for entry in comparisons] == [
        (name, size) for name in ("random", "real") for size in BATCH_SIZES
    ]
    # Half the contract: what is left is rounding, which this network of random weights magnifies.
    assert max(entry.max_abs_err for entry in comparisons) < 5e-5


class Recording(Session):
    """Remembers how many images it ran at once; adds ``change`` to the logits of images ``wrong``."""

    def __init__(self, content: bytes, wrong: frozenset[bytes] = frozenset(), change: float = 0.0) -> None:
        super().__init__(content, device="cpu", intra_op_threads=1)
        self.sizes: list[int] = []
        self._wrong, self._change = wrong, change

    def run(self, output_names, feeds):
        (images,) = feeds.values()
        self.sizes.append(len(images))
        outputs = super().run(output_names, feeds)
        for row, image in enumerate(images):
            if image.tobytes() in self._wrong:
                outputs[0][row] += np.float32(self._change)  # as many to each class: the same softmax
        return outputs


def test_large_tensors_make_smaller_batches_and_all_images_are_compared(content, module, images, monkeypatch):
    network = TorchReference(module)
    network.logits(images[:1])
    monkeypatch.setattr(reference, "_TENSOR_BYTES", 5 * network.image_bytes)
    session = Recording(content)
    comparisons = check_parity(session, network, images)
    assert [entry.batch_size for entry in comparisons] == [1, 2, 5] * 2
    assert set(session.sizes) == {1, 2, 5}
    assert sum(session.sizes) == 2 * (1 + 2 + 32)
    assert all(entry.typical_err_float64 is not None for entry in comparisons if entry.batch_size == 5)
    # The twin: an image that only the largest batch reaches.
    wrong = frozenset(
        image.tobytes() for image in images[np.linspace(0, len(images) - 1, 32).astype(int)[20:]]
    )
    with pytest.raises(ParityError, match="on real images, batch 5, "):
        check_parity(Recording(content, wrong, 1e-3), network, images)


class Large(nn.Module):
    """A network for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def large():
    """A network of images of 72 pixels, its file, and some images."""
    torch.manual_seed(0)
    spec = ImageSpec(channel_order="L", height=72, width=72, resize_shorter_side=72)
    module = Normalized(Large(), (0.4,), (0.3,)).eval()
    built = build_network(module.network, ModelMetadata(tuple("0123456789"), (0.4,), (0.3,), spec))
    return module, built.content, synthetic_images(spec, 64).images


@pytest.mark.parametrize(("count", "real"), [(64, [1, 2, 7]), (5, [1, 2, 5]), (1, [1])])
def test_of_large_images_fewer_are_compared_at_every_batch_size(large, count, real):
    """Both kinds fill the largest batch together, however few images there are."""
    module, content, images = large
    session = Recording(content)
    comparisons = check_parity(session, TorchReference(module), images[:count])
    assert sorted(session.sizes) == sorted([1, 2, 7, *real, 32])
    assert [(entry.images, entry.batch_size) for entry in comparisons] == [
        (name, size) for name, sizes in (("random", [1, 2, 7, 32]), ("real", [*real, 32])) for size in sizes
    ]


@pytest.mark.parametrize("place", [0, 15, 16, 31])
def test_one_wrong_image_of_the_largest_batch_is_found(large, place):
    """The twin: the largest batch holds 16 random images and 16 of 64 others."""
    module, content, images = large
    random = np.random.default_rng(parity._SEED).integers(0, 256, (16, 1, 72, 72), dtype=np.uint8)
    spread = images[np.linspace(0, 63, 16).astype(int)]
    wrong = frozenset([np.concatenate([random, spread])[place].tobytes()])
    with pytest.raises(ParityError, match="batch 1," if place in {0, 16} else "batch 32,"):
        check_parity(Recording(content, wrong, 1e-2), TorchReference(module), images)


def test_two_images_are_run_at_once_however_large_their_tensors_are(content, module, images, monkeypatch):
    """A file that takes one image only, or mixes up two, must not pass for want of memory."""
    network = TorchReference(module)
    monkeypatch.setattr(reference, "_TENSOR_BYTES", 1)
    session = Recording(content)
    comparisons = check_parity(session, network, images)
    assert network.image_bytes > 1
    assert [entry.batch_size for entry in comparisons] == [1, 2] * 2
    assert max(session.sizes) == 2


@pytest.mark.parametrize("parameter", ["features.0.conv.weight", "features.4.norm.bias", "classifier.5.bias"])
def test_one_changed_weight_fails(session, module, images, parameter):
    weight = module.network.get_parameter(parameter)
    with torch.no_grad():
        weight.reshape(-1)[0] += 0.01
    with pytest.raises(
        ParityError, match=r"on random images, batch 1, .* differ by up to .* nothing was published"
    ):
        check_parity(session, TorchReference(module), images)


def test_a_wrong_mean_fails(session, module, images):
    module.mean += 1e-3
    with pytest.raises(ParityError, match="differ by up to"):
        check_parity(session, TorchReference(module), images)


def test_float64_reference_detects_an_error_below_the_fp32_tolerance(session, module, images):
    """5e-5 is within 1e-4 of PyTorch, but far more than float32 rounding."""

    class Shifted(Session):
        def run(self, output_names, feeds):
            return [output + np.float32(5e-5) for output in super().run(output_names, feeds)]

    shifted = Shifted.__new__(Shifted)
    shifted.__dict__ = session.__dict__
    with pytest.raises(ParityError, match=r"off by up to .* from the float64 reference"):
        check_parity(shifted, TorchReference(module), images)


def test_nan_logits_fail(session, module, images):
    with torch.no_grad():
        module.network.get_parameter("classifier.5.bias")[3] = float("nan")
    with pytest.raises(ParityError):
        check_parity(session, TorchReference(module), images)


def test_agreement_counts_accuracy_and_clear_predictions(session, module, images):
    expected = TorchReference(module).logits(images)
    labels = expected.argmax(axis=1)
    labels[:30] = (labels[:30] + 1) % 10
    agreement = check_agreement(session, expected, images, labels)
    assert agreement.accuracy_before == agreement.accuracy_after == pytest.approx(0.9)
    assert agreement.top1_agreement == 1.0
    assert 250 < agreement.top1_compared <= 300


def test_agreement_fails_when_one_image_of_many_is_off(session, module, images):
    expected = TorchReference(module).logits(images).copy()
    expected[123, 4] += 1e-3
    with pytest.raises(ParityError, match="on 300 images"):
        check_agreement(session, expected, images, None)


@pytest.mark.parametrize("change", ["over the images", "negated", "warmer by a thousandth"])
def test_wrong_probabilities_fail_every_comparison(built, module, images, change):
    """Each logit is right; each of the comparisons that look at real images sees the rest."""
    model_proto = onnx.load_from_string(built.content)
    softmax = model_proto.graph.node.pop()
    assert softmax.op_type == "Softmax"
    factor = {"over the images": 1.0, "negated": -1.0, "warmer by a thousandth": 0.999}[change]
    model_proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
    model_proto.graph.node.append(onnx.helper.make_node("Mul", [softmax.input[0], "factor"], ["scaled"]))
    axis = 0 if change == "over the images" else 1
    model_proto.graph.node.append(onnx.helper.make_node("Softmax", ["scaled"], ["probabilities"], axis=axis))
    wrong = Session(model_proto.SerializeToString(), device="cpu", intra_op_threads=1)
    reference = TorchReference(module)
    expected = reference.logits(images)
    for check in (
        lambda: check_parity(wrong, reference, images),
        lambda: check_agreement(wrong, expected, images, None),
        lambda: check_within(wrong, "real", images, expected, 1.0),
    ):
        with pytest.raises(ParityError, match="not the softmax of their logits over the classes"):
            check()


def test_predictions_too_close_to_call_are_not_compared(session, module, images):
    """The reference prefers another class by less than the tolerance: either answer is right."""
    expected = run_logits(session, images[:1]).copy()
    second, first = np.argsort(expected[0])[-2:]
    with (
        torch.no_grad()
    ):  # bring the two best logits together, in both networks, and let them disagree by 4e-5
        gap = float(expected[0, first] - expected[0, second])
        module.network.get_parameter("classifier.5.bias")[second] += gap
    metadata = ModelMetadata(tuple("0123456789"), (0.286,), (0.353,), SPEC)
    close = Session(build_network(module.network, metadata).content, device="cpu", intra_op_threads=1)
    expected = run_logits(close, images[:1]).copy()
    loser = expected[0].argmax()
    expected[0, loser] -= 4e-5
    assert expected[0].argmax() != loser
    agreement = check_agreement(close, expected, images[:1], None)
    assert agreement.top1_compared == 0


def test_a_row_does_not_depend_on_its_batch(session, images):
    """One image alone and among others: bit for bit the same on the CPU."""
    together = run_logits(session, images[:32])
    alone = np.concatenate([run_logits(session, images[row : row + 1]) for row in range(32)])
    assert np.array_equal(together, alone)


def test_float64_leaves_the_module_in_float32(module, images):
    reference = TorchReference(module)
    exact = reference.exact_logits(images[:4])
    assert exact.dtype == np.float64
    assert reference.logits(images[:4]).dtype == np.float32
    assert 0 < np.abs(exact - reference.logits(images[:4])).max() < float64_tolerance(exact, 0.0) * 10


def diverging_layer(module: Normalized, content: bytes, images: np.ndarray) -> str:
    record = TorchNetwork(module, images.shape[1:]).layer_recorder()
    return first_divergence(record, ModelFile(content), images)


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [("features.2.conv.weight", "features.2.conv"), ("classifier.2.bias", "classifier.2")],
)
def test_the_first_layer_to_differ_is_named(content, module, images, parameter, layer):
    with torch.no_grad():
        module.network.get_parameter(parameter).reshape(-1)[0] += 0.5
    assert f"the first layer to differ is {layer} " in diverging_layer(module, content, images[:32])


@dataclass
class _Wrong:
    """Records a network's layers, of one image wrong by 1 in the last; notes how much it was asked for."""

    recorder: LayerRecorder
    place: int = 0
    asked: list[tuple[int, int]] = field(default_factory=list)  # the names and the images

    def image_bytes(self, image):
        return self.recorder.image_bytes(image)

    def recording(self, names):
        record = self.recorder.recording(names)
        start = 0

        def record_wrong(images):
            nonlocal start
            self.asked.append((len(names), len(images)))
            values = dict(record(images))
            for name in values.keys() & {"logits"}:
                values[name][self.place - start : self.place - start + 1] += 1
            start += len(images)
            return values

        return record_wrong


@pytest.mark.parametrize("place", [0, 17, 31])
def test_difference_in_any_image_is_found(content, module, images, monkeypatch, place):
    """Few images' layers are held at a time, since those of 32 take gigabytes in a large network."""
    recorder = TorchNetwork(module, images.shape[1:]).layer_recorder()
    held = sum(recorder.image_bytes(images[:1]).values())
    monkeypatch.setattr(divergence, "_VALUES_BYTES", 3 * held)
    wrong = _Wrong(recorder, place)
    sentence = first_divergence(wrong, ModelFile(content), images[:32])
    assert "'logits'" in sentence
    assert "by up to 1" in sentence
    counts = [count for _, count in wrong.asked]
    assert max(counts) < 32
    assert sum(counts) == 32


@pytest.mark.parametrize("place", [0, 1])
def test_few_layers_are_held_at_a_time(content, module, images, monkeypatch, place):
    """The layers of two images alone can take gigabytes."""
    monkeypatch.setattr(divergence, "_VALUES_BYTES", 1)
    wrong = _Wrong(TorchNetwork(module, images.shape[1:]).layer_recorder(), place)
    sentence = first_divergence(wrong, ModelFile(content), images[:32])
    assert "'logits'" in sentence
    assert "by up to 1" in sentence
    assert set(wrong.asked) == {(1, 2)}
    assert len(wrong.asked) > 5


def test_equal_networks_have_no_diverging_layer(content, module, images):
    assert "no single layer differs" in diverging_layer(module, content, images[:32])


def test_padding_moved_before_a_batch_norm_is_not_reported_as_diverging(images):
    """The file pads before it normalises: a value that the network does not have, and not called as one."""
    body = [nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.BatchNorm2d(4)]
    body.append(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"))
    network = randomised(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)))
    built = build_network(network, ModelMetadata(tuple("0123456789"), (0.286,), (0.353,), SPEC))
    assert built.folds[0].reason == "into 3, which follows it"
    module = Normalized(network, (0.286,), (0.353,)).eval()
    assert "no single layer differs" in diverging_layer(module, built.content, images[:8])


RESIDUAL = {
    "the convolution inside": ("block.dense.conv.bias", "block.dense.conv"),
    "the one on the shortcut": ("block.pointwise.conv.weight", "block.pointwise.conv"),
    "a batch norm on the shortcut": ("block.identity.shift", "block.identity"),
    "the block behind": ("last.dense.conv.weight", "last.dense.conv"),
}


def with_activations(block: RepVggBlock) -> RepVggBlock:
    for branch in (block.dense, block.pointwise):
        branch.add_module("activation", nn.ReLU())
    return block


@pytest.fixture(scope="module")
def residual():
    """Two blocks of three branches that are added up, a batch norm alone on one of them.

    The others end in a ReLU, or all would become one convolution.
    """
    torch.manual_seed(2)
    blocks = {
        "first": nn.Conv2d(1, 6, 3, 2),
        "block": with_activations(RepVggBlock(6, 6, 1)),
        "last": with_activations(RepVggBlock(6, 8, 2)),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(8, 10),
    }
    network = randomised(nn.Sequential(OrderedDict(blocks)))
    metadata = ModelMetadata(tuple("0123456789"), (0.286,), (0.353,), SPEC)
    module = Normalized(network, metadata.mean, metadata.std).eval()
    return module, build_network(network, metadata).content


@pytest.mark.parametrize(("damaged", "layer"), RESIDUAL.values(), ids=RESIDUAL)
def test_in_a_residual_network_the_right_branch_is_named(residual, images, damaged, layer):
    """What comes after the sum differs too, and is not what is broken."""
    module, content = residual
    model_proto = onnx.load_from_string(content)
    (tensor,) = (entry for entry in model_proto.graph.initializer if entry.name == damaged)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[1] += 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, damaged))
    sentence = diverging_layer(module, model_proto.SerializeToString(), images[:8])
    assert f"the first layer to differ is {layer} " in sentence
