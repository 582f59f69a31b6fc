"""Tolerances that know what float32 is worth: they pass what is sound and still find small faults."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.fault_sensitivity import ResidualBlock, deep_network, epsilon_off, mean_at_border, weights_off
from benchmarks.fault_sensitivity import with_statistics as calibrated
from foldserve.artifact.format import ModelMetadata
from foldserve.artifact.golden_limits import max_tolerance
from foldserve.export.errors import ParityError
from foldserve.export.sources.verification_images import synthetic_images
from foldserve.export.verification.agreement import check_agreement
from foldserve.export.verification.comparison import JudgedSet, compare
from foldserve.export.verification.golden_pairs import make_golden, replay_golden
from foldserve.export.verification.parity import (
    check_parity,
    has_float64_reference,
    largest_rounding,
    make_judge,
)
from foldserve.export.verification.reference import TorchReference
from foldserve.export.verification.rounding import Float64Judge, Rounding, image_errors
from foldserve.export.verification.tolerances import (
    FP32_UNIT,
    IMAGE_FACTOR,
    REFERENCE_FLOOR,
    reference_tolerance,
)
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized, create_model
from tests.support.torch_networks import build_network

CLASSES = 10
SPECS = {
    "L": ImageSpec("L", 28, 28, 28),
    "RGB": ImageSpec("RGB", 32, 32, 32),
    "large": ImageSpec("RGB", 64, 64, 64),
}


@dataclass
class Exported:
    """A network, its file, and images to compare both on."""

    network: nn.Module
    metadata: ModelMetadata
    session: Session
    images: np.ndarray

    def reference(self, network: nn.Module | None = None) -> TorchReference:
        """The logits of ``network`` in its place."""
        module = Normalized(network or self.network, self.metadata.mean, self.metadata.std)
        return TorchReference(module.eval())


def exported(network: nn.Module, order: str = "RGB") -> Exported:
    spec = SPECS[order]
    metadata = ModelMetadata(
        tuple(map(str, range(CLASSES))), (0.45,) * spec.channels, (0.25,) * spec.channels, spec
    )
    content = build_network(network.eval(), metadata).content
    session = Session(content, device="cpu", intra_op_threads=1)
    return Exported(network, metadata, session, synthetic_images(spec, 64).images)


def noise(order: str) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (32, *SPECS[order].shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def deep() -> Exported:
    """33 convolutions; statistics of noise, so that squares drive the logits far from zero."""
    torch.manual_seed(0)
    return exported(calibrated(deep_network(), noise("RGB")))


@pytest.fixture(scope="module")
def small() -> Exported:
    torch.manual_seed(0)
    arguments = {"in_channels": 1, "class_count": CLASSES, "height": 28, "width": 28}
    return exported(calibrated(create_model("lenet", **arguments), noise("L")), "L")


class Cancelling(nn.Module):
    """The difference of two large linear layers: float32 is worth little here, for any runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.Sigmoid(), nn.Flatten(), nn.Linear(784, 64))
        self.one, self.other = nn.Linear(64, CLASSES), nn.Linear(64, CLASSES)
        with torch.no_grad():
            self.one.weight.normal_(0, 2000)
            self.other.weight.copy_(self.one.weight + 4 * torch.randn(CLASSES, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(self.body(x))
        return self.one(x) - self.other(torch.exp(torch.log(x)))


def test_network_whose_float32_is_worth_less_than_the_plain_tolerance_passes():
    torch.manual_seed(0)
    sound = exported(Cancelling())
    reference = sound.reference()
    comparisons = check_parity(sound.session, reference, sound.images)
    expected = reference.logits(sound.images)
    plain = reference_tolerance(expected)
    assert max(entry.pytorch_max_abs_err_float64 for entry in comparisons) > 3 * plain
    assert all(entry.max_abs_err <= entry.tolerance for entry in comparisons)
    agreement = check_agreement(
        sound.session, expected, sound.images, None, judge=make_judge(reference, comparisons)
    )
    assert plain < agreement.max_abs_err <= agreement.tolerance <= max_tolerance(expected, "fp32")
    golden = make_golden(
        sound.session, expected, sound.images, rounding=largest_rounding(comparisons), synthetic=True
    )
    golden.check("fp32")  # as a server does
    replay_golden([sound.session], golden)
    assert golden.reference_tolerance > plain
    # Without the float64 reference the plain comparison stays, and refuses it.
    with pytest.raises(ParityError, match="differ by up to"):
        check_agreement(sound.session, expected, sound.images, None)


def test_deep_and_small_network_pass(deep, small):
    for sound in (deep, small):
        comparisons = check_parity(sound.session, sound.reference(), sound.images)
        assert has_float64_reference(comparisons)


FAULTS = {
    "weights of the first layer off by 0.1 %": lambda net, names: weights_off(net, names[0], 1e-3),
    "weights of a middle layer off by 0.1 %": lambda net, names: weights_off(net, names[1], 1e-3),
    "epsilon 1e-3 in place of 1e-5": lambda net, names: epsilon_off(net, names[2], 1e-3 - 1e-5),
    "a hundredth of the mean at the border": lambda net, names: mean_at_border(net, names[0], 1e-2),
}
NAMES = {
    "deep": ("stem", "block8.body.conv1", "block8.body.norm1"),
    "small": ("features.0.conv", "features.2.conv", "features.0.norm"),
}


@pytest.mark.parametrize("size", NAMES)
@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_file_fails_each_comparison(size, fault, request):
    """The faulty network stands in for the true one: the file differs from it by the fault."""
    sound = request.getfixturevalue(size)
    comparisons = check_parity(sound.session, sound.reference(), sound.images)
    faulty = FAULTS[fault](sound.network, NAMES[size]).float()
    reference = sound.reference(faulty)
    with pytest.raises(ParityError, match="nothing was published"):
        check_parity(sound.session, reference, sound.images)
    with pytest.raises(ParityError, match="nothing was published"):
        check_agreement(
            sound.session,
            reference.logits(sound.images),
            sound.images,
            None,
            judge=make_judge(reference, comparisons),
        )


class OwnStatistics(nn.Module):
    """Depthwise convolutions, each normalised by the image's own mean and variance."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, groups=32) for _ in range(10))
        self.norms = nn.ModuleList(norm(32) for _ in range(10))
        self.head = nn.Linear(32, CLASSES)
        with torch.no_grad():
            self.head.weight.mul_(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + nn.functional.silu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


NORMS = {
    "instance norm": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group norm": lambda channels: nn.GroupNorm(4, channels),
}


@pytest.fixture(scope="module", params=NORMS)
def own_statistics(request) -> Exported:
    torch.manual_seed(0)
    return exported(OwnStatistics(NORMS[request.param]), "large")


def test_own_statistics_pass_on_synthetic_images(own_statistics):
    reference = own_statistics.reference()
    comparisons = check_parity(own_statistics.session, reference, own_statistics.images, "synthetic")
    expected = reference.logits(own_statistics.images)
    judge = make_judge(reference, comparisons)
    check_agreement(own_statistics.session, expected, own_statistics.images, None, judge=judge)


def test_own_statistics_pass_with_a_flat_image_among_others(own_statistics):
    """A user's folder may hold an empty page: its rounding says nothing about the file."""
    images = own_statistics.images.copy()
    images[0] = 114
    reference = own_statistics.reference()
    comparisons = check_parity(own_statistics.session, reference, images)
    expected = reference.logits(images)
    judge = make_judge(reference, comparisons)
    check_agreement(own_statistics.session, expected, images, None, judge=judge)


def test_own_statistics_off_by_a_thousandth_fail(own_statistics):
    reference = own_statistics.reference(weights_off(own_statistics.network, "head", 1e-3).float())
    with pytest.raises(ParityError, match="from the float64 reference"):
        check_parity(own_statistics.session, reference, own_statistics.images)


@pytest.mark.parametrize("order", SPECS)
def test_no_synthetic_image_is_flat(order):
    images = synthetic_images(SPECS[order], 32).images.astype(float)
    assert images.std(axis=(2, 3)).min() > 5
    # Yet some have large squares: on noise alone a deep network answers the same for all images.
    middle = images.shape[3] // 2
    halves = images[..., :middle].mean(axis=(2, 3)), images[..., middle:].mean(axis=(2, 3))
    assert np.abs(halves[0] - halves[1]).max() > 60


def rounded(seed: int, scale: float, image_count: int, class_count: int) -> tuple[np.ndarray, ...]:
    """Float64 logits, and those of two computations that round them independently by some ``scale``."""
    generator = np.random.default_rng(seed)
    exact = generator.normal(0, 5, (image_count, class_count))
    # Rounding is not of one size on all images.
    sizes = scale * generator.uniform(0.5, 2, (image_count, 1))
    one, other = ((exact + sizes * generator.normal(size=exact.shape)).astype(np.float32) for _ in range(2))
    return exact, one, other


@pytest.mark.parametrize("image_count", [8, 32])
@pytest.mark.parametrize("class_count", [2, 10, 1000])
def test_two_sound_computations_agree_whatever_they_round(image_count, class_count):
    for seed in range(200):
        exact, network, file = rounded(seed, 1e-5, image_count, class_count)
        rounding = Rounding.measure(network, exact)
        assert (image_errors(file, exact) <= rounding.tolerances(file, exact)).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-6, 1e-3),
    image_count=st.integers(1, 40),
    class_count=st.integers(2, 20),
)
def test_tolerances_are_bounded_and_few_are_wide(seed, scale, image_count, class_count):
    exact, network, file = rounded(seed, scale, image_count, class_count)
    rounding = Rounding.measure(network, exact)
    file = (file + np.float32(20 * scale)).astype(np.float32)
    tolerances = rounding.tolerances(file, exact)
    assert (tolerances <= rounding.bound).all()
    assert rounding.bound == max_tolerance(network, "fp32")
    usual = IMAGE_FACTOR * np.maximum(rounding.errors, rounding.scale) + rounding.floor
    wide = tolerances > np.minimum(usual, rounding.bound)
    assert wide.sum() <= image_count // 8
    # A tolerance is wide for an image that needs it only.
    assert (image_errors(file, exact)[wide] > usual[wide]).all()


