"""Tests npz archives: declared sizes are checked before anything is decompressed."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from foldserve.artifact import npz
from foldserve.artifact.npz import read_arrays


def archive_of(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(f"{name}.npy", member)
    return content.getvalue()


def member_of(array: np.ndarray, **changes: object) -> bytes:
    content = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | changes
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue() + array.tobytes()


ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("array", [ARRAY, ARRAY.T, np.float64(2), np.zeros((0, 3)), np.bool_(True)])
def test_archive_written_by_numpy_is_read(array: np.ndarray) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, first=array, second=ARRAY)
    arrays = read_arrays(content.getvalue(), ["first"], 10_000)
    assert list(arrays) == ["first"]
    assert np.array_equal(arrays["first"], array)
    assert arrays["first"].dtype == array.dtype


@pytest.mark.parametrize(
    ("member", "message"),
    [
        pytest.param(member_of(np.zeros(10**6)), "the limit is 10000", id="large"),
        pytest.param(member_of(ARRAY, shape=(10**12, 4)), "declares 16000000000000 bytes", id="asks"),
        pytest.param(member_of(ARRAY, shape=(3, 3)), "36 bytes but has 48", id="asks for less"),
        pytest.param(member_of(ARRAY, shape=(-3, -4)), "48 bytes but has 48", id="negative"),
        pytest.param(member_of(ARRAY, shape=(2**62, 2**62, 0)), "0 bytes but has 48", id="none of many"),
        pytest.param(member_of(ARRAY, descr="|O"), "Python objects", id="pickled"),
        pytest.param(b"\x93NUMPY\x03\x00" + bytes(100), "format", id="of another format"),
        pytest.param(b"", "EOF", id="empty"),
    ],
)
def test_sizes_that_are_wrong_or_too_large_are_refused(member: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_arrays(archive_of(first=member), ["first"], 10_000)


def test_archive_with_very_many_members_is_refused_unread() -> None:
    content = archive_of(**{f"member{number}": b"" for number in range(100)})
    with pytest.raises(ValueError, match="more than 64 members"):
        read_arrays(content, ["member1"], 10_000)


def test_declared_size_is_not_exceeded_by_decompression() -> None:
    """Python's zipfile stops at the declared size, and the checksum of the rest is missing."""
    content = bytearray(archive_of(first=member_of(np.zeros(1000))))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.index(signature) + offset
        content[place : place + 4] = (len(member_of(ARRAY))).to_bytes(4, "little")
    with pytest.raises((ValueError, zipfile.BadZipFile)):
        read_arrays(bytes(content), ["first"], 10_000)


def test_arrays_larger_than_a_part_are_read() -> None:
    array = np.random.default_rng(1).integers(0, 256, 3 * 2**20 + 5, dtype=np.uint8)
    arrays = read_arrays(archive_of(first=member_of(array)), ["first"], 2**23)
    assert np.array_equal(arrays["first"], array)


def test_member_that_ends_early_is_refused() -> None:
    member = member_of(ARRAY)
    header = npz._read_header("first", io.BytesIO(member), len(member))
    with pytest.raises(ValueError, match="ends 8 bytes before"):
        npz._read_array(header, io.BytesIO(member[:-8]), len(member))


def test_headers_are_parsed_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython's parser may refuse a sound header while another thread parses."""
    parsing, meeting, met = threading.Lock(), threading.Barrier(4), []
    parse = npz._READ_HEADER[1, 0]

    def watched(stream):
        is_alone = parsing.acquire(blocking=False)
        met.append(not is_alone)
        time.sleep(0.01)  # lets the other threads come
        if is_alone:
            parsing.release()
        return parse(stream)

    monkeypatch.setitem(npz._READ_HEADER, (1, 0), watched)
    content = archive_of(first=member_of(ARRAY))

    def read() -> None:
        meeting.wait()
        read_arrays(content, ["first"], 10_000)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(read) for _ in range(4)]:
            done.result()
    assert met == [False] * 4
