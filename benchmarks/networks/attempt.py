"""Exports one network by `foldserve export` and by PyTorch's exporter, and judges both files.

Runs in a process of its own (`processes`). Facts are reported as they become known, so that a crash or a time
limit later leaves those before.
"""

from __future__ import annotations

import gc
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.networks.exported import (
    batch_norm_count,
    export_by_pytorch,
    published_logits,
    pytorch_logits,
)
from benchmarks.networks.factories import factory_name
from benchmarks.networks.images import MEAN, STD
from benchmarks.networks.judge import make_judge
from benchmarks.networks.kept import kept_by_kind
from benchmarks.networks.statistics import give_statistics
from benchmarks.networks.usage import peak_mib, restart_peak
from foldserve.artifact.format import read_artifact
from foldserve.artifact.versions import list_versions
from foldserve.errors import FoldserveError
from foldserve.export.config import ExportConfig
from foldserve.export.pipeline import export_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from benchmarks.networks.judge import Judge
    from benchmarks.networks.packages import Network

INPUT_SCALING = "input scaling"  # as the manifest calls it, beside the batch norms
# As few as golden pairs of large images; by default there are 256 up to 64 pixels.
VERIFY_COUNT = 32
_MOST_REASON = 600  # characters


def attempt(
    network: Network, statistics: str, folder: Path, tell: Callable[[dict[str, Any]], None], *, pytorch: bool
) -> None:
    """Export a network, with files in ``folder``, and ``tell`` all that is found out, piece by piece."""
    module = network.build()
    weight_count = sum(weights.numel() for weights in module.parameters())
    batch_norms = sum(isinstance(each, _BatchNorm) for each in module.modules())
    tell({"parameters": weight_count, "batch_norms": batch_norms})
    tell({"varying": give_statistics(module, statistics, network.side)})
    weights = folder / "weights.pt"
    torch.save(module.state_dict(), weights)
    class_count = _class_count(module, network.side)
    labels = folder / "labels.txt"
    labels.write_text("\n".join(f"class {index}" for index in range(class_count)))
    del module
    gc.collect()

    config = ExportConfig(
        arch=f"benchmarks.networks.factories:{factory_name(network)}",
        weights=weights,
        input=f"3x{network.side}x{network.side}",
        labels=labels,
        mean=MEAN,
        std=STD,
        repository=folder / "models",
        name="network",
        verify_images=VERIFY_COUNT,
    )
    tell({"step": "export"})
    content = export(config, tell)
    tell({"step": "judge"})
    module = network.build()
    module.load_state_dict(torch.load(weights, weights_only=True))
    judge = make_judge(module, network.side)
    tell({"pytorch_error": judge.pytorch_error, "largest_logit": judge.largest})
    if content is not None:
        error = judge.error(published_logits(content, judge.images))
        tell({"outcome": judge.verdict(error), "error": error})
    if pytorch:
        tell({"step": "pytorch"})
        tell({"pytorch": try_pytorch(module, judge, folder / "pytorch.onnx")})


def attempt_by_pytorch(
    network: Network, statistics: str, folder: Path, tell: Callable[[dict[str, Any]], None]
) -> None:
    """Export a network by PyTorch's exporter alone, and ``tell`` what became of it."""
    tell({"step": "pytorch"})
    module = network.build()
    give_statistics(module, statistics, network.side)
    tell({"pytorch": try_pytorch(module, make_judge(module, network.side), folder / "pytorch.onnx")})


def export(config: ExportConfig, tell: Callable[[dict[str, Any]], None]) -> bytes | None:
    """Run `foldserve export` and return the published file; None if it was refused or crashed."""
    assert config.name is not None
    with _measuring() as measured:
        try:
            export_model(config)
        except FoldserveError as error:
            tell({"outcome": "refused", "reason": str(error)[:_MOST_REASON]})
        except Exception as error:  # a fault of ours: a user would see a traceback
            tell({"outcome": "crashed", "reason": _where(error)})
    tell(measured)
    model_folder = config.repository / config.name
    versions = list_versions(model_folder) if model_folder.is_dir() else []
    if not versions:
        return None
    artifact = read_artifact(model_folder / str(versions[-1]))
    folding = artifact.manifest["folding"]
    scaling = next((fold["action"] for fold in folding if fold["name"] == INPUT_SCALING), None)
    folds = [fold for fold in folding if fold["name"] != INPUT_SCALING]
    folded = sum(fold["action"] == "folded" for fold in folds)
    tell({"folded": folded, "folds": len(folds), "input_scaling": scaling, "kept": kept_by_kind(folds)})
    return artifact.model


def try_pytorch(module: nn.Module, judge: Judge, path: Path) -> dict[str, Any]:
    """Export by `torch.onnx.export(dynamo=True)` with its defaults; return what became of it."""
    found: dict[str, Any]
    with _measuring() as measured:
        try:
            export_by_pytorch(module, judge.images, path)
            found = {}
        except Exception as error:  # whatever the exporter raises
            found = {"outcome": "failed", "reason": _where(error)}
    if not found:
        try:
            off = judge.error(pytorch_logits(path, judge.images))
            found = {"outcome": judge.verdict(off), "error": off, "batch_norms": batch_norm_count(path)}
        except Exception as error:  # ONNX Runtime refuses the file
            found = {"outcome": "failed", "reason": _where(error)}
    return found | measured


@contextmanager
def _measuring() -> Iterator[dict[str, float]]:
    """Fill in seconds by the clock and of the processor, and the peak of memory, when the block ends."""
    measured: dict[str, float] = {}
    gc.collect()
    restart_peak()
    clock, processor = time.perf_counter(), time.process_time()
    try:
        yield measured
    finally:
        measured["seconds"] = round(time.perf_counter() - clock, 1)
        measured["cpu_seconds"] = round(time.process_time() - processor, 1)
        measured["peak_mib"] = peak_mib()


def _class_count(module: nn.Module, side: int) -> int:
    with torch.inference_mode():
        return int(module(torch.zeros(1, 3, side, side)).shape[1])


def _where(error: Exception) -> str:
    """Return the error with the place in the code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = frames[-1]
    message = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_REASON]
    return f"{message} ({Path(frame.filename).name}:{frame.lineno})"
