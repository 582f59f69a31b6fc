"""Real decoding processes: what they decode, and how they end, one by one and all together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from foldserve.demo.children import ending_with_us
from foldserve.imaging import ImageSpec, prepare_image
from foldserve.serving.decoding import own_process
from foldserve.serving.decoding.own_process import OwnProcess, ProcessStarter
from foldserve.serving.decoding.turn import End, Outcome, TurnRules
from foldserve.serving.decoding.wire import send_order
from foldserve.serving.errors import InternalError, UnavailableError
from tests.support.crafted import encode
from tests.support.process_tree import children_of, runs, wait_until
from tests.support.server_process import SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = ImageSpec(channel_order="RGB", height=16, width=24, resize_shorter_side=24, decode="scaled")
RULES = TurnRules(SPEC, max_pixels=2**26, takes_long=False)
RANDOM = np.random.default_rng(3)
IMAGES = [
    encode(Image.fromarray(RANDOM.integers(0, 256, (90 + side, 70, 3), np.uint8)), kind)
    for side, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP"))
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def rows_for(images: list[bytes]) -> np.ndarray:
    return np.full((len(images), *SPEC.shape), 255, np.uint8)


def decode(process: OwnProcess, images: list[bytes]) -> tuple[Outcome, np.ndarray]:
    """Decode in as many turns as it takes; return the last outcome, with the count of all."""
    rows, done_count = rows_for(images), 0
    while True:
        outcome = process.decode_turn(images[done_count:], RULES, rows[done_count:])
        done_count += outcome.done_count
        if outcome.end is not End.TIME or done_count == len(images):
            return Outcome(done_count, outcome.end, outcome.message), rows


class Decoders:
    """A starter and its processes."""

    def __init__(self) -> None:
        self.starter = ProcessStarter()
        self._made: list[OwnProcess] = []

    def new(self) -> OwnProcess:
        self._made.append(OwnProcess(self.starter))
        return self._made[-1]

    def started(self) -> OwnProcess:
        process = self.new()
        assert decode(process, IMAGES)[0].done_count == len(IMAGES)
        return process

    @property
    def launcher(self) -> subprocess.Popen[bytes]:
        assert self.starter._launcher is not None
        return self.starter._launcher

    @property
    def forks(self) -> list[int]:
        return children_of(self.launcher.pid)

    def close(self) -> None:
        self.starter.close()
        for process in self._made:
            process.close()


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with contextlib.closing(Decoders()) as of_test:
        yield of_test


def test_a_process_decodes_to_the_same_pixels(decoders: Decoders) -> None:
    process = decoders.started()
    for _ in range(3):
        outcome, rows = decode(process, IMAGES)
        assert outcome == Outcome(len(IMAGES), End.TIME)
        assert np.array_equal(rows, [prepare_image(image, SPEC) for image in IMAGES])


@linux
def test_the_server_decodes_nothing_itself_where_processes_can(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the first picture either, nor the one after a loss: it may be the one that ends decoders."""
    monkeypatch.setattr(own_process, "decode_turn", None)
    process = decoders.started()
    os.kill(decoders.forks[0], signal.SIGKILL)
    assert decode(process, IMAGES)[0].done_count == len(IMAGES)
    decoders.launcher.kill()
    for _ in range(3):
        assert decode(process, IMAGES)[0].done_count == len(IMAGES)


def test_a_refused_image_leaves_the_process_as_it_is(decoders: Decoders) -> None:
    process = decoders.started()
    before = process._process
    outcome, rows = decode(process, [IMAGES[0], b"nothing", IMAGES[1]])
    assert (outcome.done_count, outcome.end) == (1, End.REFUSED)
    assert outcome.message.startswith("not an image in a known format")
    assert np.all(rows[1:] == 255)
    assert decode(process, [b"nothing"])[0].done_count == 0
    assert decode(process, IMAGES)[0].done_count == len(IMAGES)
    assert process._process is before


