"""`python -m benchmarks.gpu`: speed on a GPU, in this process and served; on the CPU if there is no GPU."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu import in_process, served
from benchmarks.gpu.networks import NAMES, Network, build, publish
from foldserve.demo.server_process import running_server
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.session import RUNTIME_VERSION, cuda_is_present

if TYPE_CHECKING:
    from foldserve.runtime.options import Device

_LOADS = (served.Load(1, 1, 1), served.Load(8, 8, 1), served.Load(8, 2, 32))
_TRANSPORTS = ("native", "grpcio")
_MAX_BATCH_SIZES = (32, 128)


def main() -> int:
    """Measure and print Markdown tables; return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32, 128, 256])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row, about")
    parser.add_argument(
        "--parts", nargs="+", choices=("in-process", "served"), default=["in-process", "served"]
    )
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()

    device: Device = "cuda" if torch.cuda.is_available() and cuda_is_present() else "cpu"
    print(
        f"{_card(device)}, {usable_cpus()} CPUs, torch {torch.__version__}, onnxruntime "
        f"{RUNTIME_VERSION}, Python {platform.python_version()}\n",
        flush=True,
    )
    rows: list[in_process.Row] = []
    told: list[dict[str, object]] = []
    for name in args.networks:
        network = build(name)
        if "in-process" in args.parts:
            print(_heading(), flush=True)
            for precision in network.files:
                for batch_size in args.batch_sizes:
                    row = in_process.measure(network, precision, batch_size, device, args.seconds)
                    rows.append(row)
                    print(_line(row), flush=True)
            network.module.to("cpu")
        if "served" in args.parts:
            told += _serve(network, device, args.seconds)
    if args.json_file is not None:
        args.json_file.write_text(json.dumps({"in_process": [asdict(row) for row in rows], "served": told}))
    return 0


def _serve(network: Network, device: Device, seconds: float) -> list[dict[str, object]]:
    columns = ("model", "transport", "max batch", "load", "images/s", "p50, ms")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    told: list[dict[str, object]] = []
    for precision, transport, max_batch in product(network.files, _TRANSPORTS, _MAX_BATCH_SIZES):
        with tempfile.TemporaryDirectory(prefix="bench-gpu-models-") as folder:
            repository, log = Path(folder, "models"), Path(folder, "server.log")
            model = publish(network, precision, repository)
            flags = ("--transport", transport, "--max-batch-size", str(max_batch))
            with running_server(repository, *flags, device=device, log=log) as address:
                for load in _LOADS:
                    speed, p50_ms = served.measure(address, model, network, load, seconds)
                    values = (model, transport, str(max_batch), str(load), f"{speed:,.0f}", f"{p50_ms:.2f}")
                    print(f"| {' | '.join(values)} |", flush=True)
                    told.append(dict(zip(columns, values, strict=True)))
    return told


def _card(device: str) -> str:
    if device == "cpu":
        return "no GPU: a rehearsal on the CPU"
    return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"


def _heading() -> str:
    columns = " | ".join(f"{way}, images/s" for way in in_process.WAYS)
    return f"\n| network | precision | batch | {columns} |\n|---|---|---:|{'---:|' * len(in_process.WAYS)}"


def _line(row: in_process.Row) -> str:
    cells = [
        f"{row.images_per_s[way]:,.0f}" if way in row.images_per_s else row.missing[way]
        for way in in_process.WAYS
    ]
    return f"| {row.network} | {row.precision} | {row.batch_size} | {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
