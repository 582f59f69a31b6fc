"""Runs PyTorch code in float64, with weights that stay float32 in memory.

Inside `InFloat64` each function gets float64 copies of its float32 tensors, which live as long as the call:
only one layer's weights are in memory twice. Code that asks for float32 by name (``x.float()``,
``.to(torch.float16)``, ``torch.zeros(4)``) is answered with float64.

PyTorch computes a float64 convolution by copying the pixels under every position of the kernel into one
matrix, for all images at once: gigabytes for a large network. So convolutions and linear layers are computed
in parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_NARROWER = {torch.float32, torch.float16, torch.bfloat16}
_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}
_WRITING = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}

# Little beside the weights of a large network; parts of 8 MiB were measured to take three times as long.
_PART_BYTES = 128 * 1024 * 1024
_BYTES = 8  # of a float64


class LargestTensor(TorchFunctionMode):
    """Records the size of the largest tensor that a function made, in ``largest_bytes``.

    A view of what the function was given is not counted: it takes no memory, and may be one of all weights.
    """

    largest_bytes = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # as PyTorch's protocol has it
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` and look at its result."""
        result = self._call(func, args, kwargs or {})
        # PyTorch compiles the branches of torch.cond, with this function in them and sizes that are symbols.
        if not torch.compiler.is_compiling():
            for entry in result if isinstance(result, tuple | list) else (result,):
                is_larger = isinstance(entry, torch.Tensor) and entry.nbytes > self.largest_bytes
                if is_larger and not _is_view(entry, (args, kwargs)):
                    self.largest_bytes = entry.nbytes
        return result

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class InFloat64(LargestTensor):
    """Makes PyTorch compute in float64, whatever the types of tensors and whatever code asks for."""

    def __enter__(self) -> Self:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``func`` with float64 in place of every narrower type.

        Raises:
            RuntimeError: it would write into a narrower tensor, of which it only got a copy.
        """
        name = getattr(func, "__name__", "")
        if name == "__get__":  # x.shape, x.dtype, ...: nothing is computed
            return func(*args, **kwargs)
        if func in _CASTS:
            func = torch.Tensor.double
        if _is_in_place(name) and args and _is_narrower(args[0]):
            raise RuntimeError(f"{name} would write into a {args[0].dtype} tensor")
        if func in _IN_PARTS:
            return _IN_PARTS[func](*args, **kwargs)
        return func(*tree_map(_widened, args), **tree_map(_widened, kwargs))


def conv2d_in_parts(  # noqa: PLR0917  # as torch.conv2d
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Compute `torch.conv2d` in float64: some images, or some rows of one image, at a time.

    A weight that is large itself, as of a fully connected layer written as one, is taken in parts too.
    """
    channel_count = max(1, _PART_BYTES // max(1, _BYTES * weight[0].numel()))
    if groups == 1 and channel_count < len(weight):
        parts = [
            conv2d_in_parts(
                x,
                weight[start : start + channel_count],
                None if bias is None else bias[start : start + channel_count],
                stride,
                padding,
                dilation,
            )
            for start in range(0, len(weight), channel_count)
        ]
        return torch.cat(parts, dim=-3)
    x, weight = x.double(), weight.double()
    bias = None if bias is None else bias.double()
    if x.ndim != 4 or isinstance(padding, str):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    (down, across), (step, _), (top, left) = _pair(stride), _pair(dilation), _pair(padding)
    padded = F.pad(x, (left, left, top, top)) if top or left else x
    reach = step * (weight.shape[2] - 1) + 1  # rows of the image under one position of the kernel
    rows = (padded.shape[2] - reach) // down + 1
    columns = padded.shape[3] // across
    row_bytes = _BYTES * weight[0].numel() * columns
    if rows < 1 or len(x) * rows * row_bytes <= _PART_BYTES:
        return torch.conv2d(padded, weight, bias, stride, 0, dilation, groups)
    image_count = max(1, _PART_BYTES // (rows * row_bytes))
    row_count = rows if image_count > 1 else min(rows, max(1, _PART_BYTES // row_bytes))
    result: Tensor | None = None
    for image in range(0, len(x), image_count):
        for row in range(0, rows, row_count):
            end = min(rows, row + row_count)
            seen = padded[image : image + image_count, :, row * down : (end - 1) * down + reach]
            part = torch.conv2d(seen, weight, bias, stride, 0, dilation, groups)
            if result is None:
                result = part.new_empty(len(x), len(weight), rows, part.shape[3])
            result[image : image + image_count, :, row:end] = part
    assert result is not None
    return result


def linear_in_parts(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `torch.nn.functional.linear` in float64, with some rows of ``weight`` at a time."""
    x = x.double()
    count = max(1, _PART_BYTES // max(1, _BYTES * weight.shape[-1]))
    if weight.ndim != 2 or weight.shape[0] <= count:
        return F.linear(x, weight.double(), None if bias is None else bias.double())
    parts = [
        F.linear(
            x,
            weight[start : start + count].double(),
            None if bias is None else bias[start : start + count].double(),
        )
        for start in range(0, len(weight), count)
    ]
    return torch.cat(parts, dim=-1)


_IN_PARTS: dict[Any, Callable[..., Tensor]] = {torch.conv2d: conv2d_in_parts, F.linear: linear_in_parts}


def _is_view(tensor: Tensor, given: Any) -> bool:
    """Tell whether ``tensor`` has the memory of a tensor in ``given``, arguments of a function."""
    memory = _memory(tensor)
    tensors = [entry for entry in tree_leaves(given) if isinstance(entry, torch.Tensor)]
    return memory is not None and any(_memory(entry) == memory for entry in tensors)


def _memory(tensor: Tensor) -> int | None:
    """Return the address of a tensor's memory; None if it has none of its own, as a sparse one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def _pair(numbers: Any) -> tuple[int, int]:
    """Return the entry for height and for width, of which PyTorch takes one for both too."""
    if isinstance(numbers, int):
        return numbers, numbers
    return (numbers[0], numbers[-1])


def _is_in_place(name: str) -> bool:
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


def _is_narrower(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dtype in _NARROWER


def _widened(argument: Any) -> Any:
    if _is_narrower(argument):
        return argument.double()
    return torch.float64 if isinstance(argument, torch.dtype) and argument in _NARROWER else argument
