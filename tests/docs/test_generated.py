"""What is generated under docs/ is what the code gives now."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from docsite.figures import batch_life, folding, receptive_fields, way_through
from docsite.reference.__main__ import FOLDER, PAGES, main, stale_pages
from foldserve.cli import COMMANDS
from tests.support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = ROOT / "docs" / "images"


def test_the_reference_is_fresh_and_a_stale_one_is_found(tmp_path: Path) -> None:
    assert stale_pages(FOLDER) == [], "run `make reference`"
    for name in PAGES:
        (tmp_path / name).write_text((FOLDER / name).read_text())
    assert stale_pages(tmp_path) == []
    changed = tmp_path / "commands.md"
    changed.write_text(changed.read_text().replace("8001", "8003", 1))
    (tmp_path / "metrics.md").unlink()
    assert stale_pages(tmp_path) == ["commands.md", "metrics.md"]


def test_the_reference_is_not_written_by_a_mistyped_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--chek"]) == 2
    assert "unknown: --chek" in capsys.readouterr().err


def test_the_reference_has_every_command_and_flag() -> None:
    page = (FOLDER / "commands.md").read_text()
    for name, command in COMMANDS.items():
        section = page.partition(f"## foldserve {name}\n")[2].partition("\n## ")[0]
        for field in command.config.model_fields:
            flag = f"`--{field.replace('_', '-')}`"
            assert flag in section or f"`{field.upper()}`" in section, f"{name} {field}"


def test_lint_checks_the_reference() -> None:
    assert "docsite.reference --check" in (ROOT / "Makefile").read_text().partition("\nlint:")[2][:600]


@pytest.mark.parametrize("name", ["way-through.svg", "batch-life.svg"])
def test_quick_figures_are_fresh(name: str) -> None:
    draw = {"way-through.svg": way_through.draw, "batch-life.svg": batch_life.draw}[name]
    assert (IMAGES / name).read_text() == draw(), "run `python -m docsite.figures`"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folding.svg", "receptive-fields.svg"])
def test_figures_of_the_network_are_fresh(name: str) -> None:
    draw = {"folding.svg": folding.draw, "receptive-fields.svg": receptive_fields.draw}[name]
    assert (IMAGES / name).read_text() == draw(), "run `python -m docsite.figures`"


def test_pictures_ask_no_other_host() -> None:
    pictures = sorted(IMAGES.glob("*.svg"))
    assert len(pictures) >= 5
    for picture in pictures:
        spoken = re.sub(
            r'xmlns(:\w+)?="[^"]*"|<!--.*?-->|<text.*?</text>', "", picture.read_text(), flags=re.DOTALL
        )
        assert "http" not in spoken, picture


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    if not mkdocs.exists():
        pytest.skip("needs .venv-docs, which `make docs` builds")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    words = [mkdocs, "build", "--quiet", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?://[^"]*)', page.read_text()
        )
        assert loaded == [], f"{page.name} asks other hosts"
    assert "folding" in (tmp_path / "site" / "search" / "search_index.js").read_text()
