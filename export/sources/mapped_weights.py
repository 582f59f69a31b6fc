"""Keeps the weights of a large PyTorch network in a temporary file that is mapped into memory.

While ONNX Runtime loads a file it holds up to four copies of the weights, and PyTorch's are then one more
that nothing reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foldserve.export.graph.mapped_file import MappedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

# Up to this size they stay in memory: to write and map them costs some tenths of a second of the processor.
_LARGE_BYTES = 256 * 1024 * 1024
_SMALLEST = 1024 * 1024  # bytes; smaller tensors stay where they are


class MappedWeights:
    """The large weights of a module, moved into a temporary file, which ends with this object and the module.

    If the file cannot be written, they stay in memory.
    """

    def __init__(self, module: nn.Module, large_bytes: int = _LARGE_BYTES) -> None:
        """Move the weights of ``module``, in place, if they take ``large_bytes`` or more."""
        self._file: MappedFile | None = None
        tensors = list(_large_tensors(module))
        if sum(tensor.nbytes for tensor in tensors) < max(1, large_bytes):
            return
        try:
            self._file = MappedFile(tensor.detach().view(-1).view(torch.uint8).numpy() for tensor in tensors)
        except OSError:  # no folder for temporary files, or its disk is full
            return
        everything = torch.frombuffer(self._file.memory, dtype=torch.uint8)
        for tensor, place in zip(tensors, self._file.places, strict=True):
            tensor.data = everything[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def release(self) -> None:
        """Let the pages leave memory; whatever reads the weights next brings them back from the file."""
        if self._file is not None:
            self._file.release()


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
