"""Builds the networks to measure: LeNet and AlexNet-224 as PyTorch modules and as exported files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.export_figures import SUBJECTS, Forms
from foldserve.artifact.format import IMAGE, LOGITS, Golden
from foldserve.artifact.golden_limits import max_tolerance
from foldserve.artifact.writer import publish_artifact
from foldserve.export.precision.fp16 import to_fp16
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

NAMES = ("lenet", "alexnet-224")
_GOLDEN_COUNT = 32


@dataclass(frozen=True)
class Network:
    """One network: the PyTorch module in evaluation mode, and its folded file in each precision."""

    name: str
    image_shape: tuple[int, int, int]
    module: nn.Module
    files: dict[str, bytes]

    def images(self, count: int) -> NDArray[np.uint8]:
        """Return seeded noise uint8 [count, C, H, W]."""
        return np.random.default_rng(count).integers(0, 256, (count, *self.image_shape), dtype=np.uint8)


def build(name: str) -> Network:
    """Return the network ``name`` with seeded weights and random batch norm statistics."""
    (subject,) = (each for each in SUBJECTS if each.name == name)
    forms = Forms(subject, is_compiled=False)
    folded = forms.files["folded"]
    shape = (subject.channels, subject.side, subject.side)
    return Network(name, shape, forms.module, {"fp32": folded, "fp16": to_fp16(folded)})


def publish(network: Network, precision: str, repository: Path) -> str:
    """Publish one file of ``network`` as a model of its own in ``repository``; return the model's name."""
    images = network.images(_GOLDEN_COUNT)
    content = network.files[precision]
    (own,) = Session(content, device="cpu").run((LOGITS,), {IMAGE: images})
    # Only speed is measured here, so the file's own logits serve as the reference, with the largest tolerance
    # that a server accepts.
    tolerance = max_tolerance(own, precision)
    golden = Golden(images, own, own, tolerance, tolerance, synthetic=True)
    name = f"{network.name}-{precision}"
    publish_artifact(repository / name, model=content, golden=golden, manifest={"precision": precision})
    return name
