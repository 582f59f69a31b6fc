"""Choosing the number of threads by a trial, which has no other effect."""

from collections.abc import Iterator

import pytest
import torch

from foldserve.training.engine.threads import fastest_thread_count, set_fastest_thread_count
from foldserve.training.models import Normalized, create_model


@pytest.fixture(autouse=True)
def own_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param({8: 1.0, 4: 2.0, 2: 4.0, 1: 8.0}, 8, id="idle machine"),
        pytest.param({8: 20.0, 4: 10.0, 2: 3.0, 1: 1.0}, 1, id="busy machine"),
        pytest.param({8: 3.0, 4: 1.0, 2: 1.5, 1: 2.0}, 4, id="best in between"),
        pytest.param({8: 1.0, 4: 0.9, 2: 0.9, 1: 0.9}, 8, id="not worth giving threads up"),
    ],
)
def test_the_fastest_thread_count_is_set(seconds: dict[int, float], expected: int) -> None:
    now_s = 0.0

    def step() -> None:
        nonlocal now_s
        now_s += seconds[torch.get_num_threads()]

    assert fastest_thread_count(step, 8, clock=lambda: now_s) == expected
    assert torch.get_num_threads() == expected


def test_an_odd_thread_count_is_halved_down_to_one() -> None:
    tried = []
    fastest_thread_count(lambda: tried.append(torch.get_num_threads()), 6)
    assert list(dict.fromkeys(tried)) == [6, 3, 1]


def test_the_thread_trial_changes_neither_model_nor_random_state() -> None:
    network = create_model("lenet", in_channels=1, class_count=10, height=28, width=28, dropout=0.5)
    model = Normalized(network, (0.3,), (0.4,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    state = torch.get_rng_state()
    count, most = set_fastest_thread_count(model, images)
    assert 1 <= count <= most
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")  # torch's own
def test_the_thread_count_stays_for_a_network_that_cannot_be_copied() -> None:
    model = torch.nn.utils.weight_norm(torch.nn.Linear(3, 2))
    count = torch.get_num_threads()
    assert set_fastest_thread_count(model, torch.rand(4, 3)) == (count, count)
    assert torch.get_num_threads() == count
