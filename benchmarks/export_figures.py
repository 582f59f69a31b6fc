"""`python -m benchmarks.export_figures`: speed of folding and int8, the table of docs/benchmarks.md.

One network in six forms takes turns, call by call, from uint8 pixels to logits:

    eager     PyTorch as trained, in inference mode
    compiled  the same through torch.compile, if there is a C++ compiler
    unfolded  ONNX as PyTorch's exporter writes it with its own fusion off: every batch norm is a
              BatchNormalization node, 1/std a multiplication
    tidied    the same with its constants computed, as the exporter's optimiser would; still with batch norm
    folded    ONNX as `foldserve export` writes it
    int8      the folded file with every layer in int8

ONNX runs in the server's own session, with ONNX Runtime's optimisations at load. These cannot fuse batch norm
in *unfolded*, where the exporter writes the missing bias of a convolution as an expression; in *tidied* they
do. Weights are seeded and batch norm gets random statistics, as speed does not depend on what was learnt.
Prints Markdown, and the limits that this project set.
"""

from __future__ import annotations

import argparse
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from foldserve.artifact.format import IMAGE, LOGITS, ModelMetadata
from foldserve.export.graph.build import build_model
from foldserve.export.graph.fold_layers import DeclinedError
from foldserve.export.graph.fold_pass import FoldPass
from foldserve.export.graph.normalise import add_normalisation
from foldserve.export.graph.serialize import add_outputs
from foldserve.export.graph.simplify import simplify
from foldserve.export.graph.trace import trace
from foldserve.export.graph.weights import Float64Initializers
from foldserve.export.precision.quantize import activation_ranges, layer_names, quantize
from foldserve.export.precision.speed import take_turns
from foldserve.imaging import ImageSpec
from foldserve.runtime.session import RUNTIME_VERSION, Session
from foldserve.training.models import Normalized, create_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

FORMS = ("eager", "compiled", "unfolded", "tidied", "folded", "int8")
# How many times as fast the first is as the second: the table's last columns.
_PAIRS = (("folded", "eager"), ("folded", "unfolded"), ("folded", "tidied"), ("int8", "folded"))
_CALIBRATION_COUNT = 16


@dataclass(frozen=True)
class Subject:
    """A network that is measured, on images [channels, side, side]."""

    name: str
    arch: str
    channels: int
    side: int


SUBJECTS = (
    Subject("lenet", "lenet", 1, 28),
    Subject("alexnet-28", "alexnet", 1, 28),
    Subject("alexnet-224", "alexnet", 3, 224),
)


@dataclass(frozen=True)
class Bound:
    """``top`` must be ``least`` times as fast as ``bottom``: the median over the batch sizes."""

    subjects: tuple[str, ...]
    threads: int
    top: str
    bottom: str
    least: float


BOUNDS = (
    Bound(("lenet",), 1, "folded", "unfolded", 1.5),
    Bound(("alexnet-28", "alexnet-224"), 2, "folded", "unfolded", 1.3),
    Bound(("alexnet-224",), 2, "int8", "folded", 3.0),
)


@dataclass(frozen=True)
class Row:
    """Median milliseconds a call of each form that runs here."""

    subject: str
    threads: int
    batch_size: int
    ms: Mapping[str, float]

    def ratio(self, top: str, bottom: str) -> float:
        """Return how many times as fast as ``bottom`` ``top`` is."""
        return self.ms[bottom] / self.ms[top]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row, about")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    reason = why_not_compiled() if args.compile else "left out"
    print(_machine() + (f"; torch.compile: {reason}" if reason else ""), flush=True)
    print(f"\n{_heading()}", flush=True)
    rows = []
    for subject in SUBJECTS:
        if subject.name in args.networks:
            forms = Forms(subject, is_compiled=not reason)
            for threads in args.threads:
                for batch_size in args.batch_sizes:
                    rows.append(measure(forms, threads, batch_size, args.seconds))
                    print(_line(rows[-1]), flush=True)
    print()
    for bound in BOUNDS:
        print_verdict(bound, rows)


