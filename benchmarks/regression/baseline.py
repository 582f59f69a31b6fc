"""Reads and writes the stored ratios, with the machine and versions that they were measured on."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from benchmarks.regression.cases import CaseName  # noqa: TC001  # pydantic reads the annotations
from benchmarks.serving.errors import BenchError
from foldserve.replacing import write_replacing

BASELINE = Path(__file__).with_name("baseline.json")
_PACKAGES = ("onnxruntime", "grpcio", "protobuf", "pygrpc-native", "numpy")


class StoredRatio(BaseModel, frozen=True, extra="forbid"):
    """CPU time of foldserve over that of the bare loop, per request: the median and its interval."""

    ratio: float = Field(gt=0)
    least: float = Field(gt=0)
    most: float = Field(gt=0)
    rounds: int = Field(ge=1)


class Baseline(BaseModel, frozen=True, extra="forbid"):
    """The content of ``baseline.json``; ``measured_on`` only explains differences."""

    measured_on: dict[str, str]
    cases: dict[CaseName, StoredRatio]

    def write(self, path: Path) -> None:
        """Write the file beside ``path`` and rename it."""
        write_replacing(path, json.dumps(self.model_dump(), indent=2) + "\n")


def read_baseline(path: Path) -> Baseline:
    """Return the baseline in ``path``.

    Raises:
        BenchError: there is none, or it is not one.
    """
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; --update measures and writes one") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BenchError(f"{path} is no baseline: {where}: {first['msg']}; --update writes one") from None


def this_machine() -> dict[str, str]:
    """Return the processor and the versions that ratios may depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {"processor": names[0] if names else platform.machine(), "python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