def test_a_fault_of_the_decoder_leaves_the_process_as_it_is(decoders: Decoders) -> None:
    """Any other error than of the image: the server gets a traceback for its log."""
    process = decoders.started()
    before = process._process
    wrong: Any = replace(RULES, max_pixels=None)
    with pytest.raises(RuntimeError, match=r"(?s)the decoder has a fault:.*in check_cost.*TypeError"):
        process.decode_turn(IMAGES, wrong, rows_for(IMAGES))
    assert decode(process, IMAGES)[0].done_count == len(IMAGES)
    assert process._process is before


@linux
def test_processes_give_way_and_ignore_signals_to_all(decoders: Decoders) -> None:
    decoders.started()
    (fork,) = decoders.forks
    assert os.getpriority(os.PRIO_PROCESS, fork) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    assert Path(f"/proc/{fork}/oom_score_adj").read_text() == "1000\n"
    for number in (fork, decoders.launcher.pid):
        for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(number, sent)
    another = decoders.started()
    assert len(decoders.forks) == 2
    assert decode(another, IMAGES)[0].done_count == len(IMAGES)


@linux
def test_a_picture_that_ends_each_process_fails_its_turn_and_no_other(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = decoders.started()
    (fork,) = decoders.forks
    second = decoders.started()
    (other,) = set(decoders.forks) - {fork}
    ended = []

    def send_and_kill(*arguments: Any) -> None:
        (used,) = set(decoders.forks) - {other}
        os.kill(used, signal.SIGSTOP)  # so that it has not answered when it is killed
        send_order(*arguments)
        os.kill(used, signal.SIGKILL)
        wait_until(lambda: not runs(used))
        ended.append(used)

    with monkeypatch.context() as patched:
        patched.setattr(own_process, "send_order", send_and_kill)
        with pytest.raises(InternalError, match="the processes that decoded the request's images ended"):
            decode(first, IMAGES)
    assert len(ended) == 2
    assert ended[0] == fork
    assert "decoding processes were lost that decoded 5 images" in caplog.text
    assert decode(second, IMAGES)[0].done_count == len(IMAGES)
    for _ in range(3):
        outcome, rows = decode(first, IMAGES)
        assert outcome.done_count == len(IMAGES)
        assert np.array_equal(rows[4], prepare_image(IMAGES[4], SPEC))
    wait_until(lambda: all(map(runs, decoders.forks)))  # no zombies


@linux
def test_a_process_that_ended_while_it_waited_fails_nothing(decoders: Decoders) -> None:
    process = decoders.started()
    (fork,) = decoders.forks
    os.kill(fork, signal.SIGKILL)
    for _ in range(3):
        outcome, rows = decode(process, IMAGES)
        assert outcome.done_count == len(IMAGES)
        assert np.array_equal(rows[3], prepare_image(IMAGES[3], SPEC))
    assert fork not in decoders.forks


@linux
def test_a_stuck_process_is_let_go(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(own_process, "SILENCE_S", 1)
        process = decoders.started()
    (fork,) = decoders.forks
    os.kill(fork, signal.SIGSTOP)
    with pytest.raises(InternalError):
        decode(process, IMAGES)
    os.kill(fork, signal.SIGCONT)
    wait_until(lambda: not runs(fork))
    assert decode(process, IMAGES)[0].done_count == len(IMAGES)


@linux
def test_processes_start_again_when_all_have_ended(decoders: Decoders) -> None:
    process, other = decoders.started(), decoders.started()
    forks = decoders.forks
    decoders.launcher.kill()
    wait_until(lambda: not any(map(runs, forks)))
    for one in (process, other, process):
        outcome, rows = decode(one, IMAGES)
        assert outcome.done_count == len(IMAGES)
        assert np.array_equal(rows[1], prepare_image(IMAGES[1], SPEC))
    assert len(set(decoders.forks) - set(forks)) == 2


@linux
def test_an_answer_without_an_image_or_a_reason_is_none(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that a picture has taken over must not keep the request going round."""
    process = decoders.started()
    for end in (End.TIME, End.LONG):
        patient = TurnRules(SPEC, RULES.max_pixels, takes_long=end is End.LONG)
        with monkeypatch.context() as patched:
            patched.setattr(own_process, "receive_answer", lambda *_, end=end: Outcome(0, end))
            with pytest.raises(InternalError):
                process.decode_turn(IMAGES, patient, rows_for(IMAGES))
    assert decode(process, IMAGES)[0].done_count == len(IMAGES)


@linux
def test_where_none_can_start_threads_decode_and_few_are_tried(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launched = []
    monkeypatch.setattr(own_process, "_LAUNCH_EVERY_S", 3600.0)
    monkeypatch.setattr(own_process, "MAIN_MODULE", "no.such.module")
    popen = subprocess.Popen

    def launch(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        launched.append(popen(*arguments, **options))
        return launched[-1]

    monkeypatch.setattr(subprocess, "Popen", launch)
    processes = [decoders.new() for _ in range(3)]
    for _ in range(5):
        for process in processes:
            outcome, rows = decode(process, IMAGES)
            assert outcome.done_count == len(IMAGES)
            assert np.array_equal(rows[2], prepare_image(IMAGES[2], SPEC))
    assert len(launched) == 1
    text = "no decoding process can be started, so the server decodes itself: it ended at once"
    assert caplog.text.count(text) == 1
    assert "-P -m no.such.module shows the fault" in caplog.text


@pytest.mark.parametrize(
    "what", ["subprocess.Popen", "socket.socketpair", "socket.send_fds", "os.memfd_create"]
)
def test_where_processes_are_forbidden_threads_decode(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("injected")

    monkeypatch.setattr(what, refuse)
    monkeypatch.setattr(own_process, "_LAUNCH_EVERY_S", 3600.0)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    process = decoders.new()
    for _ in range(5):
        assert decode(process, IMAGES)[0].done_count == len(IMAGES)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    text = "no decoding process can be started, so the server decodes itself: injected"
    assert caplog.text.count(text) == 1


@linux
def test_what_cannot_be_forked_later_harms_no_process(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where processes have worked, the server decodes nothing itself: it says that it cannot."""
    process = decoders.started()

    def refuse(*_: object) -> None:
        raise OSError("injected")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "send_fds", refuse)
        with pytest.raises(InternalError):
            decode(decoders.new(), IMAGES)
    assert decode(process, IMAGES)[0].done_count == len(IMAGES)
    assert decode(decoders.new(), IMAGES)[0].done_count == len(IMAGES)


@linux
def test_a_closed_starter_ends_its_processes_and_starts_none(decoders: Decoders) -> None:
    processes = [decoders.started() for _ in range(3)]
    forks = decoders.forks
    assert len(forks) == 3
    decoders.starter.close()
    wait_until(lambda: not any(map(runs, forks)))
    with pytest.raises(UnavailableError, match="the server stops"):
        decode(processes[0], IMAGES)
    with pytest.raises(UnavailableError):
        decode(decoders.new(), IMAGES)


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_server_that_is_killed(number: signal.Signals) -> None:
    script = """
import time
from foldserve.serving.decoding.own_process import OwnProcess, ProcessStarter
starter = ProcessStarter()
processes = [OwnProcess(starter) for _ in range(2)]
for process in processes:
    process._process = starter.start()
print("ready", starter._launcher.pid, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(ending_with_us(command), stdout=subprocess.PIPE, text=True, cwd=SOURCE) as server:
        assert server.stdout is not None
        launcher = int(server.stdout.readline().split()[1])
        family = [launcher, *children_of(launcher)]
        assert len(family) == 3
        server.send_signal(number)
        server.wait(60)
        wait_until(lambda: not any(map(runs, family)))