class Forms:
    """One network in every form, on noise images."""

    def __init__(self, subject: Subject, *, is_compiled: bool) -> None:
        self.subject = subject
        self._is_compiled = is_compiled
        torch.manual_seed(0)
        side, channels = subject.side, subject.channels
        network = create_model(subject.arch, in_channels=channels, class_count=10, height=side, width=side)
        with_random_statistics(network)
        spec = ImageSpec("L" if channels == 1 else "RGB", side, side, resize_shorter_side=side)
        mean, std = (0.4,) * channels, (0.3,) * channels
        self.module = Normalized(network, mean, std).eval()
        metadata = ModelMetadata(tuple("0123456789"), mean, std, spec)
        folded = build_model(trace(self.module.network, spec.shape).model, metadata).content
        ranges = activation_ranges(folded, self.images(_CALIBRATION_COUNT))
        self.files = {
            "unfolded": build_unfolded(self.module.network, metadata, is_tidied=False),
            "tidied": build_unfolded(self.module.network, metadata, is_tidied=True),
            "folded": folded,
            "int8": quantize(folded, ranges, layer_names(folded)),
        }

    def images(self, count: int) -> NDArray[np.uint8]:
        """Return seeded noise [count, C, H, W]."""
        shape = (count, self.subject.channels, self.subject.side, self.subject.side)
        return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)

    def programs(self, threads: int, batch_size: int) -> dict[str, Callable[[], object]]:
        """Return the function to call for each form; sets PyTorch's number of threads for the process."""
        images = self.images(batch_size)
        tensor = torch.from_numpy(images)
        torch.set_num_threads(threads)
        programs: dict[str, Callable[[], object]] = {"eager": _forward(self.module, tensor)}
        if self._is_compiled:
            torch.compiler.reset()  # code is generated for one number of threads
            compiled: Callable[..., Any] = torch.compile(self.module, dynamic=False)
            programs["compiled"] = _forward(compiled, tensor)
        for name, content in self.files.items():
            session = Session(content, device="cpu", intra_op_threads=threads)
            programs[name] = _run(session, images)
        return programs


def build_unfolded(network: nn.Module, metadata: ModelMetadata, *, is_tidied: bool) -> bytes:
    """Return a file with each batch norm a node, its constants computed or left as they were traced."""
    model = trace(network, metadata.image.shape).model
    if is_tidied:
        simplify(model)
    weights = Float64Initializers(model.graph)
    folder = _NoFolding(model.graph, weights)
    add_normalisation(model.graph, folder, weights, mean=metadata.mean, std=metadata.std)
    weights.store()
    add_outputs(model.graph)
    model_proto = ir.to_proto(model)
    kept = sum(node.op_type == "BatchNormalization" for node in model_proto.graph.node)
    assert kept == sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) > 0
    onnx.helper.set_model_props(model_proto, metadata.to_props())
    return bytes(model_proto.SerializeToString())


class _NoFolding(FoldPass):
    """Builds the network without folding 1/std either."""

    def absorb_scale(self, value: ir.Value, scale: NDArray[np.float64]) -> str:  # noqa: ARG002
        raise DeclinedError("nothing is folded")


def with_random_statistics(network: nn.Module) -> None:
    """Give every batch norm something to do; fresh ones are the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)


def why_not_compiled() -> str:
    """Return why torch.compile cannot run here; empty if it can."""
    if not any(shutil.which(compiler) for compiler in ("g++", "c++", "clang++")):
        return "needs a C++ compiler, and there is none"
    try:
        torch.compile(lambda numbers: (numbers * 2).relu().sum())(torch.ones(64))
    except Exception as error:  # whatever stands in its way here
        return f"does not run here ({str(error).strip().splitlines()[0]})"
    return ""


def measure(forms: Forms, threads: int, batch_size: int, total_s: float) -> Row:
    """Let the forms take turns and return their medians."""
    programs = forms.programs(threads, batch_size)
    seconds = take_turns(list(programs.values()), total_s)
    times = {name: 1000 * value for name, value in zip(programs, seconds, strict=True)}
    return Row(forms.subject.name, threads, batch_size, times)


def print_verdict(bound: Bound, rows: Sequence[Row]) -> None:
    """Print one line per network: the ratio at each batch size, and whether their median is enough."""
    for subject in bound.subjects:
        ratios = [
            row.ratio(bound.top, bound.bottom)
            for row in rows
            if row.subject == subject and row.threads == bound.threads
        ]
        if ratios:
            verdict = "met" if median(ratios) >= bound.least else "MISSED"
            print(
                f"- {subject}, {bound.threads} thread{'s' * (bound.threads > 1)}: {bound.top} is "
                f"{median(ratios):.2f} times as fast as {bound.bottom} "
                f"({', '.join(f'{ratio:.2f}' for ratio in ratios)}), at least {bound.least:g}: {verdict}"
            )


def _heading() -> str:
    columns = ["network", "threads", "batch", *(f"{form}, ms" for form in FORMS)]
    columns += [f"{top} / {bottom}" for top, bottom in _PAIRS]
    return f"| {' | '.join(columns)} |\n|{'---|' * 3}{'---:|' * (len(columns) - 3)}"


def _line(row: Row) -> str:
    cells = [row.subject, str(row.threads), str(row.batch_size)]
    cells += [f"{row.ms[form]:.3g}" if form in row.ms else "-" for form in FORMS]
    return f"| {' | '.join([*cells, *(f'{row.ratio(*pair):.2f}x' for pair in _PAIRS)])} |"


def _machine() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    vnni = "with VNNI" if "vnni" in text else "without VNNI"
    return (
        f"{len(names) or '?'} cores of {names[0] if names else platform.processor()} ({vnni}), "
        f"torch {torch.__version__}, onnxruntime {RUNTIME_VERSION}"
    )


def _forward(module: Callable[..., Any], images: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return module(images)

    return run


def _run(session: Session, images: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: session.run([LOGITS], {IMAGE: images})


if __name__ == "__main__":
    main()
