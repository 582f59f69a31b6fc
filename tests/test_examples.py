"""The scripts in examples/, each run as its first line says against a real server."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from foldserve import LocalModel
from foldserve.demo.children import ending_with_us
from foldserve.imaging import ImageSpec
from tests.support.artifacts import TinyNetwork
from tests.support.encoded_images import encode
from tests.support.image_folders import LABELS, write_classes
from tests.support.server_process import ServerProcess
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = ROOT / "examples"
_TESTS = ("test_examples.py", "test_other_clients.py")
# On engines that are no dependency of this project, by `make check-ray` and `make check-kubeflow`.
RUN_BY_TRIAL = {
    "ray_train.py": "ray_and_dask.py",
    "ray_data.py": "ray_and_dask.py",
    "dask_classify.py": "ray_and_dask.py",
    "kubeflow_train.py": "kubeflow.py",
}
PROGRAM = f"{os.pathsep}".join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    with ServerProcess(tmp_path / "models", tmp_path / "server") as running:
        yield running


def run(script: str, *arguments: str, folder: Path) -> str:
    """Run an example in ``folder`` and return what it printed; it must have worked."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_and_listed() -> None:
    tests = "".join((ROOT / "tests" / name).read_text() for name in _TESTS)
    listed = (EXAMPLES / "README.md").read_text()
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."]
    if shutil.which("git") is None:
        pytest.skip("needs git")
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs a checkout that git reads: {done.stderr.strip()}")
    for name in done.stdout.split():
        path = Path(name)
        if path.suffix != ".md" and path.parts[0] != "preprocessing":
            assert path.name in tests, f"{path} has no test"
            assert path.parts[0] in listed, f"{path} is not in README.md"


def test_pictures_are_classified_over_a_stream(server: ServerProcess, tmp_path: Path) -> None:
    pictures = write_classes(tmp_path / "pictures", per_class=1)
    (pictures / "none.png").write_bytes(b"none")
    words = ["tiny", str(pictures), "--server", server.address]
    lines = run("classify_stream.py", *words, folder=tmp_path).splitlines()
    failed = [line for line in lines if "\terror: " in line]
    assert len(lines) == len(LABELS) + 1
    assert len(failed) == 1
    assert re.search(r"none\.png\terror: .*not an image", failed[0])
    for line in lines:
        assert line in failed or re.fullmatch(r"\S+\.png\tlabel \d \d+\.\d%", line)


def test_pictures_are_classified_without_a_server(tmp_path: Path) -> None:
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    pictures = [str(path) for path in write_classes(tmp_path / "pictures", per_class=1).rglob("*.png")]
    lines = run("classify_locally.py", "models/tiny", *pictures, folder=tmp_path).splitlines()
    assert len(lines) == len(LABELS)
    for line in lines:
        assert re.fullmatch(r"\S+\.png\tlabel \d \d+\.\d%", line)


def test_examples_for_engines_are_run_by_their_trial() -> None:
    for name, trial in RUN_BY_TRIAL.items():
        assert f'"{name}"' in (ROOT / "deploy" / "checks" / trial).read_text()


