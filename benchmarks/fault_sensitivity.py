"""`python -m benchmarks.fault_sensitivity`: how small a fault in a file its proof still finds.

Once with as many images as are compared of small ones, 32, and once with as many as of large ones, 16.

A fault is made in a copy of a network: the weights of a layer are off by a factor, a batch norm has another
epsilon, or the mean of the input was folded into a zero-padded convolution, so that its border is not zero
but a share of the mean. What it changes in the logits is computed in float64 and added to the logits of the
sound file, which keeps that file's own rounding. The search is for the smallest size that is still found.

*Before* is the rule of 0.1: 1e-4 of the network's float32 logits, or 5e-6 of the largest; and against float64
twice PyTorch's error at each batch size, plus 1e-6 of the largest logit.
"""

from __future__ import annotations

import argparse
import bisect
import copy
import functools
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from foldserve.artifact.format import LOGITS, ModelMetadata
from foldserve.artifact.model_outputs import softmax
from foldserve.export.errors import ParityError
from foldserve.export.graph.build import build_model
from foldserve.export.graph.trace import trace
from foldserve.export.sources.verification_images import synthetic_images
from foldserve.export.verification.parity import (
    BATCH_SIZES,
    COMPARED_COUNT,
    COMPARED_COUNT_LARGE,
    check_parity,
    run_logits,
)
from foldserve.export.verification.reference import TorchReference
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized, create_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

_MEAN, _STD = 0.45, 0.25
_LARGEST, _HALVINGS = 0.1, 28
_STEPS = 4  # per halving: what differs by a fifth must not look as if it differed by a factor of two
_CLASS_COUNT = 10


class _PaddedWith(nn.Module):
    """A zero-padded convolution with ``value`` as its border."""

    def __init__(self, convolution: nn.Conv2d, value: float) -> None:
        super().__init__()
        self.convolution = copy.deepcopy(convolution)
        self.convolution.padding = (0, 0)
        self.pad = nn.ConstantPad2d(int(convolution.padding[0]), value)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.convolution(self.pad(images))
        return features


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm, added to their input."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, channels, 3, padding=1),
                norm1=norm(channels),
                relu=nn.ReLU(),
                conv2=nn.Conv2d(channels, channels, 3, padding=1),
                norm2=norm(channels),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features of the shape of ``images``."""
        return torch.relu(images + self.body(images))


def deep_network(blocks: int = 16, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Return a residual network of ``2 * blocks + 1`` convolutions for images 3x64x64."""
    layers: dict[str, nn.Module] = {"stem": nn.Conv2d(3, 32, 7, 4, 3)}
    layers |= {f"block{index}": ResidualBlock(32, norm) for index in range(blocks)}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(32, _CLASS_COUNT)}
    return nn.Sequential(OrderedDict(layers))


def with_statistics(network: nn.Module, images: NDArray[np.uint8], spread: float = 6.0) -> nn.Module:
    """Give batch norms the statistics of ``images``, and logits the standard deviation ``spread``."""
    pixels = (torch.from_numpy(images).float() / 255 - _MEAN) / _STD
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        network.train()(pixels)
        logits = network.eval()(pixels)
        mean = logits.mean(0)
        factor = spread / (logits - mean).std()
        head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        head.weight.mul_(factor)
        head.bias.sub_(mean).mul_(factor)
    return network


@dataclass(frozen=True)
class Case:
    """A network, with the modules that its faults are in."""

    name: str
    network: nn.Module
    images: NDArray[np.uint8]
    first: str
    middle: str
    norm: str


