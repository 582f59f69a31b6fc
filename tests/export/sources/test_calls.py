"""What ends a network is found whatever was recorded before with the same weights."""

from __future__ import annotations

import torch

from foldserve.export.sources.calls import Calls, find_sigmoid, find_softmax

SCALE = torch.tensor(2.0)


def recorded(*, probabilities: bool) -> Calls:
    calls = Calls()
    with calls:
        logits = torch.arange(6.0).reshape(2, 3)
        # Returns the very tensor, which is there for the next recording too.
        scaled = logits * SCALE.to(torch.float32).contiguous()
        calls.output = scaled.softmax(1) if probabilities else scaled
    return calls


def test_a_weight_of_an_earlier_recording_leads_nowhere():
    """It led to the call that returns it, which led to itself, for ever."""
    for _ in range(2):
        for probabilities in (True, False):
            calls = recorded(probabilities=probabilities)
            assert (find_softmax(calls) is not None) == probabilities
            assert find_sigmoid(calls) is None
