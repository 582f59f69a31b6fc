"""Networks of one's own that end in probabilities, one way or another, as a module of the user's project."""

from __future__ import annotations

ENDS = """
import torch
from own_networks import Net
from torch import nn
from torch.nn import functional as F

def in_place(y):
    z = y.clone().exp_()
    z /= z.sum(1, keepdim=True)
    return z


TAKEN_OFF = {
    "function": lambda y: F.softmax(y, dim=1),
    "torch": lambda y: torch.softmax(y, -1),
    "method": lambda y: y.softmax(dim=-1),
    "special": lambda y: torch.special.softmax(y, 1),
    "module": nn.Softmax(dim=1),
    "in float32 by name": lambda y: F.softmax(y, dim=1, dtype=torch.float32),
    "in doubles and back": lambda y: F.softmax(y.double(), dim=1).to(torch.float32),
    "module of logarithms": nn.LogSoftmax(dim=1),
    "logarithms": lambda y: F.log_softmax(y, 1),
    "of a map, flattened": lambda y: F.softmax(y[:, :, None, None], 1).flatten(1),
    "of a map, reshaped": lambda y: F.softmax(y[:, :, None, None], 1).reshape(y.shape[0], -1),
    "of a map, squeezed": lambda y: torch.softmax(y[:, :, None, None], 1).squeeze(-1).squeeze(-1),
    "of a map, indexed": lambda y: torch.softmax(y[:, :, None, None], 1)[:, :, 0, 0],
    "of a row": lambda y: nn.Softmax(dim=2)(y[:, None]).view(-1, 5),
    "with a temperature": lambda y: torch.softmax(y / 3, 1),
    "behind another": lambda y: torch.softmax(y + torch.softmax(y, 1), 1),
    "written out": lambda y: y.exp() / y.exp().sum(1, keepdim=True),
    "written out stably": lambda y: (z := (y - y.amax(1, keepdim=True)).exp()) / z.sum(1, keepdim=True),
    "written out in place": in_place,
    "by a reciprocal": lambda y: y.exp() * (1 / y.exp().sum(1, keepdim=True)),
    "written out, reshaped": lambda y: (z := torch.exp(y)) / z.sum(1)[:, None],
    "exponential of logarithms": lambda y: F.log_softmax(y, 1).exp(),
    "by the logarithm of a sum": lambda y: torch.exp(y - y.logsumexp(1, keepdim=True)),
    "normalised": lambda y: F.normalize(torch.softmax(y, 1), p=1),
    "powers, normalised": lambda y: F.normalize(y.exp(), p=1, dim=1),
}
REFUSED = {
    "clipped": lambda y: torch.softmax(y, 1).clamp(1e-6, 1 - 1e-6),
    "clipped to nothing": lambda y: torch.softmax(y, 1).clamp(0, 1),
    "smoothed": lambda y: torch.softmax(y, 1) * 0.9 + 0.02,
    "in per cent": lambda y: 100 * torch.softmax(y, 1),
    "over the images": lambda y: torch.softmax(y, 0),
    "written out over the images": lambda y: y.exp() / y.exp().sum(0, keepdim=True),
    "written out with a floor": lambda y: y.exp() / (y.exp().sum(1, keepdim=True) + 1),
    "written out in per cent": lambda y: 100 * y.exp() / y.exp().sum(1, keepdim=True),
    "over everything": lambda y: torch.softmax(y.flatten(), 0).reshape(y.shape),
    "over nothing": lambda y: torch.softmax(y[:, :, None], 2)[:, :, 0],
    "sigmoid": lambda y: y.sigmoid(),
    "sigmoid of little": lambda y: torch.sigmoid(y / 1000),
    "sigmoid, reshaped": lambda y: torch.sigmoid(y[:, :, None]).reshape(-1, 5),
    "sigmoid, clipped": lambda y: torch.sigmoid(y).clamp(1e-6, 1 - 1e-6),
    "logarithms of sigmoids": lambda y: F.logsigmoid(y),
    "its opposite": lambda y: 1 - torch.sigmoid(y),
    "sigmoid written out": lambda y: 1 / (1 + torch.exp(-y / 1000)),
    "sigmoid by tanh": lambda y: (torch.tanh(y / 2) + 1) / 2,
    "hard sigmoid": lambda y: F.hardsigmoid(y),
    "one logit": lambda y: y[:, :1],
    "one probability": lambda y: torch.sigmoid(y[:, :1]),
    "yes and no": lambda y: torch.cat([1 - torch.sigmoid(y[:, :1]), torch.sigmoid(y[:, :1])], 1),
    "choice": lambda y: y.argmax(1, keepdim=True),
    "choice as a float": lambda y: y.argmax(1, keepdim=True).float(),
    "the best": lambda y: y.topk(1).values,
    "place of the largest": lambda y: y.max(1).indices,
    "one of all": lambda y: F.one_hot(y.argmax(1), 5).float(),
}
# With two labels: a logit of the second, or its probability.
BINARY = {
    "one logit": lambda y: y[:, :1],
    "one logit, flat": lambda y: y[:, 0],
    "one logit of a map": lambda y: y[:, :1, None, None],
    "one probability": lambda y: torch.sigmoid(y[:, :1]),
    "one probability, flat": lambda y: y[:, :1].sigmoid().squeeze(1),
    "one logarithm": lambda y: F.logsigmoid(y[:, :1]),
    "one logarithm of a sigmoid": lambda y: torch.sigmoid(y[:, :1]).log(),
}
BINARY_REFUSED = {
    "written out": lambda y: 1 / (1 + torch.exp(-y[:, :1])),
    "its opposite": lambda y: 1 - torch.sigmoid(y[:, :1]),
    "hard": lambda y: F.hardsigmoid(y[:, :1]),
    "softmax of one": lambda y: torch.softmax(y[:, :1], 1),
    "yes or no": lambda y: (y[:, 0] > 0).long(),
    "the other's logarithm": lambda y: -F.softplus(y[:, :1]),
}
LOGITS = {
    "as they are": lambda y: y,
    "with a softmax before": lambda y: y * torch.softmax(y, 1),
    "bounded": lambda y: 8 * torch.tanh(y / 8),
    "of a sigmoid linear unit": lambda y: y * torch.sigmoid(y),
    "shares": lambda y: torch.log(torch.softmax(y / 10, 1)),
    "positive": lambda y: F.softplus(y),
    "powers over other powers": lambda y: y.exp() / (2 * y).exp().sum(1, keepdim=True),
}


class Ended(Net):
    def __init__(self, end):
        super().__init__(5)
        self.end = end

    def forward(self, x):
        return self.end(super().forward(x))


def make(end):
    return lambda: Ended(end)

for kind, ends in (("taken_off", TAKEN_OFF), ("refused", REFUSED), ("logits", LOGITS),
    ("binary", BINARY), ("binary_refused", BINARY_REFUSED)):
    for index, end in enumerate(ends.values()):
        globals()[f"{kind}_{index}"] = make(end)
"""


def names(kind: str) -> list[str]:
    """What a table in ENDS calls its entries; they are built by their position."""
    table = ENDS.split(f"\n{kind} = {{")[1].split("\n}", maxsplit=1)[0]
    return [line.split('"')[1] for line in table.splitlines() if line]


TAKEN_OFF, REFUSED, LOGITS = names("TAKEN_OFF"), names("REFUSED"), names("LOGITS")
BINARY, BINARY_REFUSED = names("BINARY"), names("BINARY_REFUSED")