def test_error_of_every_image_is_found_beside_one_that_the_network_itself_rounds_badly():
    """The one image makes PyTorch's typical largest error large; the median does not see it."""
    exact, network, _ = rounded(0, 1e-6, 32, 10)
    network[5] += 1e-3
    file = (exact + 1e-4).astype(np.float32)
    rounding = Rounding.measure(network, exact)
    tolerances = rounding.tolerances(file, exact)
    assert (image_errors(file, exact) <= tolerances).all()
    with pytest.raises(ParityError, match=r"typically off by 0\.0001 from the float64 reference"):
        compare("CPU", "real", file, network, JudgedSet(exact, rounding, tolerances))
    compare("CPU", "real", network, network, JudgedSet(exact, rounding, tolerances))


def test_logits_that_are_one_number_round_as_one_number():
    """Files with constant weights answer the same for all classes, and round alike at all of them."""
    exact, network, file = (np.repeat(logits[:, :1], 1000, axis=1) for logits in rounded(0, 1e-7, 32, 2))
    unit = FP32_UNIT * np.abs(exact).max()
    file = exact + 3.5 * unit * np.sign(file - exact)
    assert Rounding.measure(network, exact).typical < unit / 2
    compare("CPU", "random", file, network, judged_set(network, exact, file))
    # One that is off by more than rounding explains is refused all the same.
    file = exact + 6 * unit
    with pytest.raises(ParityError, match="from the float64 reference"):
        compare("CPU", "random", file, network, judged_set(network, exact, file))


