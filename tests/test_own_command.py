"""Commands that messages tell the user to type are found from where the message was printed."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from foldserve.terminal import own_command

if TYPE_CHECKING:
    from pathlib import Path


def test_name_alone_is_enough_if_the_path_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "foldserve"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["elsewhere/bin/foldserve", "demo"])
    assert own_command() == "foldserve"


@pytest.mark.parametrize(
    ("started_as", "expected"),
    [
        (".venv/bin/foldserve", ".venv/bin/foldserve"),
        ("my folder/bin/foldserve", "'my folder/bin/foldserve'"),
        ("site-packages/foldserve/__main__.py", f"{shlex.quote(sys.executable)} -m foldserve"),
    ],
    ids=["script", "blank", "module"],
)
def test_environment_that_is_not_activated_is_named(
    started_as: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [started_as, "demo"])
    assert own_command() == expected
