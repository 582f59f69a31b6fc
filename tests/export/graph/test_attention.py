"""Attention over other than four dimensions, which PyTorch's exporter refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foldserve.export.errors import ParityError, TraceError
from foldserve.export.verification.parity import check_parity
from foldserve.export.verification.reference import TorchReference
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized
from tests.support.torch_networks import build_network


class Attending(nn.Module):
    """A convolution, attention over its positions as ``form`` says, and a linear layer."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(4, 4)
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.conv(x).flatten(2).transpose(1, 2).chunk(3, dim=2)  # [N, L, 4] each
        mask = torch.arange(x.shape[2] * x.shape[3]) % 3 > 0
        options = {
            "3d": {},
            "3d, scaled": {"scale": 0.3},
            "3d, bias": {"attn_mask": mask.float()},
            "3d, mask": {"attn_mask": mask},
            "5d": {},
            "3d, causal": {"is_causal": True},
        }[self.form]
        if self.form == "5d":
            query, key, value = (part.unflatten(1, (2, 2, -1)) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, **options)
        return self.head(attended.flatten(1, -2).mean(1))


def built_and_reference(form, metadata):
    torch.manual_seed(4)
    network = Attending(form).eval()
    built = build_network(network, metadata)
    reference = TorchReference(Normalized(network, metadata.mean, metadata.std).eval())
    images = np.random.default_rng(6).integers(0, 256, (8, *metadata.image.shape), dtype=np.uint8)
    return network, built, reference, images


@pytest.mark.parametrize("form", ["3d", "3d, scaled", "3d, bias", "3d, mask", "5d"])
def test_attention_is_exported(form, metadata):
    _, built, reference, images = built_and_reference(form, metadata)
    check_parity(Session(built.content, device="cpu", intra_op_threads=1), reference, images)


def test_another_scale_is_found(metadata):
    _, built, _, images = built_and_reference("3d", metadata)
    _, _, reference, _ = built_and_reference("3d, scaled", metadata)
    with pytest.raises(ParityError):
        check_parity(Session(built.content, device="cpu", intra_op_threads=1), reference, images)


def test_causal_attention_is_refused_by_name(metadata):
    with pytest.raises(TraceError, match=re.escape("scaled_dot_product_attention")):
        built_and_reference("3d, causal", metadata)