def test_a_network_of_one_output_is_judged_as_one_of_two():
    """Its one logit differs from image to image: no weights are constants (--as-logits lets it through)."""
    exact, network, _ = rounded(0, 1e-7, 32, 1)
    file = exact + 3.5 * FP32_UNIT * np.abs(exact).max()
    with pytest.raises(ParityError, match="typically off by"):
        compare("CPU", "random", file, network, judged_set(network, exact, file))


def test_logits_that_differ_are_averaged():
    """The twin: the same errors at logits that are not one number are refused."""
    exact, network, _ = rounded(0, 1e-7, 32, 1000)
    file = exact + 3.5 * FP32_UNIT * np.abs(exact).max()
    with pytest.raises(ParityError, match="typically off by"):
        compare("CPU", "random", file, network, judged_set(network, exact, file))


def judged_set(network: np.ndarray, exact: np.ndarray, file: np.ndarray) -> JudgedSet:
    rounding = Rounding.measure(network, exact)
    return JudgedSet(exact, rounding, rounding.tolerances(file, exact))


def test_nan_is_above_every_tolerance():
    exact, network, file = rounded(0, 1e-5, 16, 4)
    rounding = Rounding.measure(network, exact)
    file[3, 2] = np.nan
    assert not (image_errors(file, exact) <= rounding.tolerances(file, exact)).all()
    judge = Float64Judge(lambda images: exact[images[:, 0, 0, 0]], 1e-5, 1e-5)
    assert judge.tolerance(np.arange(16, dtype=np.uint8).reshape(-1, 1, 1, 1), file, network) < 1e-3


