"""`python -m benchmarks.pictures`: Classify and BYTES against decoding alone, and tensors beside them.

The network takes 224x224 pixels and is so small that decoding is nearly all there is. Each round decodes a
JPEG in this process on all CPUs, then sends it to a server, and then sends tensors of one image at a steady
rate: alone, to the server that is sent pictures, and to a second server beside it that is sent nothing else,
which tells how much of the wait is the machine's. Ratios are taken within a round. Everything is sent by
h2load: a caller in Python spends more time than the server, and its own waits for a CPU would count as the
server's.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from benchmarks.flags import parse_flags
from benchmarks.pictures.load import CALLERS, Repeated, decode_alone, send_pictures, write_body
from benchmarks.pictures.photographs import photograph
from benchmarks.serving.bare_model import METHOD
from benchmarks.serving.check import checked_answer_bytes, request_body
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.load import Load, latencies_us, require_h2load
from benchmarks.serving.networks import COLOUR_224, glance
from benchmarks.serving.server_process import running
from foldserve.runtime.cpus import find_cpus
from foldserve.serving.pb import classifier_pb2
from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from benchmarks.serving.server_process import ServerProcess

_CLASSIFY = "/foldserve.v1.Classifier/Classify"
_TENSORS = "tensors' {} beside Classify / alone"
_APART = "tensors' {} at a server of their own beside it / alone"
# Streams for the steady rate, so that a slow answer delays no later request.
_STREAMS = 32
_SCALED = "CPU of decoding in full / scaled"
_MUST = {
    "pictures/s / decoding alone": "at least 0.9",
    "server CPU / decoding alone": "at most 1.1",
    _TENSORS.format("p99"): "at most 2",
}
_SIZES = ((500, 375), (4000, 3000))


class PicturesConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Measure encoded pictures against decoding alone, as ratios in one run."""

    rounds: int = Field(default=5, ge=1)
    """Interleaved rounds; the table shows medians and, in brackets, the least and the most."""
    seconds: float = Field(default=3.0, gt=0)
    """Length of one measurement."""
    tensors_per_s: float = Field(default=100.0, gt=0)
    """Requests of one image as pixels per second, all from one caller."""
    transport: Literal["native", "grpcio"] = "native"
    """The server's transport."""


def run_bench(config: PicturesConfig) -> int:
    """Measure and print the table; return 0.

    Raises:
        BenchError: h2load is missing, or the server ended or answered wrongly.
    """
    require_h2load()
    console = Console(width=140)
    console.print(f"{find_cpus()}; {config.rounds} rounds of {config.seconds:g} s; {config.transport}")
    table = Table("one JPEG a request", "ratio", "must")
    with tempfile.TemporaryDirectory(prefix="bench-networks-") as folder:
        network = glance(Path(folder))
        contestant = Contestant("foldserve", config.transport)
        with running(contestant, network) as server, running(contestant, network) as other:
            answer_bytes = checked_answer_bytes(server, network, 1)
            checked_answer_bytes(other, network, 1)
            tensor = request_body(server, network, 1)
            for width, height in _SIZES:
                picture = photograph(width, height)
                trial = _Trial(server, network.name, picture, answer_bytes, Path(folder))
                for name, ratios in trial.measure(tensor, other, config).items():
                    must = next((must for end, must in _MUST.items() if name.endswith(end)), "")
                    table.add_row(f"{width}x{height}: {name}", _with_spread(ratios), must)
    console.print(table)
    return 0


class _Trial:
    """One picture, as it is sent by either RPC."""

    def __init__(
        self, server: ServerProcess, model: str, picture: bytes, answer_bytes: int, folder: Path
    ) -> None:
        self.picture = picture
        self._answer_bytes = answer_bytes  # of a request of one tensor
        self.bodies = {"Classify": (_CLASSIFY, folder / "classify"), "BYTES": (METHOD, folder / "bytes")}
        self._server = server
        classify = classifier_pb2.ClassifyRequest(model_name=model, images=[picture])
        write_body(self.bodies["Classify"][1], classify.SerializeToString())
        message = pb.ModelInferRequest(
            model_name=model, inputs=[{"name": "image", "datatype": "BYTES", "shape": [1]}]
        )
        message.inputs[0].contents.bytes_contents.append(picture)
        write_body(self.bodies["BYTES"][1], message.SerializeToString())

    def measure(self, tensor: bytes, other: ServerProcess, config: PicturesConfig) -> dict[str, list[float]]:
        """Return the ratios of every round by the names of their rows."""
        figures: dict[str, list[float]] = {}
        picture, server = self.picture, self._server
        rate = decode_alone(picture, COLOUR_224, 10).pictures_per_s
        count = max(CALLERS, round(rate * config.seconds))
        for number in range(config.rounds + 1):
            if number == 1:  # the first round lays out memory and wakes threads
                figures.clear()
            alone = decode_alone(picture, COLOUR_224, count)
            for name, (method, body) in self.bodies.items():
                sent = send_pictures(server, method, body, count)
                ratio = sent.pictures_per_s / alone.pictures_per_s
                figures.setdefault(f"{name}, pictures/s / decoding alone", []).append(ratio)
                ratio = sent.cpu_us / alone.cpu_us
                figures.setdefault(f"{name}, server CPU / decoding alone", []).append(ratio)
            full = decode_alone(picture, replace(COLOUR_224, decode="full"), max(4, count // 8))
            figures.setdefault(_SCALED, []).append(full.cpu_us / alone.cpu_us)
            lone_us = self._tensor_latencies_us(server, tensor, config)
            with Repeated(server, *self.bodies["Classify"], max(CALLERS, count // 4)):
                beside_us = self._tensor_latencies_us(server, tensor, config)
                apart_us = self._tensor_latencies_us(other, tensor, config)
            for percent in (50, 99):
                lone, beside, apart = (
                    float(np.percentile(us, percent)) for us in (lone_us, beside_us, apart_us)
                )
                figures.setdefault(_TENSORS.format(f"p{percent}"), []).append(beside / lone)
                figures.setdefault(_APART.format(f"p{percent}"), []).append(apart / lone)
        return figures

    def _tensor_latencies_us(
        self, server: ServerProcess, body: bytes, config: PicturesConfig
    ) -> NDArray[np.float64]:
        return latencies_us(
            server,
            Load(streams=_STREAMS, per_s=config.tensors_per_s),
            body=body,
            answer_bytes=self._answer_bytes,
            requests=max(1, round(config.seconds * config.tensors_per_s)),
        )


def _with_spread(values: Sequence[float]) -> str:
    """Return "median (least - most)"."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


if __name__ == "__main__":
    raise SystemExit(run_bench(parse_flags(PicturesConfig, "benchmarks.pictures")))
