"""Reads CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of ten classes, RGB, 32x32.

The binary version is a gzipped tar file with five files of training records and one of test records. A record
is one byte, the class 0 to 9, and 3,072 bytes: 32x32 red values row by row, then green, then blue.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from foldserve.training.datasets.sources import Source
from foldserve.training.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

IMAGE_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32
_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_FOLDER = "cifar-10-batches-bin"


@dataclass(frozen=True)
class CifarArchive:
    """Reads the tar file, checked by its published SHA-256, or the six files in it, checked by their format.

    ``records`` is the number of records per file; the last file has the test images.
    """

    packed_name: str = "cifar-10-binary.tar.gz"
    sha256: str = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    records: int = 10_000
    limit_bytes: int = field(default=170_052_171)

    def read(self, folder: Path) -> NDArray[np.uint8]:
        """Return the records uint8 [60000, 3073] from the tar file or the unpacked files in ``folder``.

        Raises:
            DatasetError: the files are missing, truncated, damaged, or others.
        """
        if (folder / self.packed_name).exists():
            return self.read_packed(folder / self.packed_name)
        for place in (folder, folder / _FOLDER):
            if all((place / name).is_file() for name in _BATCHES):
                return np.concatenate([self._read_batch(place / name) for name in _BATCHES])
        raise DatasetError(f"{folder} has no {self.packed_name} (nor {', '.join(_BATCHES)})")

    def read_packed(self, path: Path) -> NDArray[np.uint8]:
        """Return the records uint8 [60000, 3073] from the tar file ``path``.

        Raises:
            DatasetError: the file is unreadable, truncated, damaged, or another one.
        """
        try:
            with path.open("rb") as stream:
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
            if actual != self.sha256:
                raise DatasetError(
                    f"{path} is damaged or not {self.packed_name}: its SHA-256 is {actual}, "
                    f"expected {self.sha256}"
                )
            with tarfile.open(path, "r:gz") as archive:
                parts = [self._parse(_member(archive, name), name) for name in _BATCHES]
        except (tarfile.TarError, EOFError, zlib.error, KeyError) as error:
            raise DatasetError(f"{path} cannot be unpacked: {error}") from error
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
        return np.concatenate(parts)

    def _read_batch(self, path: Path) -> NDArray[np.uint8]:
        try:
            with path.open("rb") as stream:
                content = stream.read(self.records * _RECORD_BYTES + 1)
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
        return self._parse(content, str(path))

    def _parse(self, content: bytes, name: str) -> NDArray[np.uint8]:
        """Return records uint8 [N, 3073], each with a class from 0 to 9."""
        expected = self.records * _RECORD_BYTES
        if len(content) != expected:
            length = f"{len(content):,}" if len(content) < expected else f"more than {expected:,}"
            raise DatasetError(
                f"{name} holds {length} bytes, expected {expected:,}: "
                f"{self.records:,} records of {_RECORD_BYTES:,}"
            )
        records = np.frombuffer(content, np.uint8).reshape(self.records, _RECORD_BYTES)
        if (largest := int(records[:, 0].max())) >= len(LABELS):
            raise DatasetError(
                f"{name} is damaged: it has a class {largest}, expected 0 to {len(LABELS) - 1}"
            )
        return records


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(f"{_FOLDER}/{name}")
    if stream is None:
        raise KeyError(f"{_FOLDER}/{name} is not a file")
    return stream.read()


SOURCE = Source(
    name="cifar10",
    files={"records": CifarArchive()},
    mirrors=("https://www.cs.toronto.edu/~kriz", "https://cave.cs.toronto.edu/kriz"),
)