def judged(file: np.ndarray, network: np.ndarray, exact: np.ndarray, rounding: float) -> tuple[float, int]:
    """The tolerance between ``file`` and ``network``, and how many images were computed in float64."""
    seen: list[int] = []

    def exact_logits(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return exact[images[:, 0, 0, 0]]

    images = np.arange(len(exact), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Float64Judge(exact_logits, rounding, rounding).tolerance(images, file, network), sum(seen)


def test_images_within_the_measured_rounding_are_not_computed_in_float64():
    exact, network, file = rounded(0, 1e-5, 200, 10)
    tolerance, count = judged(file, network, exact, 1e-4)
    assert count == 0
    assert tolerance == pytest.approx(4e-4, rel=0.1)


def test_rare_image_that_rounds_more_in_the_network_too_is_allowed():
    exact, network, file = rounded(0, 1e-6, 200, 10)
    exact[7, 3] -= 9e-4  # both computed another value in float32
    tolerance, count = judged(file, network, exact, 5e-6)
    assert count == 0  # they agree
    network[7, 3] -= 4e-4
    tolerance, count = judged(file, network, exact, 5e-6)
    assert count == 1
    assert tolerance == pytest.approx(4e-4, rel=0.1)


def test_rare_image_that_is_wrong_in_the_file_alone_is_not_allowed():
    exact, network, file = rounded(0, 1e-6, 200, 10)
    file[7, 3] += 2e-3
    tolerance, count = judged(file, network, exact, 5e-6)
    assert count == 1
    assert tolerance < 1e-4


def test_many_images_that_are_slightly_off_are_not_allowed():
    exact, network, file = rounded(0, 1e-6, 200, 10)
    file[:100] += 1e-4  # one image might be an outlier, not half of all
    assert judged(file, network, exact, 5e-6) == (pytest.approx(2.5e-5, rel=0.5), 32)
    file = rounded(0, 1e-6, 200, 10)[2]
    file[0] += 1e-4
    assert judged(file, network, exact, 5e-6) == (pytest.approx(1e-4, rel=0.1), 1)


def test_tolerance_never_exceeds_the_bound():
    """A network whose own float32 is off by a hundredth of its logits is not worth publishing."""
    exact, network, file = rounded(0, 0.1, 200, 10)
    tolerance, _ = judged(file, network, exact, 0.3)
    assert tolerance == max_tolerance(network, "fp32")


def test_without_a_float64_reference_the_plain_tolerance_stays(small):
    class Plain(TorchReference):
        def exact_logits(self, _):
            return None

    reference = Plain(Normalized(small.network, small.metadata.mean, small.metadata.std).eval())
    comparisons = check_parity(small.session, reference, small.images)
    assert make_judge(reference, comparisons) is None
    expected = reference.logits(small.images)
    assert all(entry.tolerance >= REFERENCE_FLOOR for entry in comparisons)
    agreement = check_agreement(small.session, expected, small.images, None)
    assert agreement.tolerance == reference_tolerance(expected)
    shifted = expected + 2 * np.float32(agreement.tolerance)
    with pytest.raises(ParityError, match="differ by up to"):
        check_agreement(small.session, shifted, small.images, None)


def test_running_statistics_of_instance_norm_fold_as_batch_norm():
    torch.manual_seed(0)

    def norm(channels):
        layer = nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)
        nn.init.normal_(layer.running_mean, 0, 0.5)
        nn.init.uniform_(layer.running_var, 0.3, 3)
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
        return layer

    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), ResidualBlock(8, norm), *head)
    sound = exported(network)
    check_parity(sound.session, sound.reference(), sound.images)
    folds = {
        fold.name: fold.action
        for fold in build_network(network.eval(), sound.metadata).folds
        if "norm" in fold.name
    }
    assert folds == {"1.body.norm1": "folded", "1.body.norm2": "folded"}
    network[1].body.norm1.running_var.mul_(1.001)
    with pytest.raises(ParityError):
        check_parity(sound.session, sound.reference(), sound.images)
