"""Keeps the weights of a large PyTorch network in a temporary file that is mapped into memory.

Pages that are mapped from a file can leave memory and come back by themselves. While ONNX Runtime loads a
file it holds up to four copies of the weights, and PyTorch's are then one more that nothing reads.
"""

from __future__ import annotations

import mmap
import sys
import tempfile
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

# Up to this size they stay in memory: to write and map them costs some tenths of a second of the processor.
_LARGE_BYTES = 256 * 1024 * 1024
_SMALLEST = 1024 * 1024  # bytes; smaller tensors stay where they are
_ALIGNMENT = 64  # bytes, as PyTorch's own allocator


class MappedWeights:
    """The large weights of a module, moved into a temporary file, which ends with this object and the module.

    If the file cannot be written, they stay in memory.
    """

    def __init__(self, module: nn.Module, large_bytes: int = _LARGE_BYTES) -> None:
        """Move the weights of ``module``, in place, if they take ``large_bytes`` or more."""
        self._memory: mmap.mmap | None = None
        tensors = list(_large_tensors(module))
        if sum(tensor.nbytes for tensor in tensors) < max(1, large_bytes):
            return
        try:
            self._memory, places = _write(tensors)
        except OSError:  # no folder for temporary files, or its disk is full
            return
        everything = torch.frombuffer(self._memory, dtype=torch.uint8)
        for tensor, place in zip(tensors, places, strict=True):
            tensor.data = everything[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def release(self) -> None:
        """Let the pages leave memory; whatever reads the weights next brings them back from the file."""
        if self._memory is not None and sys.platform == "linux":
            self._memory.madvise(mmap.MADV_DONTNEED)


def _large_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers that are worth moving and have memory of their own."""
    for tensor in (*module.parameters(), *module.buffers()):
        if (
            tensor.nbytes >= _SMALLEST
            and tensor.layout is torch.strided
            and tensor.device.type == "cpu"
            and tensor.is_contiguous()
            and tensor.untyped_storage().nbytes() == tensor.nbytes
        ):
            yield tensor


def _write(tensors: list[Tensor]) -> tuple[mmap.mmap, list[int]]:
    """Write the tensors' bytes into a temporary file; return it mapped, and where each begins."""
    places: list[int] = []
    with tempfile.TemporaryFile(prefix="foldserve-") as file:
        for tensor in tensors:
            file.seek(-file.tell() % _ALIGNMENT, 1)
            places.append(file.tell())
            file.write(tensor.detach().view(-1).view(torch.uint8).numpy().data)
        file.flush()  # what does not fit on the disk is an error here, and a signal in mapped memory
        return mmap.mmap(file.fileno(), 0), places
