"""Networks of other people's design through the exporter: each batch norm's fate, the answers, and a twin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from torch import nn

from foldserve.artifact.format import ModelMetadata
from foldserve.export.errors import ParityError
from foldserve.export.verification.parity import check_parity
from foldserve.export.verification.reference import TorchReference
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized
from tests.support.architectures import NETWORKS, Expected
from tests.support.architectures.signals import MEAN, SIDE, STD, pictures, with_signal
from tests.support.torch_networks import build_network

if TYPE_CHECKING:
    import numpy as np

    from foldserve.export.graph.build import BuiltModel

SPEC = ImageSpec(channel_order="RGB", height=SIDE, width=SIDE, resize_shorter_side=SIDE)
METADATA = ModelMetadata(tuple("0123456789"), MEAN, STD, SPEC)

# The kinds of connection that differ; the others repeat them, and the slow tests have them all.
QUICK = {"DenseNet", "EfficientNet", "Inception v3", "RepVGG", "SE-ResNeXt", "ShuffleNetV2"}


@dataclass(frozen=True)
class Export:
    expected: Expected
    network: nn.Module
    built: BuiltModel
    session: Session
    images: np.ndarray

    @property
    def reference(self) -> TorchReference:
        return TorchReference(Normalized(self.network, MEAN, STD).eval())

    def built_again(self) -> Session:
        """The file without batch norms that moved past a ReLU."""
        built = build_network(self.network, METADATA, moves_clips=False)
        return Session(built.content, device="cpu", intra_op_threads=1)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NETWORKS],
)
def export(request: pytest.FixtureRequest) -> Export:
    return export_once(request.param)


@cache
def export_once(name: str) -> Export:
    """Random order may ask for a network several times."""
    expected = NETWORKS[name]
    network = with_signal(expected.make())
    built = build_network(network, METADATA)
    session = Session(built.content, device="cpu", intra_op_threads=1)
    return Export(expected, network, built, session, pictures(32, seed=8))


def test_each_batch_norm_is_folded_or_says_why_not(export: Export):
    folds = [fold for fold in export.built.folds if fold.name != "input scaling"]
    count = sum(isinstance(module, nn.BatchNorm2d) for module in export.network.modules())
    assert len(folds) == count
    assert [fold.action for fold in folds].count("folded") == export.expected.folded
    reasons = [fold.reason for fold in folds if fold.action == "rewritten"]
    assert {part: sum(part in reason for reason in reasons) for part in export.expected.rewritten} == (
        export.expected.rewritten
    )
    assert sum(export.expected.rewritten.values()) == len(reasons)
    model_proto = onnx.load_from_string(export.built.content)
    operations = [node.op_type for node in model_proto.graph.node]
    assert not {"BatchNormalization", "Identity", "Dropout"} & set(operations)
    assert {entry.domain for entry in model_proto.opset_import} == {""}


def test_the_file_answers_as_the_network_does(export: Export):
    logits = export.reference.logits(export.images)
    assert logits.std(axis=0).mean() > 1, "answers that are all alike would hide a wrong fold"
    try:
        check_parity(export.session, export.reference, export.images)
    except ParityError:  # of DPN with some weights: its ReLUs pass little, and the exporter builds it again
        assert export.built.has_moved_clips
        check_parity(export.built_again(), export.reference, export.images)


def test_one_changed_weight_in_the_first_layer_fails(export: Export):
    """The twin, in the first layer: what moves there has the whole network to get lost in."""
    first = next(module for module in export.network.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight[1, 1, 0, 0] += 0.01
        try:
            with pytest.raises(ParityError, match="nothing was published"):
                check_parity(export.session, export.reference, export.images)
        finally:
            first.weight[1, 1, 0, 0] -= 0.01
