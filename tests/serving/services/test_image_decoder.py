"""Scheduling of decoding: which images delay others.

The threads decode here, so that a test can hold them up; tests/serving/decoding tests their processes, and
tests/imaging the decoding itself.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from foldserve.imaging import ImageSpec, prepare_picture
from foldserve.serving.decoding import turn
from foldserve.serving.decoding.own_process import OwnProcess, ProcessStarter
from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.services import image_decoder
from foldserve.serving.services.image_decoder import ImageDecoder
from foldserve.serving.services.requests import ImageRequest
from tests.support.crafted import encode, jpeg_of_scans
from tests.support.server_process import SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foldserve.imaging import Picture
    from foldserve.serving.decoding.turn import Outcome, TurnRules

SPEC = ImageSpec(channel_order="L", height=8, width=8, resize_shorter_side=8)
SMALL = encode(Image.new("L", (8, 8), 7))
LONG = jpeg_of_scans(6000, 10)  # as 8,000 would be, if so many were decoded at all


class Decoding:
    """A decoder in which images of one of ``sides`` wait for ``open``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sides: set[int], thread_count: int) -> None:
        self.open = threading.Event()
        self.ended: list[str] = []
        self.errors: dict[str, Exception | None] = {}
        self._sides = sides
        self._one_more = threading.Semaphore(0)
        monkeypatch.setattr(turn, "prepare_picture", self._prepare)
        monkeypatch.setattr(ProcessStarter, "start", lambda _: None)
        self.decoder = ImageDecoder(thread_count=thread_count, max_bytes=2**30, max_pixels=2**26)

    def _prepare(self, picture: Picture, spec: ImageSpec, *, max_pixels: int) -> np.ndarray:
        if picture.width in self._sides:
            assert self.open.wait(60)
            return np.zeros(spec.shape, np.uint8)
        return prepare_picture(picture, spec, max_pixels=max_pixels)

    def submit(self, name: str, images: list[bytes], deadline_s: float = float("inf")) -> ImageRequest:
        call = ImageRequest(message=None, deadline_s=deadline_s)
        call.encoded = images

        def on_decoded(_: object, error: Exception | None) -> None:
            self.errors[name] = error
            self.ended.append(name)
            self._one_more.release()

        self.decoder.submit(call, SPEC, on_decoded)
        return call

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._one_more.acquire(timeout=60)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoding]:
    of_two_threads = Decoding(monkeypatch, {6000}, thread_count=2)
    yield of_two_threads
    of_two_threads.open.set()
    of_two_threads.decoder.close()


def test_slow_images_do_not_delay_others(decoding: Decoding) -> None:
    long = [decoding.submit(f"long {index}", [LONG]) for index in range(5)]
    calls = [decoding.submit(f"small {index}", [SMALL] * 3) for index in range(50)]
    decoding.wait_for(50)
    assert all(name.startswith("small") for name in decoding.ended)
    assert all(np.all(call.rows == 7) for call in calls)
    decoding.open.set()
    decoding.wait_for(5)
    assert [call.rows.shape for call in long] == [(1, *SPEC.shape)] * 5
    assert decoding.decoder.held_bytes == 0


def test_request_with_a_slow_image_is_decoded_completely(decoding: Decoding) -> None:
    decoding.open.set()
    call = decoding.submit("mixed", [SMALL, LONG, SMALL, LONG, SMALL])
    decoding.wait_for(1)
    assert [int(row.max()) for row in call.rows] == [7, 0, 7, 0, 7]


def test_request_of_many_images_yields_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its images takes a whole turn; what comes after it is not behind all of them."""
    monkeypatch.setattr(turn, "_TURN_S", 0.0)
    decoding = Decoding(monkeypatch, {9}, thread_count=1)
    first = [encode(Image.new("L", (9, 9)))]
    decoding.submit("many", first + [SMALL] * 200)
    decoding.submit("few", [SMALL] * 3)
    decoding.open.set()
    decoding.wait_for(2)
    assert decoding.ended == ["few", "many"]
    decoding.decoder.close()


def test_refused_image_is_named_and_its_memory_released(decoding: Decoding) -> None:
    decoding.submit("bad", [SMALL, b"nothing"])
    decoding.submit("excessive", [SMALL, SMALL, jpeg_of_scans(8000, 500)])
    decoding.wait_for(2)
    assert str(decoding.errors["bad"]).startswith("image 1: not an image")
    assert str(decoding.errors["excessive"]).startswith("image 2: the image's 8000x8000 pixels come in")
    assert all(isinstance(error, InvalidArgumentError) for error in decoding.errors.values())
    assert decoding.decoder.held_bytes == 0


def test_expired_and_cancelled_requests_are_not_decoded(decoding: Decoding) -> None:
    late = decoding.submit("late", [LONG], deadline_s=time.monotonic() - 1)
    gone = decoding.submit("gone", [SMALL])
    gone.cancelled = True
    decoding.wait_for(2)
    assert decoding.errors == {"late": None, "gone": None}, "the batcher answers, which sees the same"
    assert not late.encoded


def test_messages_to_a_process_are_bounded(decoding: Decoding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images, and large ones, go in several turns; one that is larger than a message goes alone."""
    counts: list[int] = []
    decode_turn = OwnProcess.decode_turn

    def decode(process: OwnProcess, images: list[bytes], rules: TurnRules, rows: np.ndarray) -> Outcome:
        counts.append(len(images))
        assert len(rows) == len(images)
        return decode_turn(process, images, rules, rows)

    monkeypatch.setattr(OwnProcess, "decode_turn", decode)
    decoding.submit("many", [SMALL] * 600)
    decoding.wait_for(1)
    assert max(counts) <= image_decoder._TURN_IMAGES
    assert sum(counts) >= 600
    counts.clear()
    large = SMALL + bytes(image_decoder._TURN_BYTES)
    decoding.submit("large", [SMALL, large, large, SMALL])
    decoding.wait_for(1)
    assert counts == [1, 1, 1, 1]
    assert decoding.errors == {"many": None, "large": None}


def test_an_image_is_named_by_its_place_in_the_request(decoding: Decoding) -> None:
    decoding.submit("bad", [SMALL] * 300 + [b"nothing"] + [SMALL])
    decoding.wait_for(1)
    assert str(decoding.errors["bad"]).startswith("image 300: not an image")


def test_failing_callbacks_do_not_stop_the_threads(
    decoding: Decoding, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("injected")

    for _ in range(6):
        call = ImageRequest(message=None)
        call.encoded = [SMALL]
        decoding.decoder.submit(call, SPEC, fail)
    decoding.submit("next", [SMALL])
    decoding.wait_for(1)
    assert "injected" in caplog.text


def test_process_exits_while_an_image_is_decoded() -> None:
    script = """
import threading, time
from foldserve.imaging import ImageSpec
from foldserve.serving.decoding import turn
from foldserve.serving.decoding.own_process import ProcessStarter
from foldserve.serving.services import image_decoder
from foldserve.serving.services.requests import ImageRequest
started = threading.Event()
def stuck(*_, **__):
    started.set()
    time.sleep(3600)
turn.prepare_picture = stuck
ProcessStarter.start = lambda _: None  # the thread decodes
decoder = image_decoder.ImageDecoder(thread_count=1, max_bytes=2**20, max_pixels=100)
call = ImageRequest(message=None)
call.encoded = [bytes.fromhex("%s")]
decoder.submit(call, ImageSpec("L", 8, 8, 8), print)
started.wait()
decoder.close()
print("done")
"""
    command = [sys.executable, "-c", script % SMALL.hex()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=SOURCE)
    assert ended.stdout == "done\n"
