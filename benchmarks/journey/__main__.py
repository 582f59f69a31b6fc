"""`python -m benchmarks.journey`: 500 JPEGs of 5 unequal classes, from a folder to a served model.

Makes the pictures from Fashion-MNIST (`benchmarks/journey/pictures.py`), and weights to start from, trained
on other classes. Then, for each seed, runs the commands of a user twice: with the defaults, and with --init
and balance. Each time it trains, exports, serves, classifies, and judges the published version on 1,000
pictures that no training saw, 200 of each class. Prints each command with its output, and a table of the
macro-F1 and of the time from the first command to the server's answer, by the clock and of all CPUs. Finished
parts are not repeated, but their time is kept.
"""

from __future__ import annotations

import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel, Field

from benchmarks.flags import parse_flags
from benchmarks.journey.pictures import COUNTS, write_pictures
from foldserve.demo.children import ending_with_us, environment_without_settings
from foldserve.demo.server_process import running_server

PROGRAM = "benchmarks.journey"
_RESULT = "journey.json"


class Config(BaseModel, frozen=True, use_attribute_docstrings=True):
    """Where the journey goes, and how often."""

    seeds: int = Field(5, ge=1)
    """Number of seeds, from 0."""

    folder: Path = Path("runs/journey")
    """Folder for pictures, runs and models."""

    time_limit: str = "3m"
    """--time-limit of each training, of the 5 minutes that a journey may take."""

    threads: int | None = Field(None, ge=1)
    """--threads of each training; by default as it chooses."""


def main() -> int:
    """Go the way for each seed and arm; print the table; return 0."""
    config = parse_flags(Config, PROGRAM)
    folders = write_pictures(config.folder)
    donor = config.folder / "donor"
    _shown("train", "--arch", "resnet", "--dataset", folders["others"], "--run-dir", donor,
           "--time-limit", config.time_limit, *_threads(config))  # fmt: skip
    arms = {
        "defaults": (),
        "--init and balance": ("--init", donor, "--sampler", "balanced", "--select", "macro-f1"),
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for seed in range(config.seeds):
        for number, (name, flags) in enumerate(arms.items()):
            place = config.folder / f"seed-{seed}-arm-{number}"
            results[name].append(_journey(config, place, folders, seed, *map(str, flags)))
    _print_table(results)
    return 0


def _journey(
    config: Config, place: Path, folders: dict[str, Path], seed: int, *flags: str
) -> dict[str, float]:
    """Return macro-F1, accuracy, recall of the rarest class and seconds, recorded if the journey is done."""
    record = place / _RESULT
    if record.exists():
        return dict(json.loads(record.read_text()))
    started_s, cpu_before_s = time.monotonic(), _cpu_s()
    run, models = place / "run", place / "models"
    _shown("train", "--dataset", folders["pictures"], "--run-dir", run, "--seed", seed,
           "--time-limit", config.time_limit, *_threads(config), *flags)  # fmt: skip
    _shown("export", run, "--repository", models, "--name", "garments")
    pictures = [folders["judged"] / label.replace("/", "-") / "0000.jpg" for label in COUNTS]
    with running_server(models, device="cpu", log=place / "server.log") as address:
        _shown("classify", "--server", address, "--model", "garments", *pictures)
        took_s = time.monotonic() - started_s
    cpu_s = _cpu_s() - cpu_before_s
    report = place / "evaluation"
    _shown(
        "evaluate",
        models / "garments",
        "--data",
        folders["judged"],
        "--out",
        report,
        "--overwrite",
        "--worst",
        3,
    )
    measures = json.loads((report / "metrics.json").read_text())
    rarest = min(COUNTS, key=COUNTS.__getitem__).replace("/", "-")
    result = {
        "macro_f1": measures["macro_f1"],
        "accuracy": measures["accuracy"],
        "rarest_recall": next(each["recall"] for each in measures["classes"] if each["label"] == rarest),
        "took_s": took_s,
        "cpu_s": cpu_s,
    }
    record.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _cpu_s() -> float:
    """Return the CPU seconds of the commands that have ended, which do not grow if the machine is busy."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _threads(config: Config) -> tuple[object, ...]:
    return () if config.threads is None else ("--threads", config.threads)


def _shown(*words: object) -> None:
    """Run a command of foldserve, which prints, after printing it as it is typed.

    Raises:
        CalledProcessError: it failed.
    """
    texts = [str(word) for word in words]
    print(f"$ foldserve {shlex.join(texts)}", flush=True)
    command = [sys.executable, "-m", "foldserve", *texts]
    subprocess.run(ending_with_us(command), check=True, env=environment_without_settings())


def _print_table(results: dict[str, list[dict[str, float]]]) -> None:
    count = len(next(iter(results.values())))
    columns = ("macro-F1", "accuracy", "recall of the rarest", "minutes", "CPU minutes")
    print(f"\n| {count} seeds: mean (least to most) | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|")
    for name, found in results.items():
        cells = [
            _spread([each[key] for each in found], "{:.1%}")
            for key in ("macro_f1", "accuracy", "rarest_recall")
        ]
        cells += [_spread([each[key] / 60 for each in found], "{:.1f}") for key in ("took_s", "cpu_s")]
        print(f"| {name} | {' | '.join(cells)} |")


def _spread(values: list[float], form: str) -> str:
    mean, least, most = (form.format(value) for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
