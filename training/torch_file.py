"""Reads files written by `torch.save` as plain types and tensors, with one kind of error for all faults."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from foldserve.text import escaped

if TYPE_CHECKING:
    from pathlib import Path


class TorchFileError(ValueError):
    """The file is not a torch file, or is damaged or truncated; the message is one line without its name."""


class UnplainFileError(TorchFileError):
    """The file holds more than plain types and tensors, or its pickle is damaged."""


def read_torch_file(path: Path) -> Any:
    """Return the content of ``path`` with its tensors on the CPU, running no code in it.

    Raises:
        TorchFileError: the file is not a torch file, or is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        try:
            _check_start(stream)
            _check_sums(stream)
            stream.seek(0)
            with warnings.catch_warnings():
                # torch warns about other kinds of pickle before it refuses them; the error is enough.
                warnings.simplefilter("ignore")
                return torch.load(stream, map_location="cpu", weights_only=True)
        except TorchFileError:
            raise
        except pickle.UnpicklingError as error:
            raise UnplainFileError(_first_line(error)) from error
        except Exception as error:  # for a damaged byte, zipfile and torch may raise any error
            raise TorchFileError(_first_line(error)) from error


def _check_start(stream: BinaryIO) -> None:
    """Check that the file begins as a zip file or a pickle: of others, torch's errors say nothing."""
    head = stream.read(2)
    if not head:
        raise TorchFileError("it is empty")
    if head != b"PK" and head[:1] != pickle.PROTO:
        raise TorchFileError("it does not begin as one")


def _check_sums(stream: Any) -> None:
    """Check the checksums in a zip file, which torch does not: it would read a flipped bit as a weight."""
    if zipfile.is_zipfile(stream):  # the format before torch 1.6 has no checksums
        with zipfile.ZipFile(stream) as archive:
            if (damaged := archive.testzip()) is not None:
                raise TorchFileError(f"the checksum of its entry {damaged!r} is wrong")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return escaped(lines[0]) if lines else type(error).__name__
