"""A token's line is added whole, or the file stays as it was."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from foldserve import cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("before", [None, "", "# comment"])
def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: str | None,
):
    """An empty file would let nobody in."""
    path = tmp_path / "tokens"
    if before is not None:
        path.write_text(before)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ["token", "--name", "me", "--tokens", str(path)]
    with monkeypatch.context() as patches:
        patches.setattr(os, "fsync", full)
        assert cli.main(words) == 1
    assert capsys.readouterr().err == f"foldserve token: {path}: No space left on device\n"
    assert (path.read_text() if path.exists() else None) == before
    assert cli.main(words) == 0
    assert path.read_text().startswith(f"{before}\n" if before else "infer me ")
