"""A network that cannot be traced or converted is refused by the module's name and the reason in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foldserve.export.errors import TraceError
from foldserve.export.graph.trace import trace


class Conditional(nn.Module):
    """As timm's CondConv: images become groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(4, 8 * 8 * 9) * 0.1)
        self.mix = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        weight = (self.mix(x.mean((2, 3))).sigmoid() @ self.weights).view(n * 8, 8, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), weight, padding=1, groups=n).view(n, 8, h, w)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Repeat(nn.Module):
    def forward(self, this: torch.Tensor) -> torch.Tensor:
        for _ in range(int(this.abs().max())):
            this = this * 2
        return this


class Number(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.mean())


class EachImage(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([image * 2 for image in x])


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class Eigenvalues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.linalg.eigvals(x[..., :5, :5]).real.sum()


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Sequential(nn.ReLU(), inner),
            nn.Linear(8, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            Conditional(),
            r"blocks\.1 \(Conditional\) computes a convolution whose number of groups is the number",
        ),
        (
            Branch(),
            r"blocks\.1 \(Branch, test_trace_faults\.py, line \d+: return x if .*\) decides by the values",
        ),
        (Repeat(), r"blocks\.1 \(Repeat, .*: for _ in range.*\) decides by the values of the image"),
        (Number(), r"blocks\.1 \(Number, .*float.*\) decides by the values of the image"),
        (EachImage(), "takes the number of images for a constant"),
        (Numpy(), r"blocks\.1 \(Numpy, .*numpy\(\) \* 2\).*: \.numpy\(\) is not supported"),
        (
            Eigenvalues(),
            r"blocks\.1 \(Eigenvalues\) computes aten\.linalg_eig, which PyTorch cannot write as ONNX",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_module_and_reason_are_named(inner, message, capfd):
    with pytest.raises(TraceError, match=message) as raised:
        trace(Around(inner).eval(), (3, 12, 12))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")  # PyTorch prints the graph that it could not trace


def test_groups_that_are_constant_are_traced():
    """The twin: the same module with as many groups as weights."""
    trace(Around(nn.Conv2d(8, 8, 3, groups=4)).eval(), (3, 12, 12))
