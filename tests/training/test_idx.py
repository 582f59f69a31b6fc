"""An IDX file is read if it is the expected one, and else refused with the reason."""

from __future__ import annotations

import gzip
import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.training.datasets.idx import IdxFile, parse_idx, read_idx
from foldserve.training.errors import DatasetError
from tests.support.idx_files import idx_content

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (5, 4, 3)
CONTENT = idx_content(SHAPE, seed=3)
EXPECTED = IdxFile("images", SHAPE, hashlib.sha256(CONTENT).hexdigest())


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple), seed=st.integers(0, 99))
def test_every_byte_comes_back_in_its_place(shape: tuple[int, ...], seed: int):
    content = idx_content(shape, seed)
    array = parse_idx(content, shape)
    assert array.shape == shape
    assert array.tobytes() == content[4 + 4 * len(shape) :]
    array[...] = 0  # writable, as torch wants it


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_packed_and_unpacked_files_read_alike(tmp_path: Path, packed: bool):
    (tmp_path / ("images.gz" if packed else "images")).write_bytes(
        gzip.compress(CONTENT) if packed else CONTENT
    )
    assert np.array_equal(read_idx(tmp_path, EXPECTED), parse_idx(CONTENT, SHAPE))


def test_another_packing_of_the_same_content_is_the_same_file(tmp_path: Path):
    with gzip.GzipFile(tmp_path / "images.gz", "wb", compresslevel=1, mtime=12345) as stream:
        stream.write(CONTENT)
    assert read_idx(tmp_path, EXPECTED).shape == SHAPE


LABELS = idx_content((60,), seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "too few", id="empty"),
        pytest.param(CONTENT[:10], "too few", id="cut in the header"),
        pytest.param(CONTENT[:-1], "59 bytes follow the header, expected 60", id="last byte missing"),
        pytest.param(CONTENT + b"\0", "61 bytes follow the header", id="one byte more"),
        pytest.param(b"\1" + CONTENT[1:], "magic number is 0x01000803", id="wrong magic"),
        pytest.param(CONTENT[:2] + b"\x0d" + CONTENT[3:], "expected 0x00000803", id="floats, not bytes"),
        pytest.param(LABELS, "0x00000801, expected 0x00000803", id="labels in the images' place"),
        pytest.param(idx_content((4, 5, 3), 3), "4 x 5 x 3, expected 5 x 4 x 3", id="another shape"),
        pytest.param(
            struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
            "expected 5 x 4 x 3",
            id="huge sides",
        ),
        pytest.param(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), "SHA-256", id="one bit flipped"),
    ],
)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_another_content_is_refused(tmp_path: Path, content: bytes, message: str, packed: bool):
    (tmp_path / ("images.gz" if packed else "images")).write_bytes(
        gzip.compress(content) if packed else content
    )
    with pytest.raises(DatasetError, match=message):
        read_idx(tmp_path, EXPECTED)


@pytest.mark.parametrize("kept", [0, 5, 30, -8, -1])
def test_truncated_gzip_is_refused(tmp_path: Path, kept: int):
    (tmp_path / "images.gz").write_bytes(gzip.compress(CONTENT)[:kept])
    with pytest.raises(DatasetError, match=r"cut short|too few"):
        read_idx(tmp_path, EXPECTED)


def test_no_flipped_bit_of_a_gzip_file_changes_a_pixel(tmp_path: Path):
    """The file is refused, or the array is right (if the bit is in the time of gzip's header)."""
    packed = gzip.compress(CONTENT, mtime=0)
    right = parse_idx(CONTENT, SHAPE)
    refused = 0
    for position in range(len(packed)):
        damaged = bytearray(packed)
        damaged[position] ^= 0x10
        (tmp_path / "images.gz").write_bytes(damaged)
        try:
            assert np.array_equal(read_idx(tmp_path, EXPECTED), right)
        except DatasetError:
            refused += 1
    assert refused >= len(packed) - 7  # time, flags and system of the header carry nothing


def test_a_bomb_is_not_unpacked(tmp_path: Path):
    (tmp_path / "images.gz").write_bytes(gzip.compress(CONTENT + bytes(50_000_000), compresslevel=1))
    with pytest.raises(DatasetError, match="61 bytes follow"):
        read_idx(tmp_path, EXPECTED)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"images\.gz"):
        read_idx(tmp_path, EXPECTED)
