"""Tells the kind of source from the flags of ``foldserve export``, and refuses flags that contradict it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from foldserve.artifact.format import MODEL_FILE
from foldserve.export.errors import SourceError
from foldserve.export.sources.training_run import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.export.config import ExportConfig

Kind = Literal["custom network", "run", "onnx"]

# The flags that each kind refuses, and why.
_REFUSED: dict[Kind, tuple[tuple[str, ...], str]] = {
    "custom network": (("data_dir", "output"), "cannot be used with your own network (--arch)"),
    "run": (
        (
            *(
                "weights",
                "input",
                "labels",
                "mean",
                "std",
                "pixel_range",
                "channel_order",
                "resize",
                "fit",
                "images",
            ),
            "output",
        ),
        "cannot be used with a training run: the checkpoint and its data set provide it",
    ),
    "onnx": (
        ("arch", "weights", "data_dir"),
        "cannot be used with an ONNX file, which contains its own network",
    ),
}


def source_kind(config: ExportConfig) -> Kind:
    """Return the kind of source that ``config`` asks to export.

    Raises:
        SourceError: no source is given, flags contradict each other, or the source is of a known other kind.
        CheckpointError: flags for other networks are given with a file that is not a checkpoint either.
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
        if kind == "run" and config.source is not None and config.source.is_file():
            read_checkpoint(config.source)  # which says what the file is, if it is of no run
        raise SourceError(f"{', '.join(flags)} {reason}")
    if kind == "custom network":
        _check_complete(config)
    return kind


def onnx_file(path: Path) -> Path:
    """Return ``path`` itself, or the model file inside it if it is the folder of a version."""
    return path / MODEL_FILE if path.is_dir() else path


def _kind_of(path: Path) -> Kind:
    if path.suffix == ".onnx" or (path / MODEL_FILE).is_file():
        return "onnx"
    if ":" in str(path) and not path.exists():
        raise SourceError(f"{path} does not exist; to export your own network, give --arch {path}")
    return "run"


def _check_complete(config: ExportConfig) -> None:
    if config.weights is None:
        raise SourceError(
            f"--arch {config.arch} starts with random weights; give the trained ones with --weights FILE "
            "(a state dict or .safetensors file)"
        )
    if config.input is None:
        raise SourceError(f"--arch {config.arch} needs --input, the shape of the image, such as 3x224x224")


def _given(config: ExportConfig, names: tuple[str, ...]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) is not None]
