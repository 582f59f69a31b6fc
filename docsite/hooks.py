"""What mkdocs does differently for this site: pages from the repository's root, and links that leave docs/.

In the repository a page may link to any file beside docs/. On the site some of these files are pages too; of
a link to any other the text remains.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[1]
# Pages of the site that lie in the repository's root.
ROOT_PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changes.md",
}

# Lets the search run in pages opened from a disk.
SHIM_ELSEWHERE, SHIM = "https://unpkg.com/iframe-worker/shim", "javascripts/iframe-worker.js"

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^ *```.*?^ *```", flags=re.DOTALL | re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    from mkdocs.structure.files import File  # noqa: PLC0415  # in the environment of `make docs` alone

    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page that leave docs/."""
    return rewrite_links(markdown, page.file.src_uri)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Load the search's shim from this site; the theme would ask another host for it."""
    return with_own_shim(output, page.file.src_uri)


def on_post_template(output: str, template_name: str, **_: Any) -> str:
    """Do the same on the pages that are not made of Markdown, such as 404.html."""
    return with_own_shim(output, template_name)


def with_own_shim(html: str, page: str) -> str:
    """Return ``html`` with the shim's address within the site, seen from ``page``."""
    return html.replace(SHIM_ELSEWHERE, os.path.relpath(SHIM, PurePosixPath(page).parent))


def rewrite_links(markdown: str, page: str) -> str:
    """Return the text of ``page`` (its path below docs/) with links that hold on the site; code is kept."""
    out, end = [], 0
    for fence in _FENCE.finditer(markdown):
        out += [_rewrite(markdown[end : fence.start()], page), fence[0]]
        end = fence.end()
    return "".join([*out, _rewrite(markdown[end:], page)])


def _rewrite(text: str, page: str) -> str:
    return _LINK.sub(lambda link: _new_link(link, page), text)


def _new_link(link: re.Match[str], page: str) -> str:
    text, target = link[1], link[2]
    path, hash_sign, anchor = target.partition("#")
    if not path or "://" in target or target.startswith("mailto:"):
        return link[0]
    is_from_root = page in ROOT_PAGES.values()
    base = PurePosixPath() if is_from_root else PurePosixPath("docs", page).parent
    found = os.path.normpath(base / path)
    if found in ROOT_PAGES:
        on_site = ROOT_PAGES[found]
    elif found.startswith("docs/"):
        on_site = found.removeprefix("docs/")
    else:
        return text
    relative = os.path.relpath(on_site, PurePosixPath(page).parent)
    return f"[{text}]({relative}{hash_sign}{anchor})"