def cases() -> list[Case]:
    """Return a LeNet and a network of 33 convolutions."""
    torch.manual_seed(0)
    small, large = (_images(channels, side) for channels, side in ((1, 28), (3, 64)))
    lenet = create_model("lenet", in_channels=1, class_count=_CLASS_COUNT, height=28, width=28)
    first, norm = (_first_name(lenet, kind) for kind in (nn.Conv2d, nn.BatchNorm2d))
    return [
        Case("LeNet", with_statistics(lenet, small), small, first, "features.2.conv", norm),
        Case(
            "33 convolutions",
            with_statistics(deep_network(), _noise(64)),
            large,
            "stem",
            "block8.body.conv1",
            "block8.body.norm1",
        ),
    ]


def _images(channels: int, side: int) -> NDArray[np.uint8]:
    return synthetic_images(ImageSpec("L" if channels == 1 else "RGB", side, side, side), 64).images


def _noise(side: int) -> NDArray[np.uint8]:
    """With these statistics logits of other images are large, and float32 is worth 1e-4."""
    return np.random.default_rng(1).integers(0, 256, (32, 3, side, side), dtype=np.uint8)


def _first_name(network: nn.Module, kind: type[nn.Module]) -> str:
    found: str = next(name for name, module in network.named_modules() if isinstance(module, kind))
    return found


def weights_off(network: nn.Module, name: str, size: float) -> nn.Module:
    """Return a copy in which the weights of layer ``name`` are larger by ``size`` of themselves."""
    network = copy.deepcopy(network).double()  # a small fault is less than a float32 can tell
    with torch.no_grad():
        network.get_parameter(f"{name}.weight").mul_(1 + size)
    return network


def epsilon_off(network: nn.Module, name: str, size: float) -> nn.Module:
    """Return a copy in which the epsilon of batch norm ``name`` is larger by ``size``."""
    network = copy.deepcopy(network).double()
    module = network.get_submodule(name)
    assert isinstance(module, nn.BatchNorm2d)
    module.eps += size
    return network


def mean_at_border(network: nn.Module, name: str, size: float) -> nn.Module:
    """Return a copy whose zero-padded convolution ``name`` sees ``size`` of the mean at its border."""
    network = copy.deepcopy(network).double()
    parent, _, last = name.rpartition(".")
    convolution = network.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)
    setattr(network.get_submodule(parent), last, _PaddedWith(convolution, size * _MEAN / _STD))
    return network