def test_rows_are_answered_as_the_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """parquet_classifier.py, which the examples for Ray and Dask share: pixels and encoded files."""
    monkeypatch.syspath_prepend(EXAMPLES)
    classifier = importlib.import_module("parquet_classifier")
    network = TinyNetwork()
    version = network.publish(tmp_path / "models" / "tiny")
    images = network.random_images(20)
    rows = pa.table({"id": range(20), "image": [image.tobytes() for image in images]})
    answers = classifier.opened(str(version))(rows)
    model = LocalModel(version)
    expected = model.predict(images)
    assert answers["id"].to_pylist() == list(range(20))
    assert answers["label"].to_pylist() == expected.labels()
    assert np.array_equal(answers["probability"], expected.confidences())
    assert set(answers["model"].to_pylist()) == {model.hash}
    # A part of a table, of pieces that lie apart, as engines hand them over; and one without rows.
    parts = pa.concat_tables([rows, rows]).slice(7, 22)
    part = classifier.opened(str(version))(parts)
    assert part["id"].to_pylist() == [*range(7, 20), *range(9)]
    assert part["label"].to_pylist() == [expected.labels()[number] for number in part["id"].to_pylist()]
    assert len(classifier.opened(str(version))(rows.slice(0, 0))) == 0
    files = [encode(image[0]) for image in images[:3]]
    answers = classifier.opened(str(version))(pa.table({"id": [7, 8, 9], "image": files}))
    assert answers["label"].to_pylist() == model.predict(files).labels()
    # A file that is as long as the pixels is one all the same.
    network = TinyNetwork(image=ImageSpec("L", 28, 28, 28))
    version = network.publish(tmp_path / "models" / "larger")
    (image,) = network.random_images(1) // 128
    file = encode(image[0])
    file += bytes(784 - len(file))
    answers = classifier.opened(str(version))(pa.table({"id": [1], "image": [file]}))
    (probability,) = answers["probability"].to_pylist()
    assert [probability] == LocalModel(version).predict([file]).confidences().tolist()
    assert [probability] == LocalModel(version).predict(image[None]).confidences().tolist()


def test_pictures_are_classified(server: ServerProcess, tmp_path: Path) -> None:
    pictures = write_classes(tmp_path / "pictures", per_class=1).rglob("*.png")
    words = ["tiny", *map(str, pictures), "--server", server.address]
    lines = run("classify_pictures.py", *words, folder=tmp_path).splitlines()
    assert len(lines) == len(LABELS)
    for line in lines:
        assert re.fullmatch(r"\S+\.png(\tlabel \d \d+\.\d%){2}", line)


def test_a_data_set_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        assert "drew 3 pictures of each" in run(
            "draw_pictures.py", folder, "--per-class", "3", folder=tmp_path
        )
    drawn = {path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.png")}
    assert {str(path.parent) for path in drawn} == {"circle", "square", "triangle"}
    assert len(drawn) == 9
    for path in drawn:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()


def test_many_requests_are_answered_at_once(server: ServerProcess, tmp_path: Path) -> None:
    words = ("tiny", "--count", "200", "--server", server.address)
    output = run("infer_concurrently.py", *words, folder=tmp_path)
    assert sum(map(int, re.findall(r"(\d+) of 200 images", output))) == 200


def test_a_stock_triton_client_is_answered(server: ServerProcess, tmp_path: Path) -> None:
    output = run("infer_with_tritonclient.py", "tiny", "--server", server.address, folder=tmp_path)
    probabilities = [float(line.partition(": ")[2]) for line in output.splitlines()]
    assert len(probabilities) == 3
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)


def test_a_stopping_server_is_seen_to_stop(server: ServerProcess) -> None:
    command = [sys.executable, EXAMPLES / "watch_health.py", "tiny", "--server", server.address]
    with subprocess.Popen(ending_with_us(command), stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "tiny SERVING\n"
        server.process.send_signal(signal.SIGTERM)
        assert watcher.stdout.readline() == "tiny NOT_SERVING\n"
        watcher.stdout.read()
    assert watcher.returncode == 0


def test_an_own_network_is_trained_exported_and_served(tmp_path: Path) -> None:
    pictures = write_classes(tmp_path / "pictures", per_class=20)
    models = tmp_path / "models"
    project = tmp_path / "own_network"  # a copy, as runs/ is left in it
    project.mkdir()
    for name in ("networks.py", "train_and_export.sh"):
        (project / name).write_bytes((EXAMPLES / "own_network" / name).read_bytes())
    flags = ("--epochs", "2", "--batch-size", "16", "--threads", "1")
    done = subprocess.run(
        ["sh", "train_and_export.sh", pictures, models, *flags],
        cwd=project,
        env=os.environ | {"PATH": PROGRAM},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"foldserve serve --repository {models}" in done.stdout
    with ServerProcess(models, tmp_path / "server") as server:
        picture = str(pictures / LABELS[0] / "000.png")
        words = ("tiny", picture, "--server", server.address)
        assert run("classify_pictures.py", *words, folder=tmp_path).startswith(picture)
