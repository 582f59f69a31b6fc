"""Fingerprints of files: which changes they detect."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from foldserve.files import file_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _replace(path: Path) -> None:
    beside = path.with_name("beside")
    beside.write_text("first")
    beside.replace(path)


def _rewrite_and_keep_mtime(path: Path) -> None:
    facts = path.stat()
    time.sleep(0.05)  # the kernel's clock for ctime ticks every few milliseconds
    path.write_text("other")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _exchange_for_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_text("longer than before"), id="written"),
        pytest.param(_replace, id="replaced by an equal file"),
        pytest.param(_rewrite_and_keep_mtime, id="rewritten with the old time"),
        pytest.param(_exchange_for_dangling_link, id="exchanged for a dangling link"),
        pytest.param(lambda path: path.unlink(), id="deleted"),
    ],
)
def test_fingerprint_changes_with_the_file(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    path.write_text("first")
    before = file_fingerprint(path)
    assert file_fingerprint(str(path)) == before, "unchanged"
    change(path)
    assert file_fingerprint(path) != before


def test_missing_file_has_no_fingerprint(tmp_path: Path) -> None:
    assert file_fingerprint(tmp_path / "nowhere") is None
