"""Requests are read back as arrays; tests/contract has the bad requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foldserve.artifact.format import TensorSpec
from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.protocol.infer_request import read_images
from foldserve.text import join_names, quote

if TYPE_CHECKING:
    from numpy.typing import NDArray

images = arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 4))


def request(pixels: NDArray[np.uint8], *, typed: bool) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(inputs=[{"name": "image", "datatype": "UINT8", "shape": pixels.shape}])
    if typed:
        message.inputs[0].contents.uint_contents.extend(pixels.ravel().tolist())
    else:
        message.raw_input_contents.append(pixels.tobytes())
    return message


@given(pixels=images, typed=st.booleans())
def test_rows_are_read_as_sent(pixels: NDArray[np.uint8], typed: bool) -> None:
    spec = TensorSpec("image", "UINT8", (-1, *pixels.shape[1:]))
    rows = read_images(request(pixels, typed=typed), spec)
    assert isinstance(rows, np.ndarray)
    assert rows.dtype == np.uint8
    assert (rows == pixels).all()
    assert rows.shape == pixels.shape


@given(pixels=images, shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6))
def test_wrong_shapes_are_refused(pixels: NDArray[np.uint8], shape: list[int]) -> None:
    message = request(pixels, typed=False)
    message.inputs[0].ClearField("shape")
    message.inputs[0].shape.extend(shape)
    spec = TensorSpec("image", "UINT8", (-1, *pixels.shape[1:]))
    if tuple(shape) == pixels.shape:
        read_images(message, spec)
    else:
        with pytest.raises(InvalidArgumentError):
            read_images(message, spec)


@given(values=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), unknown=st.booleans())
def test_first_typed_value_above_255_is_named(values: list[int], unknown: bool) -> None:
    message = pb.ModelInferRequest(inputs=[{"name": "image", "datatype": "UINT8"}])
    message.inputs[0].shape.extend([len(values), 1, 1, 1])
    message.inputs[0].contents.uint_contents.extend(values)
    if unknown:  # field 15, which no definition has
        message.inputs[0].contents.MergeFromString(b"\x7a\x03abc")
    spec = TensorSpec("image", "UINT8", (-1, 1, 1, 1))
    wrong = [index for index, value in enumerate(values) if value > 255]
    if wrong:
        with pytest.raises(InvalidArgumentError, match=f"has {values[wrong[0]]} at element {wrong[0]};"):
            read_images(message, spec)
    else:
        rows = read_images(message, spec)
        assert isinstance(rows, np.ndarray)
        assert rows.ravel().tolist() == values


def test_raw_rows_are_a_view_of_the_message() -> None:
    """No copy on the request path: the array's memory belongs to the message's bytes."""
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    rows = read_images(request(pixels, typed=False), TensorSpec("image", "UINT8", (-1, 1, 8, 8)))
    assert isinstance(rows, np.ndarray)
    assert not rows.flags.owndata
    assert not rows.flags.writeable


def test_quoted_text_is_short_and_on_one_line() -> None:
    assert quote("a\nb") == "'a\\nb'"
    assert len(quote("x" * 10_000)) < 100


def test_long_lists_are_truncated() -> None:
    assert join_names(map(str, range(10))).endswith("'7' and 2 more")
