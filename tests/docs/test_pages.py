"""Pages: each is in the navigation, links and anchors hold, and the site's links are rewritten right."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from docsite.hooks import ROOT_PAGES, SHIM, SHIM_ELSEWHERE, rewrite_links, with_own_shim
from tests.support.sources import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*(ROOT / name for name in ("README.md", *ROOT_PAGES)), *DOCS.rglob("*.md")])
_FENCE = re.compile(r"^ *```.*?^ *```", flags=re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def names_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def navigation() -> set[str]:
    """Return the pages that mkdocs.yml names."""

    def pages(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [page for each in (part.values() if isinstance(part, dict) else part) for page in pages(each)]

    return set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub and the site make them."""
    text = _FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    words = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in words}


def test_every_page_is_in_the_navigation() -> None:
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert there | set(ROOT_PAGES.values()) == navigation(), "mkdocs.yml has the list of pages"


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = Path(os.path.normpath(page.parent / path)) if path else page
        assert found.exists(), f"{names_of(page)} links to {target}, which does not exist"
        if anchor and found.suffix == ".md":
            assert anchor in anchors_of(found), f"{names_of(page)} links to {target}: no such heading"


@pytest.mark.parametrize(
    ("page", "given", "expected"),
    [
        pytest.param("export.md", "[a](serving.md#x)", "[a](serving.md#x)", id="page beside it"),
        pytest.param("export.md", "[a](../SECURITY.md)", "[a](security.md)", id="page of the root"),
        pytest.param(
            "how-to/gpu.md", "[a](../../SECURITY.md#b)", "[a](../security.md#b)", id="from a folder"
        ),
        pytest.param("export.md", "[fold](../export/graph/fold_bn.py)", "fold", id="a file is only named"),
        pytest.param("security.md", "[a](docs/export.md)", "[a](export.md)", id="from the root"),
        pytest.param("security.md", "[a](LICENSE)", "a", id="a file of the root"),
        pytest.param("export.md", "[a](https://x.org) [b](#c)", "[a](https://x.org) [b](#c)", id="elsewhere"),
        pytest.param("export.md", "```\n[a](../x.py)\n```", "```\n[a](../x.py)\n```", id="code stays"),
        pytest.param("export.md", "![a](images/a.svg)", "![a](images/a.svg)", id="pictures stay"),
    ],
)
def test_links_that_leave_the_docs_are_rewritten(page: str, given: str, expected: str) -> None:
    assert rewrite_links(given, page) == expected


def test_the_search_asks_no_other_host() -> None:
    html = with_own_shim(f'<script src="{SHIM_ELSEWHERE}">', "how-to/gpu.md")
    assert html == f'<script src="../{SHIM}">'
    assert "IFrameWorker" in (DOCS / SHIM).read_text()
