"""Names files of other kinds than the one asked for: what stands in place of the weights, and what to do.

Downloads that went wrong leave web pages and Git LFS pointers under the name of the file. Archives of
TorchScript and of other frameworks hold weights, but not as a state dict.
"""

from __future__ import annotations

import re
import zipfile
from typing import TYPE_CHECKING

from foldserve.export.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

_HEAD_BYTES = 512
_POINTER = "a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"
_PAGE = "a web page, not the file that was to be downloaded: download that again, from its own address"
_ANSWER = "a web server's error message, not the file that was to be downloaded: download that again"
_HDF5 = "an HDF5 file, as Keras writes it: convert the network to ONNX (tf2onnx) and export that"
_KERAS = "a Keras archive: convert the network to ONNX (tf2onnx) and export that"
_TFLITE = "a TensorFlow Lite file: convert the network to ONNX (tf2onnx) and export that"
_COMPRESSED = "compressed: unpack it and give the file inside"
_TORCHSCRIPT = (
    "a TorchScript archive, which is a program: save its weights alone, with "
    "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE), and give the network's own code as --arch"
)
_EXPORTED = (
    "an archive of torch.export, which is a program: save its weights alone, with "
    "torch.save(torch.export.load(FILE).state_dict, NEW_FILE), and give the network's own code as --arch"
)

# Patterns of the first bytes. Text may begin with a byte order mark and blanks.
_STARTS = (
    (re.compile(rb"version https://git-lfs\.github\.com/spec/"), _POINTER),
    (
        re.compile(
            rb"(\xef\xbb\xbf)?\s*(<!--.{0,200}-->\s*)?<(!doctype\s+html|html|head|body)\b",
            re.IGNORECASE | re.DOTALL,
        ),
        _PAGE,
    ),
    (re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml|<Error>|\{\s*\"(error|message)\")", re.IGNORECASE), _ANSWER),
    (re.compile(rb"(Entry|Repository|404:?|Not) (not )?found\b", re.IGNORECASE), _ANSWER),
    (re.compile(rb"\x89HDF\r\n"), _HDF5),
    (re.compile(rb"....TFL3", re.DOTALL), _TFLITE),
    (re.compile(rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\x00|\x28\xb5\x2f\xfd"), _COMPRESSED),
)
# Last parts of the names of entries by which zip archives are told.
_ENTRIES = (
    ("constants.pkl", _TORCHSCRIPT),
    ("serialized_exported_program.json", _EXPORTED),
    ("models/model.json", _EXPORTED),
    ("model.weights.h5", _KERAS),
)


def refuse_other_kinds(path: Path) -> None:
    """Refuse ``path`` if its content is known to be of a kind that holds no weights or network for us.

    A file that cannot be read is left to the reader, which says why.

    Raises:
        SourceError: it is a Git LFS pointer, a web page, a TorchScript archive, ...
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            entries = zipfile.ZipFile(stream).namelist() if head.startswith(b"PK\x03\x04") else []
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return
    kinds = [kind for pattern, kind in _STARTS if pattern.match(head)]
    kinds += [
        kind for end, kind in _ENTRIES if any(name == end or name.endswith(f"/{end}") for name in entries)
    ]
    if kinds:
        raise SourceError(f"{path} is {kinds[0]}")
