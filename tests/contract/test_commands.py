"""`foldserve classify` and `foldserve models list`, as a person runs them, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from foldserve.imaging import prepare_image
from foldserve.serving.client.async_client import AsyncClient
from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import InvalidArgumentError, NotFoundError, UnavailableError
from tests.support.server_process import SOURCE, ServerProcess, run_cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from subprocess import CompletedProcess

    from tests.support.artifacts import TinyNetwork


def write_png(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_classify_prints_the_likeliest_labels(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    images = network.random_images(20)
    paths = [str(write_png(tmp_path / f"{index}.png", image[0])) for index, image in enumerate(images)]
    ended = run_cli("classify", "--model", "tiny", "--server", server.address, *paths)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 20
    best = [network.labels[index] for index in network.logits(images).argmax(axis=1)]
    assert len(set(best)) > 1, "images that all get one label would prove nothing"
    for line, path, label in zip(lines, paths, best, strict=True):
        assert line.startswith(path)
        assert line.removeprefix(path).strip().startswith(label)
        assert line.count("%") == 3


def test_classify_prepares_other_sizes_and_colours(
    server: ServerProcess, colour_network: TinyNetwork, tmp_path: Path
) -> None:
    path = write_png(tmp_path / "large.png", np.full((90, 70), 200, np.uint8))
    ended = run_cli("classify", "--model", "colour", "--server", server.address, "--top-k", "1", str(path))
    assert ended.returncode == 0, ended.stderr
    grey = np.full((1, *colour_network.image.shape), 200, np.uint8)
    assert colour_network.labels[int(colour_network.logits(grey).argmax())] in ended.stdout


def test_classify_says_unknown_below_the_confidence(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path, command: Callable[..., CompletedProcess[str]]
) -> None:
    path = str(write_png(tmp_path / "a.png", network.random_images(1)[0, 0]))
    words = ("classify", "--model", "tiny", "--server", server.address, path)
    label = command(*words).stdout.removeprefix(path).strip()
    assert command(*words, "--min-confidence", "1").stdout.removeprefix(path).strip() == f"unknown ({label})"
    line = json.loads(command(*words, "--min-confidence", "1", "--jsonl").stdout)
    assert line["unknown"] is True
    assert "unknown" not in json.loads(command(*words, "--jsonl").stdout)


def test_classify_walks_folders_and_prints_json_lines(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    """A hundred files and one that is none: a line each, in order, and the exit status tells."""
    images = network.random_images(100)
    for index, image in enumerate(images):
        folder = tmp_path / f"part {index // 50}"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{index:03}.PNG", image[0])
    (tmp_path / "part 1" / "notes.txt").write_text("not asked about")
    arguments = ("classify", "--model", "tiny", "--server", server.address, "--jsonl", str(tmp_path))
    ended = run_cli(*arguments)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["path"].rpartition("/")[2] for line in lines] == [f"{index:03}.PNG" for index in range(100)]
    assert {(line["model"], line["version"]) for line in lines} == {("tiny", "2")}
    best = [network.labels[index] for index in network.logits(images).argmax(axis=1)]
    assert [line["labels"][0]["label"] for line in lines] == best
    (tmp_path / "part 0" / "020.PNG").write_text("not an image")
    ended = run_cli(*arguments)
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [index for index, line in enumerate(lines) if "error" in line] == [20]
    assert "not an image" in lines[20]["error"]


def test_classify_splits_files_that_are_large_together(
    repository: Path, tmp_path: Path, network: TinyNetwork
) -> None:
    """Several to a request would be more than the server takes, and all in flight more than it holds."""
    pictures = np.random.default_rng(5).integers(0, 256, (40, 400, 400), np.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = [write_png(folder / f"{index:02}.png", pixels) for index, pixels in enumerate(pictures)]
    assert files[0].stat().st_size * 8 > 2**20
    (folder / "99.bmp").write_bytes(bytes(2**20))  # more than a message, alone
    prepared = np.stack([prepare_image(file.read_bytes(), network.image) for file in files])
    best = [network.labels[index] for index in network.logits(prepared).argmax(axis=1)]
    flags = ("--max-message-mib", "1", "--max-queue-mib", "1")
    with ServerProcess(repository, tmp_path / "server", *flags) as server:
        ended = run_cli("classify", "--model", "tiny", "--server", server.address, "--jsonl", str(folder))
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["labels"][0]["label"] for line in lines[:-1]] == best
    assert "--max-message-mib" in lines[-1]["error"]
    assert ended.returncode == 1


def test_classify_shows_its_progress_on_a_terminal(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    """On standard error, and there only: standard output is for the lines."""
    for index, image in enumerate(network.random_images(20)):
        write_png(tmp_path / f"{index}.png", image[0])
    terminal, terminals_end = pty.openpty()
    command = [sys.executable, "-m", "foldserve", "classify", "--model", "tiny", "--jsonl"]
    ended = subprocess.run(
        [*command, "--server", server.address, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=terminals_end,
        text=True,
        check=False,
        cwd=SOURCE,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(terminals_end)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert ended.returncode == 0, shown
    assert "classifying" in shown, shown
    assert "%" in shown, shown
    assert len([json.loads(line) for line in ended.stdout.splitlines()]) == 20


def test_classify_explains_a_folder_without_images(server: ServerProcess, tmp_path: Path) -> None:
    line = failing("classify", "--model", "tiny", "--server", server.address, str(tmp_path))
    assert f"{tmp_path} has no image files" in line


def failing(*arguments: str) -> str:
    ended = run_cli(*arguments)
    assert ended.returncode != 0
    assert ended.stdout == ""
    (line,) = ended.stderr.strip().splitlines()
    return line


def test_classify_explains_a_file_that_is_no_image(server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    line = failing("classify", "--model", "tiny", "--server", server.address, str(path))
    assert "notes.png: not an image" in line


def test_classify_explains_a_missing_file(server: ServerProcess, tmp_path: Path) -> None:
    line = failing("classify", "--model", "tiny", "--server", server.address, str(tmp_path / "gone.png"))
    assert "gone.png cannot be read: No such file" in line


def test_classify_explains_an_unknown_model(server: ServerProcess, tmp_path: Path) -> None:
    path = write_png(tmp_path / "picture.png", np.zeros((8, 8), np.uint8))
    line = failing("classify", "--model", "nets", "--server", server.address, str(path))
    assert "'nets' is not in the repository; it has 'colour', 'tiny'" in line


def test_classify_explains_that_no_server_answers(tmp_path: Path) -> None:
    path = write_png(tmp_path / "picture.png", np.zeros((8, 8), np.uint8))
    # Port 1 is reserved and nothing listens there.
    line = failing("classify", "--model", "tiny", "--server", "127.0.0.1:1", str(path))
    assert "no server answers at 127.0.0.1:1" in line


def test_list_shows_the_repository(repository: Path) -> None:
    ended = run_cli("models", "list", "--repository", str(repository))
    assert ended.returncode == 0, ended.stderr
    rows = [line.split()[:3] for line in ended.stdout.splitlines()]
    assert rows == [
        ["MODEL", "VERSION", "STATE"],
        ["colour", "1", "complete"],
        ["tiny", "1", "complete"],
        ["tiny", "2", "complete"],
    ]


def test_list_shows_a_server(server: ServerProcess) -> None:
    ended = run_cli("models", "list", "--server", server.address)
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[:3] for line in ended.stdout.splitlines()[1:]] == [
        ["colour", "1", "READY"],
        ["tiny", "1", "READY"],
        ["tiny", "2", "READY"],
    ]


def test_verify_checks_every_version(repository: Path) -> None:
    ended = run_cli("models", "verify", "--repository", str(repository), "--device", "cpu")
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count("32 synthetic golden pairs reproduced on CPUExecutionProvider") == 3


def test_async_client_keeps_many_calls_in_flight(server: ServerProcess, network: TinyNetwork) -> None:
    async def ask() -> float:
        async with AsyncClient(server.address) as client:
            assert (await client.describe("tiny")).version == "2"
            assert len(await client.index()) == 3
            with pytest.raises(NotFoundError, match="'nets'"):
                await client.infer("nets", network.random_images(1))
            batches = [network.random_images(1 + index % 3, seed=index) for index in range(100)]
            answers = await asyncio.gather(*(client.infer("tiny", images) for images in batches))
            return max(
                float(np.abs(answer["logits"] - network.logits(images)).max())
                for answer, images in zip(answers, batches, strict=True)
            )

    assert asyncio.run(ask()) < 1e-5


def test_async_client_explains_that_no_server_answers() -> None:
    async def ask() -> None:
        async with AsyncClient("127.0.0.1:1", connect_timeout_s=0.2):
            pass

    with pytest.raises(UnavailableError, match=r"no server answers at 127\.0\.0\.1:1"):
        asyncio.run(ask())


def test_clients_classify_paths_and_bytes(
    server: ServerProcess, network: TinyNetwork, tmp_path: Path
) -> None:
    image = network.random_images(1)[0]
    path = write_png(tmp_path / "picture.png", image[0])
    with Client(server.address) as client:
        answer = client.classify("tiny", [path, path.read_bytes()], top_k=2)
        assert (answer.model, answer.version, len(answer.sha256)) == ("tiny", "2", 64)
        first, second = answer.labels
        assert first == second
        assert first[0].index == int(network.logits(image[None]).argmax())
        with pytest.raises(InvalidArgumentError, match="image 1: not an image"):
            client.classify("tiny", [path, b"nothing"])


def test_client_raises_typed_errors(server: ServerProcess, network: TinyNetwork) -> None:
    with Client(server.address) as client:
        with pytest.raises(NotFoundError, match="'nets'"):
            client.describe("nets")
        with pytest.raises(InvalidArgumentError, match="batch dimension is missing"):
            client.infer("tiny", network.random_images(1)[0])
        answer = client.infer("tiny", network.random_images(2))
        assert np.abs(answer["logits"] - network.logits(network.random_images(2))).max() < 1e-5
    with pytest.raises(UnavailableError, match="no server answers"):
        Client("127.0.0.1:1", connect_timeout_s=0.2)
