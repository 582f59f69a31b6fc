"""Reads what `torch.save` wrote, as plain types and tensors; whatever is wrong is one kind of error."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from foldserve.text import escaped

if TYPE_CHECKING:
    from pathlib import Path


class TorchFileError(ValueError):
    """The file is no torch file, or it is damaged or cut short; the message is one line without its name."""


class UnplainFileError(TorchFileError):
    """The file holds more than plain types and tensors, or its pickle is damaged."""


def read_torch_file(path: Path) -> Any:
    """Return the content of ``path``, its tensors on the CPU; no code in it is run.

    Raises:
        TorchFileError: it is not sound.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        try:
            _check_sums(stream)
            stream.seek(0)
            with warnings.catch_warnings():
                # torch warns of other kinds of pickle before it refuses them; the error says it all.
                warnings.simplefilter("ignore")
                return torch.load(stream, map_location="cpu", weights_only=True)
        except TorchFileError:
            raise
        except pickle.UnpicklingError as error:
            raise UnplainFileError(_first_line(error)) from error
        except Exception as error:  # a damaged byte leads zipfile and torch to any kind of error
            raise TorchFileError(_first_line(error)) from error


def _check_sums(stream: Any) -> None:
    """Check the sums that stand in a zip file; torch does not, and would take a flipped bit for a weight."""
    if zipfile.is_zipfile(stream):  # before torch 1.6 it was another format, without sums
        with zipfile.ZipFile(stream) as archive:
            if (damaged := archive.testzip()) is not None:
                raise TorchFileError(f"the checksum of {damaged!r} in it is wrong")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return escaped(lines[0]) if lines else type(error).__name__