class _Faulty:
    """Runs a sound file and adds what a fault changes in the logits, by image."""

    def __init__(self, session: Session, changes: Mapping[bytes, NDArray[np.float64]]) -> None:
        self._session = session
        self._changes = changes
        self.provider = session.provider
        self.props = session.props

    def run(self, _: Sequence[str], feeds: Mapping[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        (images,) = feeds.values()
        logits = self._session.run([LOGITS], dict(feeds))[0]
        logits = (logits + np.stack([self._changes[image.tobytes()] for image in images])).astype(np.float32)
        return [logits, softmax(logits).astype(np.float32)]


class _Recorded:
    """Remembers the logits of the sound network, which every fault is compared with."""

    def __init__(self, reference: TorchReference) -> None:
        self._reference = reference
        self.image_bytes = 0
        self.seen: list[NDArray[np.uint8]] = []
        self._logits: dict[bytes, NDArray[np.float32]] = {}
        self._exact: dict[bytes, NDArray[np.float64]] = {}

    def logits(
        self, images: NDArray[np.uint8], on_progress: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        key = images.tobytes()
        if key not in self._logits:
            self.seen.append(images)
            self._logits[key] = self._reference.logits(images, on_progress)
        return self._logits[key]

    def exact_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        key = images.tobytes()
        if key not in self._exact:
            exact = self._reference.exact_logits(images)
            assert exact is not None
            self._exact[key] = exact
        return self._exact[key]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 0."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    torch.set_num_threads(1)
    print(
        "| network | fault | changes a logit by | found before from | changes a logit by | found now from "
        f"| changes a logit by | with {COMPARED_COUNT_LARGE} images |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for case in cases():
        for name, make in {
            "weights of the first layer off by": lambda size, c=case: weights_off(c.network, c.first, size),
            "weights of a middle layer off by": lambda size, c=case: weights_off(c.network, c.middle, size),
            "an epsilon off by": lambda size, c=case: epsilon_off(c.network, c.norm, size),
            "share of the mean at the border": lambda size, c=case: mean_at_border(c.network, c.first, size),
        }.items():
            print(f"| {case.name} | {name} | {' | '.join(smallest_found(case, make))} |", flush=True)
    return 0


def smallest_found(case: Case, make: Callable[[float], nn.Module]) -> tuple[str, str, str]:
    """Return the smallest sizes that are found before, now, and with as few images as of large ones.

    Each is with the change of the logits.
    """
    channels, side = case.images.shape[1], case.images.shape[2]
    mean, std = (_MEAN,) * channels, (_STD,) * channels
    labels = tuple(map(str, range(_CLASS_COUNT)))
    image = ImageSpec("L" if channels == 1 else "RGB", side, side, side)
    built = build_model(
        trace(case.network, image.shape).model, ModelMetadata(labels, mean, std, image)
    ).content
    session = Session(built, device="cpu", intra_op_threads=1)
    reference = _Recorded(TorchReference(Normalized(case.network, mean, std).eval()))
    for count in (COMPARED_COUNT, COMPARED_COUNT_LARGE):  # a sound file passes
        check_parity(session, reference, case.images, count=count)
    before = reference.seen[:2]

    @functools.cache
    def with_fault(step: int) -> tuple[_Faulty, float]:
        faulty = TorchReference(Normalized(make(_size(step)), mean, std).eval())
        changes = {}
        for images in reference.seen:
            exact = faulty.exact_logits(images)
            assert exact is not None
            for one, change in zip(images, exact - reference.exact_logits(images), strict=True):
                changes[one.tobytes()] = change
        return _Faulty(session, changes), max(float(np.abs(change).max()) for change in changes.values())

    def smallest(is_found: Callable[[Session | _Faulty], bool]) -> str:
        if is_found(session):
            return "- | refused with no fault"
        # The first step that is not found: larger faults are found, smaller ones are not.
        steps = range(_HALVINGS * _STEPS)
        passes = bisect.bisect_left(steps, True, key=lambda step: not is_found(with_fault(step)[0]))
        if passes == 0:
            return f"- | above {_LARGEST:g}"
        change = with_fault(passes - 1)[1]
        return f"changes of {change:.1e} | {_size(passes - 1):.1e}"

    return (
        smallest(lambda file: _found_before(file, reference, before)),
        smallest(lambda file: _found_now(file, reference, case.images, COMPARED_COUNT)),
        smallest(lambda file: _found_now(file, reference, case.images, COMPARED_COUNT_LARGE)),
    )


def _size(step: int) -> float:
    return float(_LARGEST / 2 ** (step / _STEPS))


def _found_now(session: object, reference: _Recorded, images: NDArray[np.uint8], count: int) -> bool:
    try:
        check_parity(session, reference, images, count=count)  # type: ignore[arg-type]  # has what it uses
    except ParityError:
        return True
    return False


def _found_before(session: object, reference: _Recorded, sets: Sequence[NDArray[np.uint8]]) -> bool:
    for chosen in sets:
        logits = run_logits(session, chosen)  # type: ignore[arg-type]  # has what it uses
        expected, exact = reference.logits(chosen), reference.exact_logits(chosen)
        for size in BATCH_SIZES:
            rows = slice(0, size)
            largest = float(np.abs(expected[rows]).max())
            own = float(np.abs(expected[rows] - exact[rows]).max())
            if np.abs(logits[rows] - expected[rows]).max() > max(1e-4, 5e-6 * largest):
                return True
            if np.abs(logits[rows] - exact[rows]).max() > 2 * own + 1e-6 * max(1.0, largest):
                return True
    return False


if __name__ == "__main__":
    sys.exit(main())
