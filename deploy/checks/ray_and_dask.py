"""Runs the examples for Ray and Dask on the engines themselves: `make check-ray`.

Two workers of Ray Train end with one checkpoint; Ray Data labels a million rows of 28x28 pixels while one of
its actors is killed; raw ONNX Runtime on the same rows says how fast that is, and the same program on a few
rows how long it takes to start; Dask labels a part of them. One machine, in the environment .venv-ray.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from benchmarks.gpu.pictures import write_pictures
from benchmarks.serving.networks import lenet
from deploy.checks.errors import CheckError
from foldserve import LocalModel
from foldserve.artifact.format import IMAGE, OUTPUTS
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.session import Session

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS_PER_FILE = 50_000
ROWS_PER_GROUP = 10_000
# So few that they cost next to nothing beside the start of Ray's workers.
FEW_ROWS = 1000
# Logical CPUs: two for the actors, two for reading and writing.
RAY_CPUS = 4


def write_rows(folder: Path, count: int) -> Path:
    """Write ``count`` rows of seeded noise to Parquet files."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for start in range(0, count, ROWS_PER_FILE):
        ids = range(start, min(start + ROWS_PER_FILE, count))
        pixels = generator.integers(0, 256, (len(ids), 784), dtype=np.uint8)
        table = pa.table({"id": list(ids), "image": [row.tobytes() for row in pixels]})
        pq.write_table(
            table, folder / f"{start:08}.parquet", row_group_size=ROWS_PER_GROUP, compression="none"
        )
    return folder


def raw_labels(model: Path, source: Path) -> tuple[dict[int, int], float]:
    """Return what ONNX Runtime answers, read from the same files, and the rows per second.

    As many threads as CPUs, each running batches of 32 in one session with a thread per call.
    """
    session = Session((model / "model.onnx").read_bytes(), device="cpu", intra_op_threads=1)
    found: dict[int, int] = {}

    def answer(files: list[Path]) -> None:
        for path in files:
            table = pq.read_table(path)
            pixels = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(-1, 1, 28, 28)
            ids = table["id"].to_pylist()
            for start in range(0, len(ids), 32):
                _, probabilities = session.run(OUTPUTS, {IMAGE: pixels[start : start + 32]})
                found.update(zip(ids[start : start + 32], probabilities.argmax(axis=1).tolist(), strict=True))

    files = sorted(source.glob("*.parquet"))
    threads = [
        threading.Thread(target=answer, args=(files[n :: usable_cpus()],)) for n in range(usable_cpus())
    ]
    started_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, len(found) / (time.monotonic() - started_s)


def check_answers(output: Path, expected: dict[int, int], model: LocalModel) -> None:
    """Check that each row was answered once, with the label of raw ONNX Runtime and the model's hash.

    Raises:
        CheckError: otherwise.
    """
    table = pq.read_table(output)
    if len(table) != len(expected) or len(pc.unique(table["id"])) != len(expected):
        raise CheckError(
            f"{len(table)} answers for {len(expected)} rows, {len(pc.unique(table['id']))} of them once"
        )
    if pc.unique(table["model"]).to_pylist() != [model.hash]:
        raise CheckError("an answer names another model")
    labels = np.array(model.labels)
    ids = table["id"].to_pylist()
    wanted = labels[[expected[number] for number in ids]]
    if wrong := int((np.array(table["label"].to_pylist()) != wanted).sum()):
        raise CheckError(f"{wrong} labels differ from raw ONNX Runtime's")


