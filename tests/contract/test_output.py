"""The output of commands, for any names of files and labels, any terminal, and readers that leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import InvalidArgumentError
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import SOURCE, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_UTF8 = os.fsdecode(b"caf\xe9.png")
# Names that are no UTF-8, would break lines or do things to a terminal; and how they stand in a line.
NAMES = {
    "plain.png": "plain.png",
    "café 日本.png": "café 日本.png",
    NO_UTF8: r"caf\xe9.png",
    "two\nlines.png": r"two\x0alines.png",
    "red\x1b[31m.png": r"red\x1b[31m.png",
    "turned\u202egnp.png": r"turned\u202egnp.png",
}


@pytest.fixture(scope="module")
def japanese(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("japanese")
    network = TinyNetwork(seed=2)
    network.labels = ("猫", "犬", "鳥")  # which no Latin-1 terminal can show
    network.publish(folder / "models" / "tiny")
    with ServerProcess(folder / "models", folder / "server") as server:
        yield server


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(np.full((8, 8), len(name), np.uint8)).save(folder / name)
    return folder


def run(*arguments: str, encoding: str = "utf-8", **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command line with a standard output of this encoding, buffered as it is for a pipe."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)
    command = [sys.executable, "-m", "foldserve", *arguments]
    options = {"capture_output": True, "timeout": 60} | options
    return subprocess.run(command, env=environment, cwd=SOURCE, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "encoding", ["utf-8:strict", "utf-8:surrogateescape", "latin-1:strict", "ascii:strict"]
)
def test_table_has_one_line_per_image(japanese: ServerProcess, pictures: Path, encoding: str) -> None:
    ended = run("classify", "--server", japanese.address, "--model", "tiny", str(pictures), encoding=encoding)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.decode(encoding.partition(":")[0], "strict").splitlines()
    assert len(lines) == len(NAMES)
    for name in NAMES.values():
        expected = name.encode(encoding.partition(":")[0], "backslashreplace").decode("latin-1")
        assert any(
            f"/{expected} " in line.encode(encoding.partition(":")[0]).decode("latin-1") for line in lines
        )
    labels = ("猫", "犬", "鳥") if encoding.startswith("utf-8") else (r"\u732b", r"\u72ac", r"\u9ce5")
    assert all(line.count(label) == 1 for line in lines for label in labels)


@pytest.mark.parametrize(
    "encoding", ["utf-8:strict", "utf-8:surrogateescape", "latin-1:strict", "ascii:strict"]
)
def test_json_lines_are_utf8_everywhere(japanese: ServerProcess, pictures: Path, encoding: str) -> None:
    flags = ("--server", japanese.address, "--model", "tiny", "--jsonl")
    ended = run("classify", *flags, str(pictures), encoding=encoding)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.decode("utf-8", "strict").splitlines()]
    names = {line["path"].removeprefix(f"{pictures}/") for line in lines}
    assert names == (NAMES.keys() - {NO_UTF8}) | {r"caf\xe9.png"}, "escaped only where it is no UTF-8"
    json.dumps(lines, ensure_ascii=False).encode()  # no half of a surrogate pair
    assert all(label["label"] in "猫犬鳥" for line in lines for label in line["labels"])


@pytest.mark.parametrize("jsonl", [False, True], ids=["table", "JSON lines"])
def test_images_without_an_answer_are_named_and_hide_no_others(
    japanese: ServerProcess, pictures: Path, jsonl: bool
) -> None:
    """A damaged one, one that cannot be read, one that is gone: all others are answered."""
    (pictures / "cut.png").write_bytes((pictures / "plain.png").read_bytes()[:-30])
    (pictures / os.fsdecode(b"n\xf6.png")).write_bytes(b"no image")
    flags = ("--server", japanese.address, "--model", "tiny", *["--jsonl"] * jsonl)
    ended = run("classify", *flags, str(pictures), str(pictures / "gone.png"))
    assert ended.returncode == 1
    lines = ended.stdout.decode("utf-8", "strict").splitlines()
    if jsonl:
        assert ended.stderr == b""
        errors = [json.loads(line) for line in lines if '"error"' in line]
        assert [line["path"].rpartition("/")[2] for line in errors] == ["cut.png", r"n\xf6.png", "gone.png"]
        assert len(lines) == len(NAMES) + 3
        return
    assert len(lines) == len(NAMES)
    said = ended.stderr.decode("utf-8", "strict").splitlines()
    assert [line.partition(": ")[0] for line in said] == ["foldserve classify"] * 3
    assert "cut.png: damaged image" in said[0]
    assert r"n\xf6.png: not an image" in said[1]
    assert "gone.png cannot be read" in said[2]


def test_hidden_files_are_skipped_unless_named(japanese: ServerProcess, pictures: Path) -> None:
    plain = (pictures / "plain.png").read_bytes()
    for folder in (pictures / ".thumbnails", pictures / "sub" / ".cache" / "deep", pictures / "sub"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.png").write_bytes(plain)
    (pictures / "._plain.png").write_bytes(b"what a Mac leaves")
    flags = ("--server", japanese.address, "--model", "tiny", "--jsonl")
    ended = run("classify", *flags, str(pictures))
    assert ended.returncode == 0, ended.stdout
    paths = [json.loads(line)["path"].removeprefix(f"{pictures}/") for line in ended.stdout.splitlines()]
    assert len(paths) == len(NAMES) + 1
    assert "sub/a.png" in paths
    named = run("classify", *flags, str(pictures / ".thumbnails"), str(pictures / "._plain.png"))
    assert [b'"error"' in line for line in named.stdout.splitlines()] == [False, True]


def test_model_name_that_is_not_utf8_is_explained(japanese: ServerProcess, pictures: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    ended = run("classify", "--server", japanese.address, "--model", name, str(pictures))
    assert ended.returncode == 2
    assert ended.stderr.count(b"\n") == 1
    with Client(japanese.address) as client, pytest.raises(InvalidArgumentError, match="cannot be encoded"):
        client.describe(name)


def commands(repository: Path, server: ServerProcess, pictures: Path) -> dict[str, list[str]]:
    classify = ["classify", "--server", server.address, "--model", "tiny", str(pictures)]
    return {
        "table": classify,
        "JSON lines": [*classify, "--jsonl"],
        "models of a folder": ["models", "list", "--repository", str(repository)],
        "models of a server": ["models", "list", "--server", server.address],
        "help": ["classify", "--help"],
        "token": ["token", "--name", "me"],
        "debug": [*classify, "--debug"],
    }


@pytest.mark.parametrize(
    "name",
    ["table", "JSON lines", "models of a folder", "models of a server", "help", "token", "debug"],
)
def test_closed_reader_ends_a_command_silently(
    repository: Path, japanese: ServerProcess, pictures: Path, name: str
) -> None:
    """As `head` goes. The pipe has lost its reader before a line is written."""
    reading, writing = os.pipe()
    os.close(reading)
    arguments = commands(repository, japanese, pictures)[name]
    with os.fdopen(writing, "wb") as pipe:
        ended = run(*arguments, capture_output=False, stdout=pipe, stderr=subprocess.PIPE)
    assert b"rror" not in ended.stderr, ended.stderr
    assert b"Broken pipe" not in ended.stderr
    assert ended.returncode == (0 if name == "help" else 141)


def test_full_disk_is_reported(repository: Path) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        flags = ("models", "list", "--repository", str(repository))
        ended = run(*flags, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1
    assert b"No space left on device" in ended.stderr
    assert ended.stderr.count(b"\n") == 1


def test_closed_output_is_not_a_failure(repository: Path) -> None:
    command = f"exec {sys.executable} -m foldserve models list --repository {repository} >&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, cwd=SOURCE, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
