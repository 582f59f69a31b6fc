"""Every network of the registry through the exporter: all batch norm folded, the same answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

from foldserve.artifact.format import ModelMetadata
from foldserve.export.errors import ParityError
from foldserve.export.verification.parity import check_parity
from foldserve.export.verification.reference import TorchReference
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized, create_model
from tests.support.torch_networks import build_network, randomised

if TYPE_CHECKING:
    from foldserve.export.graph.build import BuiltModel


@dataclass(frozen=True)
class Export:
    module: Normalized
    built: BuiltModel
    session: Session
    images: np.ndarray
    batch_norm_count: int


CASES = {
    "alexnet small": ("alexnet", (1, 28), {}),
    "alexnet large": ("alexnet", (3, 96), {"width_factor": 0.1}),
    "lenet": ("lenet", (1, 28), {}),
    "resnet small": ("resnet", (3, 32), {"depth": 8}),
    "resnet large": ("resnet", (3, 66), {"depth": 8}),
}


@pytest.fixture(scope="module", params=CASES)
def export(request: pytest.FixtureRequest) -> Export:
    arch, (channels, side), arguments = CASES[request.param]
    torch.manual_seed(5)
    network = create_model(arch, in_channels=channels, class_count=4, height=side, width=side, **arguments)
    module = Normalized(randomised(network), (0.4,) * channels, (0.3,) * channels).eval()
    spec = ImageSpec(
        channel_order="L" if channels == 1 else "RGB", height=side, width=side, resize_shorter_side=side
    )
    metadata = ModelMetadata(("a", "b", "c", "d"), (0.4,) * channels, (0.3,) * channels, spec)
    built = build_network(module.network, metadata)
    return Export(
        module=module,
        built=built,
        session=Session(built.content, device="cpu", intra_op_threads=1),
        images=np.random.default_rng(2).integers(0, 256, (8, *spec.shape), dtype=np.uint8),
        batch_norm_count=sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules()),
    )


def test_every_batch_norm_goes_into_its_convolution(export: Export):
    folds = [fold for fold in export.built.folds if "norm" in fold.name]
    assert [fold.action for fold in folds] == ["folded"] * export.batch_norm_count
    operations = {node.op_type for node in onnx.load_from_string(export.built.content).graph.node}
    assert "BatchNormalization" not in operations


def test_the_file_answers_as_the_network_does(export: Export):
    check_parity(export.session, TorchReference(export.module), export.images)


def test_file_with_other_weights_is_detected(export: Export):
    """The twin: one weight of the last layer moved by a thousandth of what the logits are."""
    last = list(export.module.network.parameters())[-1]
    with torch.no_grad():
        scale = float(np.abs(TorchReference(export.module).logits(export.images)).max())
        last[0] += 1e-3 * scale
        try:
            with pytest.raises(ParityError, match="nothing was published"):
                check_parity(export.session, TorchReference(export.module), export.images)
        finally:
            last[0] -= 1e-3 * scale