def run_example(script: str, *words: str) -> float:
    """Run an example on the Ray that is up, or on its own; it must succeed. Returns its seconds.

    Raises:
        CheckError: it failed.
    """
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CheckError(f"{script} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return time.monotonic() - started_s


def kill_an_actor(session: str, output: Path, until: threading.Event, killed: list[int]) -> None:
    """Send SIGKILL to an actor of the Ray session in folder ``session``, once some answers are written."""
    while not until.wait(0.2):
        if len(list(output.glob("*.parquet"))) < 2:
            continue
        for entry in Path("/proc").iterdir():
            try:
                name = (entry / "cmdline").read_text()
                if not (name.startswith("ray::") and "Classifier" in name):
                    continue
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if session in Path("/proc", parent, "cmdline").read_text():
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed.append(int(entry.name))
                    return
            except (OSError, ValueError):  # no process, or ended meanwhile
                continue


def check_data(folder: Path, session: str, count: int) -> None:
    """Label ``count`` rows on Ray Data with an actor killed, and a twentieth of them on Dask."""
    network = lenet(folder)
    version = network.model_file.parent
    model = LocalModel(version)
    source = write_rows(folder / "rows", count)
    few = write_rows(folder / "few", FEW_ROWS)
    start_s = run_example("ray_data.py", str(version), str(few), str(folder / "few answers"))
    expected, first_rate = raw_labels(version, source)
    output, finished = folder / "answers", threading.Event()
    killed: list[int] = []
    killer = threading.Thread(target=kill_an_actor, args=(session, output, finished, killed))
    killer.start()
    try:
        duration_s = run_example("ray_data.py", str(version), str(source), str(output))
    finally:
        finished.set()
        killer.join()
    _, second_rate = raw_labels(version, source)
    if not killed:
        raise CheckError("no actor was killed: there was none, or it was over too soon")
    check_answers(output, expected, model)
    raw_rate = (first_rate + second_rate) / 2
    print(f"Ray Data: {count:,} rows answered once each by {model.hash[:12]}, with actor {killed[0]} killed")
    print(f"  raw ONNX Runtime: {first_rate:,.0f} rows/s before and {second_rate:,.0f} after")
    for rate, how in (
        (count / duration_s, "from start to end of the program"),
        (count / (duration_s - start_s), f"without the {start_s:.1f} s that it takes for {FEW_ROWS:,} rows"),
    ):
        print(f"  {rate:,.0f} rows/s, {rate / raw_rate:.2f} of raw, {how}", flush=True)
    part = folder / "part"
    part.mkdir()
    for path in sorted(source.glob("*.parquet"))[: max(1, count // ROWS_PER_FILE // 20)]:
        (part / path.name).symlink_to(path)
    run_example("dask_classify.py", str(version), str(part), str(folder / "dask"))
    ids = pq.read_table(part)["id"].to_pylist()
    check_answers(folder / "dask", {number: expected[number] for number in ids}, model)
    print(f"Dask: {len(ids):,} rows answered once each", flush=True)


def check_training(folder: Path) -> None:
    """Train with two workers; there must be one checkpoint, made by two processes."""
    data, run = write_pictures(folder / "pictures", per_class=60), folder / "run"
    flags = (
        f"--arch=lenet --dataset={data} --run-dir={run} --epochs=2 --batch-size=16 --threads=1 --device=cpu"
    )
    words = [sys.executable, str(EXAMPLES / "ray_train.py"), "--workers", "2", "--", *flags.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or not (run / "best.pt").exists():
        raise CheckError(f"ray_train.py failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    if "in 2 processes" not in done.stdout + done.stderr:
        raise CheckError(f"the workers trained alone:\n{done.stdout[-3000:]}")
    print("Ray Train: two workers, one checkpoint", flush=True)


def main() -> int:
    """Run the trials and return 0 if all are as they should be."""
    parser = argparse.ArgumentParser(prog="python -m deploy.checks.ray_and_dask", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    print(f"Ray {ray.__version__}", flush=True)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    context = ray.init(num_cpus=RAY_CPUS, include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    try:
        with tempfile.TemporaryDirectory(prefix="check-ray-") as name:
            check_training(Path(name))
            check_data(Path(name), context.address_info["session_dir"], rows)
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckError as error:
        print(f"check-ray: {error}", file=sys.stderr)
        sys.exit(1)
