"""Which flags of ``foldserve export`` go with which kind of source; what contradicts itself is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from foldserve.artifact.format import MODEL_FILE
from foldserve.export.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.export.config import ExportConfig

Kind = Literal["custom network", "run", "onnx"]

# What each kind does not take, and why.
_REFUSED: dict[Kind, tuple[tuple[str, ...], str]] = {
    "custom network": (("data_dir", "output"), "does not go with a network of your own (--arch)"),
    "run": (
        ("weights", "input", "labels", "mean", "std", "resize", "images", "output"),
        "does not go with a training run: the checkpoint and its data set bring that along",
    ),
    "onnx": (("arch", "weights", "data_dir"), "does not go with an ONNX file, which brings its own network"),
}


def source_kind(config: ExportConfig) -> Kind:
    """Return what ``config`` asks to export.

    Raises:
        SourceError: nothing, or flags that contradict each other.
    """
    if config.source is None and config.arch is None:
        given = _given(config, ("weights", "labels", "input"))
        raise SourceError(
            (f"{given[0]} without --arch: " if given else "nothing to export: ")
            + "give a run's folder, a checkpoint or an .onnx file, or your own network as "
            "--arch package.module:factory with --weights, --input and --labels"
        )
    kind: Kind = "custom network" if config.source is None else _kind_of(config.source)
    refused, reason = _REFUSED[kind]
    if flags := _given(config, refused):
        raise SourceError(f"{', '.join(flags)} {reason}")
    if kind == "custom network":
        _check_complete(config)
    return kind


def onnx_file(path: Path) -> Path:
    """Return the file that ``path`` means: itself, or what is in the version's folder that it names."""
    return path / MODEL_FILE if path.is_dir() else path


def _kind_of(path: Path) -> Kind:
    if path.suffix == ".onnx" or (path / MODEL_FILE).is_file():
        return "onnx"
    if ":" in str(path) and not path.exists():
        raise SourceError(f"{path} does not exist; a network of your own is given by --arch {path}")
    return "run"


def _check_complete(config: ExportConfig) -> None:
    if config.weights is None:
        raise SourceError(
            f"--arch {config.arch} has fresh, random weights; give the trained ones with --weights FILE (a "
            "state dict or .safetensors)"
        )
    if config.input is None:
        raise SourceError(f"--arch {config.arch} needs --input, the image's shape, as 3x224x224")


def _given(config: ExportConfig, names: tuple[str, ...]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) is not None]
