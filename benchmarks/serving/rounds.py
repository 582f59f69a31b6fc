"""Runs interleaved rounds: all servers of a group run at once and are loaded in turn, one at a time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.serving.check import checked_answer_bytes, request_body
from benchmarks.serving.errors import ContestantMissingError
from benchmarks.serving.load import measure
from benchmarks.serving.model_cost import ModelCost, mean_batch, with_model_cost
from benchmarks.serving.raw_runtime import RawRuntime
from benchmarks.serving.rows import is_shared_out, trials_of
from benchmarks.serving.server_process import running

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.serving.config import BenchServingConfig, Group
    from benchmarks.serving.contestants import Contestant
    from benchmarks.serving.load import Measurement
    from benchmarks.serving.networks import Network
    from benchmarks.serving.rows import Trial
    from benchmarks.serving.server_process import ServerProcess

# Enough to bring memory, threads and the client's own code to their usual state on the slowest server here.
_WARM_UP_REQUESTS = 200
_LEAST_REQUESTS = 100


@dataclass
class GroupResult:
    """Measurements by trial, one a round, and why some trials have none."""

    measurements: dict[Trial, list[Measurement]] = field(default_factory=dict)
    missing: dict[Contestant, str] = field(default_factory=dict)


def measure_group(
    group: Group, network: Network, config: BenchServingConfig, say: Callable[[str], None]
) -> GroupResult:
    """Start the servers of a group, check their answers, load them round by round, and check again.

    Raises:
        BenchError: a server ended, failed or answered wrongly; what is missing is noted instead.
    """
    result = GroupResult()
    trials = trials_of(group)
    with ExitStack() as stack:
        servers = _start(trials, network, result, stack, say)
        runs = [
            _prepare(group, trial, network, servers, config) for trial in trials if _is_there(trial, servers)
        ]
        for number in range(1, config.rounds + 1):
            say(f"{group}: round {number} of {config.rounds}")
            # Every other round backwards, so that nobody always follows the same neighbour.
            for trial, run in runs if number % 2 else reversed(runs):
                result.measurements.setdefault(trial, []).append(run())
        for trial, _ in runs:
            if trial.contestant is not None:
                checked_answer_bytes(servers[trial.contestant], network, trial.load.images)
    return result


def _start(
    trials: list[Trial], network: Network, result: GroupResult, stack: ExitStack, say: Callable[[str], None]
) -> dict[Contestant, ServerProcess]:
    servers = {}
    for contestant in dict.fromkeys(trial.contestant for trial in trials if trial.contestant is not None):
        say(f"starting {contestant} on {network.name}")
        try:
            servers[contestant] = stack.enter_context(running(contestant, network))
        except ContestantMissingError as error:
            result.missing[contestant] = str(error)
    return servers


def _is_there(trial: Trial, servers: dict[Contestant, ServerProcess]) -> bool:
    return trial.contestant is None or trial.contestant in servers


def _prepare(
    group: Group,
    trial: Trial,
    network: Network,
    servers: dict[Contestant, ServerProcess],
    config: BenchServingConfig,
) -> tuple[Trial, Callable[[], Measurement]]:
    """Check the answers, warm up and fix the number of requests; return a function that measures once."""
    if trial.at_batch_of is not None:
        return trial, _prepare_at_batch_of(servers[trial.at_batch_of], trial, network, config)
    if trial.contestant is None:
        raw = RawRuntime(network)
        return trial, lambda: raw.measure(config.seconds)
    server = servers[trial.contestant]
    answer_bytes = checked_answer_bytes(server, network, trial.load.images)
    body = request_body(server, network, trial.load.images)

    def run(requests: int) -> Measurement:
        return measure(server, trial.load, body=body, answer_bytes=answer_bytes, requests=requests)

    run(_WARM_UP_REQUESTS)
    rate = run(_WARM_UP_REQUESTS).requests_per_s
    requests = max(_LEAST_REQUESTS, round(rate * config.seconds))
    if is_shared_out(group, trial):
        cost = ModelCost(network)
        return trial, lambda: with_model_cost(lambda: run(requests), server, trial.load, cost)
    return trial, lambda: run(requests)


def _prepare_at_batch_of(
    server: ServerProcess, trial: Trial, network: Network, config: BenchServingConfig
) -> Callable[[], Measurement]:
    """Load the server to learn its mean batch; return a function that runs ONNX Runtime alone at it."""
    answer_bytes = checked_answer_bytes(server, network, trial.load.images)
    body = request_body(server, network, trial.load.images)

    def run() -> Measurement:
        return measure(server, trial.load, body=body, answer_bytes=answer_bytes, requests=_WARM_UP_REQUESTS)

    run()
    raw = RawRuntime(network, (round(mean_batch(run, server, network)[1]),))
    return lambda: raw.measure(config.seconds)
