"""`python -m benchmarks.regression`: CPU time per request, at most a tenth above the stored baseline.

Counts processor time, not seconds, as a ratio to a bare loop that is loaded in turn with foldserve, so that a
busy machine changes little; measures until the answer is certain, and says so if it never is. The exit status
is 1 if something is slower, 2 if that could not be told.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, ValidationError

from benchmarks.flags import parse_flags
from benchmarks.regression.baseline import BASELINE, Baseline, StoredRatio, read_baseline, this_machine
from benchmarks.regression.cases import CASES, CaseName
from benchmarks.regression.judge import Estimate, judge
from benchmarks.regression.rounds import measure_case
from benchmarks.serving.errors import BenchError
from benchmarks.serving.load import require_h2load
from benchmarks.serving.networks import lenet

if TYPE_CHECKING:
    from benchmarks.serving.networks import Network

_STATUS = {"ok": 0, "slower": 1, "undecided": 2}
# A baseline is measured more exactly than the 10 % that it is to show.
_BASELINE_ROUNDS = 24
_BASELINE_WIDTH = 0.03


class RegressionConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Compare the CPU time of a request with the stored baseline, as ratios to bare loops."""

    cases: list[CaseName] = Field(
        default=["batch-of-32", "batch-of-1", "32-images", "native-code", "grpcio-code"], min_length=1
    )
    """What to compare. The defaults run in this process; native, grpcio and native-32-images are whole
    servers with one caller, for quiet machines: store their ratios with --update first. Several: --cases
    once for each."""
    baseline: Path = BASELINE
    """File with the stored ratios."""
    allowed: float = Field(default=0.1, gt=0)
    """Share by which a ratio may lie above the stored one."""
    rounds: int = Field(default=60, ge=8)
    """Most rounds per case; fewer are enough where the answer is clear, eight at least."""
    cpu_s: float = Field(default=0.25, gt=0)
    """CPU seconds of a server per measurement; two measurements make a round."""
    processors: int = Field(default=2, ge=1)
    """Processors that servers and client share: the first so many of those this process may use."""
    planted_us: float = Field(default=0.0, ge=0)
    """Slow foldserve down by so many microseconds per request, to see this check fail."""
    update: bool = False
    """Measure and store the ratios of the chosen cases as the new baseline."""


def run(config: RegressionConfig) -> int:
    """Compare or update; return the exit status."""
    if any(CASES[name].needs_h2load for name in config.cases):
        require_h2load()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.processors])
    with tempfile.TemporaryDirectory(prefix="bench-regression-") as folder:
        network = lenet(Path(folder))
        return _update(config, network) if config.update else _compare(config, network)


def _compare(config: RegressionConfig, network: Network) -> int:
    baseline = read_baseline(config.baseline)
    unknown = [name for name in config.cases if name not in baseline.cases]
    if unknown:
        raise BenchError(
            f"{config.baseline} has no {', '.join(unknown)}: --update --cases {unknown[0]} adds it"
        )
    for name, here in this_machine().items():
        if (there := baseline.measured_on.get(name, "unknown")) != here:
            print(f"note: {name} is {here} here, {there} in the baseline")
    verdicts = []
    for case_name in config.cases:
        case, stored = CASES[case_name], baseline.cases[case_name].ratio
        limit = stored * (1 + config.allowed)
        is_decided = partial(_is_decided, limit=limit, rounds=config.rounds)
        found = measure_case(
            case, network, cpu_s=config.cpu_s, planted_us=config.planted_us, is_enough=is_decided
        )
        verdicts.append(judge(found, limit))
        text = f"{case.title:31} {found} x the bare loop, baseline {stored:.3f}, limit {limit:.3f}"
        print(f"{verdicts[-1]:9} {text} ({found.count} rounds)", flush=True)
    if "undecided" in verdicts:
        print("undecided: the interval holds the limit; use a quieter machine, --rounds or --cpu-s")
    return 1 if "slower" in verdicts else max(_STATUS[verdict] for verdict in verdicts)


def _is_decided(found: Estimate, *, limit: float, rounds: int) -> bool:
    return judge(found, limit) != "undecided" or found.count >= rounds


def _update(config: RegressionConfig, network: Network) -> int:
    if config.planted_us:
        raise BenchError("--update with --planted-us would store a slowdown as the baseline")
    kept = read_baseline(config.baseline).cases if config.baseline.exists() else {}
    cases = dict(kept)
    for name in config.cases:
        found = measure_case(
            CASES[name], network, cpu_s=config.cpu_s, is_enough=lambda now: _is_exact(now, config.rounds)
        )
        print(f"{CASES[name].title:32} {found} x the bare loop ({found.count} rounds)", flush=True)
        if found.relative_width > _BASELINE_WIDTH:
            raise BenchError(
                f"{name} is known to {found.relative_width:.0%} after {found.count} rounds, "
                f"{_BASELINE_WIDTH:.0%} are needed: use a quieter machine or more --rounds; nothing written"
            )
        cases[name] = StoredRatio(
            ratio=round(found.ratio, 4),
            least=round(found.least, 4),
            most=round(found.most, 4),
            rounds=found.count,
        )
    ordered = {name: cases[name] for name in CASES if name in cases}
    Baseline(measured_on=this_machine(), cases=ordered).write(config.baseline)
    print(f"wrote {config.baseline}")
    return 0


def _is_exact(found: Estimate, rounds: int) -> bool:
    return found.count >= rounds or (
        found.count >= _BASELINE_ROUNDS and found.relative_width <= _BASELINE_WIDTH
    )


def main() -> int:
    """Run, turning what is wrong with the flags or the servers into one line and exit status 3."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(parse_flags(RegressionConfig, "benchmarks.regression"))
    except ValidationError as error:
        details = "; ".join(f"--{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        print(f"benchmarks.regression: {details.replace('_', '-')}", file=sys.stderr)
    except (BenchError, OSError) as error:
        print(f"benchmarks.regression: {error}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
