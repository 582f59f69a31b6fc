"""Runs attempts in processes of their own, each with a limit of time and memory.

The processes are forks of one that has loaded PyTorch, the exporter and the packages, which take longer to
load than a small network to export. Nothing may have started threads before the fork: no session, no
progress bar.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.networks.usage import cpu_seconds, peak_mib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Row = dict[str, Any]
    # Writes into the folder that it is given, and tells facts as they become known.
    Job = Callable[[Path, Callable[[Row], None]], None]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.2
_SPARE_CPU_S = 30
_TAIL = 400  # characters of what a crashed process printed


@dataclass(frozen=True)
class Limits:
    """Bounds of one process: seconds of the processor and by the clock, MiB of resident memory.

    On a busy machine a network may wait far longer than it computes; the clock only ends what hangs.
    """

    cpu_seconds: float
    mib: int
    clock_seconds: float


@dataclass
class _Running:
    row: Row
    folder: tempfile.TemporaryDirectory[str]
    process: int
    started_s: float
    stopped_for: str = ""
    peak_mib: int = field(default=0)


def run_jobs(jobs: Iterable[tuple[Row, Job]], limits: Limits, at_once: int) -> Iterator[Row]:
    """Run jobs, ``at_once`` at a time; yield the row of each, with what it told, as it ends.

    A row whose process was stopped or died says so under "outcome", or under the step that it had reached.
    """
    waiting = iter(jobs)
    running: list[_Running] = []
    try:
        while True:
            while len(running) < at_once and (job := next(waiting, None)) is not None:
                running.append(_start(*job, limits))
            if not running:
                return
            time.sleep(_POLL_S)
            for each in list(running):
                _bound(each, limits)
                process, status = os.waitpid(each.process, os.WNOHANG)
                if process:
                    running.remove(each)
                    yield _finish(each, status)
    finally:
        for each in running:
            os.kill(each.process, signal.SIGKILL)
            os.waitpid(each.process, 0)
            each.folder.cleanup()


def _start(row: Row, job: Job, limits: Limits) -> _Running:
    folder = tempfile.TemporaryDirectory(prefix="bench-networks-")
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    process = os.fork()
    if process == 0:
        _become(parent, job, Path(folder.name), limits)
    return _Running(row, folder, process, time.monotonic())


def _become(parent: int, job: Job, folder: Path, limits: Limits) -> None:
    """Run the job in the forked process, and end it."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(status)
        most = int(limits.cpu_seconds) + _SPARE_CPU_S  # should the parent be gone that holds it to less
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        printed = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        gc.freeze()  # else the collector would write to, and so copy, all pages of the parent
        with (folder / "facts").open("w") as facts:

            def tell(fact: Row) -> None:
                print(json.dumps(fact), file=facts, flush=True)

            job(folder, tell)
            tell({"step": "finished"})
        status = 0
    except BaseException:  # what the benchmark's own code raises goes into the row
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)  # not sys.exit: this is a copy of the parent's stack


def _bound(running: _Running, limits: Limits) -> None:
    running.peak_mib = max(running.peak_mib, peak_mib(running.process))
    if running.stopped_for:
        return
    if cpu_seconds(running.process) > limits.cpu_seconds:
        running.stopped_for = f"took more than {limits.cpu_seconds:g} s of the processor"
    elif time.monotonic() - running.started_s > limits.clock_seconds:
        running.stopped_for = f"timed out after {limits.clock_seconds:g} s"
    elif running.peak_mib > limits.mib:
        running.stopped_for = f"took more than {limits.mib:,} MiB"
    if running.stopped_for:
        os.kill(running.process, signal.SIGKILL)


def _finish(running: _Running, status: int) -> Row:
    folder = Path(running.folder.name)
    row = dict(running.row)
    for line in _lines(folder / "facts"):
        row |= json.loads(line)
    step = row.pop("step", "build")
    if step != "finished":
        reason = running.stopped_for or _cause(status, folder / "printed")
        ended = {"outcome": "stopped" if running.stopped_for else "crashed", "reason": reason}
        # What came before the step that failed is known already.
        if step == "export":
            row |= ended
        elif step == "pytorch":
            row["pytorch"] = ended
        elif step == "judge":
            row.setdefault("outcome", "unjudged")
            row.setdefault("reason", reason)
        else:
            row |= {"outcome": "not built", "reason": reason}
        row.setdefault("peak_mib", running.peak_mib)
    running.folder.cleanup()
    return row


def _lines(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()  # the last one may be cut short


def _cause(status: int, printed: Path) -> str:
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    said = printed.read_text(errors="replace").strip() if printed.exists() else ""
    return said.splitlines()[-1][-_TAIL:] if said else f"exit status {os.waitstatus_to_exitcode(status)}"
