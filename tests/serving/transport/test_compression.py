"""Compressed messages are unpacked, and no further than the limit."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from foldserve.serving.errors import ResourceExhaustedError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.transport.compression import decompress, is_compressed

CONTENT = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(100)]).SerializeToString()


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_compressed_messages_are_decompressed(pack: object) -> None:
    packed = pack(CONTENT)  # type: ignore[operator]
    assert is_compressed(packed)
    assert decompress(packed, len(CONTENT)) == CONTENT
    with pytest.raises(ResourceExhaustedError, match=f"decompress to more than {len(CONTENT) - 1}"):
        decompress(packed, len(CONTENT) - 1)


def test_plain_and_damaged_messages_are_returned_unchanged() -> None:
    assert not is_compressed(CONTENT)
    assert not is_compressed(b"")
    damaged = gzip.compress(CONTENT)[:5] + b"\xff" * 40
    assert decompress(damaged, 1000) == damaged


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_cut_messages_and_those_with_more_behind_are_returned_unchanged(pack: object) -> None:
    """Their beginning may be a message with fewer images, which would be answered as if it were all."""
    packed = pack(CONTENT)  # type: ignore[operator]
    for cut in (len(packed) - 1, len(packed) - 4, len(packed) // 2):
        assert decompress(packed[:cut], 1000) == packed[:cut]
    for more in (b"\0", packed):
        assert decompress(packed + more, 1000) == packed + more


def test_decompression_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(200 * 2**20), compresslevel=1)
    assert len(bomb) < 2**20
    tracemalloc.start()
    with pytest.raises(ResourceExhaustedError):
        decompress(bomb, 2**20)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * 2**20
