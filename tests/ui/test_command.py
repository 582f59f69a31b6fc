"""What `foldserve ui` refuses before it loads anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from foldserve.ui.command import serve_page
from foldserve.ui.config import UiConfig
from foldserve.ui.errors import UiError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("flag", ["keep", "port_file", "repository"])
def test_paths_that_cannot_be_used_are_refused_first(flag: str, tmp_path: Path) -> None:
    """Below a file nobody can write, root neither."""
    (tmp_path / "file").touch()
    settings = {"port": 0, flag: tmp_path / "file" / "below"}
    with pytest.raises(UiError, match=rf"--{flag.replace('_', '-')} .*file/below"):
        serve_page(UiConfig.model_validate(settings))
