"""Finding and downloading the files of a data set: order, messages, and no partial use."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foldserve.training.datasets import download as download_module
from foldserve.training.datasets import load_dataset
from foldserve.training.datasets.fashion_mnist import SOURCE
from foldserve.training.datasets.sources import cache_folder, read_source
from foldserve.training.errors import DatasetError
from tests.support.idx_files import Mirror, make_contents, make_source, write_folder
from tests.training.conftest import LineTerminal, take_home_away

if TYPE_CHECKING:
    from collections.abc import Iterator

ABSENT = Path("/nowhere/datasets")
IMAGES = "train-images.gz"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    folder = write_folder(tmp_path / "served")
    server = Mirror({path.name: path.read_bytes() for path in folder.iterdir()})
    yield server
    server.close()


def read(cache: Path | None, *mirrors: str, folder: Path | None = None, package_folder: Path = ABSENT):
    terminal = LineTerminal()
    source = make_source(package_folder, mirrors)
    arrays = read_source(source, folder=folder, cache=cache, terminal=terminal)
    for part, content in make_contents().items():
        assert content.endswith(arrays[part].tobytes())
    return terminal.lines


def test_a_given_folder_is_used_and_nothing_else_is_tried(tmp_path: Path, cache: Path, mirror: Mirror):
    read(cache, mirror.url, folder=write_folder(tmp_path / "given", packed=False))
    assert mirror.requests == []
    assert not cache.exists()


def test_a_given_folder_that_lacks_a_file_is_an_error_though_a_mirror_has_it(
    tmp_path: Path, cache: Path, mirror: Mirror
):
    folder = write_folder(tmp_path / "given")
    (folder / "test-labels.gz").unlink()
    with pytest.raises(DatasetError, match=r"test-labels\.gz"):
        read(cache, mirror.url, folder=folder)
    assert mirror.requests == []


def test_swapped_files_in_a_folder_are_refused(tmp_path: Path, cache: Path):
    folder = write_folder(tmp_path / "given")
    (folder / "train-labels.gz").rename(folder / "saved")
    (folder / "train-images.gz").rename(folder / "train-labels.gz")
    (folder / "saved").rename(folder / "train-images.gz")
    with pytest.raises(DatasetError, match="magic number"):
        read(cache, folder=folder)


def test_the_cache_comes_before_the_package_and_the_package_before_mirrors(
    tmp_path: Path, cache: Path, mirror: Mirror
):
    package_folder = write_folder(tmp_path / "package")
    lines = read(cache, mirror.url, package_folder=package_folder)
    assert any("not from cache" in line for line in lines)
    assert lines[-1].startswith("small from installed package")
    write_folder(cache)
    assert read(cache, mirror.url, package_folder=package_folder) == [f"small from cache {cache}"]
    assert mirror.requests == []


def test_what_a_mirror_gives_is_cached(cache: Path, mirror: Mirror):
    read(cache, mirror.url)
    assert len(mirror.requests) == 4
    assert read(cache) == [f"small from cache {cache}"]
    assert not list(cache.glob("*.part"))


def test_a_broken_download_is_resumed(cache: Path, mirror: Mirror):
    mirror.break_at[IMAGES] = [1000, 2500]
    lines = read(cache, mirror.url)
    assert [asked for name, asked in mirror.requests if name == IMAGES] == [
        None,
        "bytes=1000-",
        "bytes=2500-",
    ]
    assert sum("resuming" in line for line in lines) == 2


def test_a_part_file_of_an_earlier_process_is_resumed(cache: Path, mirror: Mirror):
    cache.mkdir()
    (cache / f"{IMAGES}.part").write_bytes(mirror.files[IMAGES][:700])
    read(cache, mirror.url)
    assert (IMAGES, "bytes=700-") in mirror.requests


def test_a_part_file_that_is_complete_is_used(cache: Path, mirror: Mirror):
    cache.mkdir()
    (cache / f"{IMAGES}.part").write_bytes(mirror.files[IMAGES])
    read(cache, mirror.url)


def test_a_download_starts_again_if_the_server_cannot_resume(cache: Path, mirror: Mirror):
    cache.mkdir()
    (cache / f"{IMAGES}.part").write_bytes(b"rubbish" * 20)
    mirror.honours_range = False
    read(cache, mirror.url)


def test_a_damaged_part_file_is_downloaded_again_from_the_start(cache: Path, mirror: Mirror):
    cache.mkdir()
    (cache / f"{IMAGES}.part").write_bytes(b"rubbish" * 20)
    read(cache, mirror.url)
    assert [asked for name, asked in mirror.requests if name == IMAGES] == ["bytes=140-", None]


def test_a_damaged_file_in_the_cache_is_replaced_and_the_others_kept(cache: Path, mirror: Mirror):
    write_folder(cache)
    damaged = bytearray((cache / IMAGES).read_bytes())
    damaged[500] ^= 1
    (cache / IMAGES).write_bytes(damaged)
    lines = read(cache, mirror.url)
    assert any("not from cache" in line and IMAGES in line for line in lines)
    assert mirror.requests == [(IMAGES, None)]
    assert (cache / IMAGES).read_bytes() == mirror.files[IMAGES]


@pytest.mark.parametrize("fault", ["flipped bit", "truncated", "a web page", "far too long"])
def test_a_corrupt_mirror_is_reported_and_the_next_one_used(cache: Path, mirror: Mirror, fault: str):
    good = mirror.files[IMAGES]
    bad = {
        "flipped bit": good[:999] + bytes([good[999] ^ 1]) + good[1000:],
        "truncated": good[:-9],
        "a web page": b"<html>please sign in</html>",
        "far too long": good + bytes(1_000_000),
    }[fault]
    corrupt = Mirror(mirror.files | {IMAGES: bad})
    try:
        lines = read(cache, corrupt.url, mirror.url)
    finally:
        corrupt.close()
    assert any(line.startswith(f"small not from mirror {corrupt.url}") for line in lines)
    assert lines[-1] == f"small from mirror {mirror.url}"
    assert (cache / IMAGES).read_bytes() == good


def test_a_mirror_that_lacks_a_file_is_not_used(cache: Path, mirror: Mirror):
    del mirror.files["test-labels.gz"]
    with pytest.raises(DatasetError, match=r"test-labels\.gz: Not Found"):
        read(cache, mirror.url)


def test_a_connection_that_keeps_breaking_fails_and_keeps_the_part_file(cache: Path, mirror: Mirror):
    mirror.break_at[IMAGES] = [100, 200, 300, 400, 500]
    with pytest.raises(DatasetError, match="the connection broke at 400 of"):
        read(cache, mirror.url)
    assert (cache / f"{IMAGES}.part").stat().st_size == 400
    assert not (cache / IMAGES).exists()


def test_a_refused_connection_fails_at_once_with_a_reason_for_each_place(cache: Path):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(DatasetError) as caught:
            read(cache, url)
    message = str(caught.value)
    for expected in (
        f"cache {cache}",
        str(ABSENT),
        f"mirror {url}",
        "refused",
        "--data-dir",
        "train-images.gz",
    ):
        assert expected in message
    assert "\n" not in message


def test_a_silent_mirror_fails_after_the_timeout(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download_module, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DatasetError, match="timed out"):
        read(cache, f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("has_home", [True, False])
def test_data_sets_load_without_a_writable_cache_and_report_it(
    tmp_path: Path, mirror: Mirror, has_home: bool
):
    (tmp_path / "file").write_text("in the way")
    lines = read(tmp_path / "file" / "cache" if has_home else None, mirror.url)
    reason = "Not a directory" if has_home else "set XDG_CACHE_HOME"
    assert any("downloads are not cached" in line and reason in line for line in lines)


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is missing: not a Debian system")
def test_a_debian_package_is_unpacked_without_being_installed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """A script replaces apt-get and copies a real package; dpkg unpacks it."""
    tree = tmp_path / "tree"
    write_folder(tree / "usr/share/small")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: images\n"
    )
    subprocess.run(["dpkg-deb", "-b", tree, tmp_path / "small_1_all.deb"], check=True, capture_output=True)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "apt-get").write_text(
        f'#!/bin/sh\ncase "$*" in *" download small") cp {tmp_path}/small_1_all.deb . ;; esac\n'
    )
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path('/usr/bin')}:{Path('/bin')}")
    source = make_source(Path("/usr/share/small"), package="small")
    terminal = LineTerminal()
    arrays = read_source(source, folder=None, cache=cache, terminal=terminal)
    assert arrays["train_images"].shape == (60, 8, 8)
    assert terminal.lines[-1] == "small from Debian package small"
    assert read(cache) == [f"small from cache {cache}"]

    (programs / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package small' >&2\nexit 100\n")
    shutil.rmtree(cache)
    with pytest.raises(DatasetError, match="Unable to locate package small"):
        read_source(source, folder=None, cache=cache, terminal=terminal)


def test_a_package_without_apt_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DatasetError, match="not a Debian system"):
        read_source(make_source(ABSENT, package="small"), folder=None, cache=cache, terminal=LineTerminal())


def test_the_cache_is_under_xdg_cache_home_if_that_is_absolute(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("small") == Path("/somewhere/foldserve/small")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder("small") == Path("/home/somebody/.cache/foldserve/small")


def test_there_is_no_cache_without_a_home_folder(monkeypatch: pytest.MonkeyPatch):
    take_home_away(monkeypatch)
    assert cache_folder("small") is None


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(
        DatasetError,
        match=r"'fashion-mnits' is not known \(did you mean fashion-mnist\?\); expected one of .*mnist",
    ):
        load_dataset("fashion-mnits")


def test_fashion_mnist_is_described_as_published():
    assert {part: file.shape for part, file in SOURCE.files.items()} == {
        "train_images": (60_000, 28, 28),
        "train_labels": (60_000,),
        "test_images": (10_000, 28, 28),
        "test_labels": (10_000,),
    }
    assert SOURCE.files["train_images"].content_bytes == 47_040_016
