"""`python -m docsite.reference [--check]`: writes docs/reference/, or names the stale pages."""

from __future__ import annotations

import sys
from pathlib import Path

from docsite.reference import artifact, commands, metrics, model_settings, protocol, python_api, statuses

FOLDER = Path(__file__).parents[2] / "docs" / "reference"

PAGES = {
    "commands.md": commands.page,
    "model-settings.md": model_settings.page,
    "metrics.md": metrics.page,
    "statuses.md": statuses.page,
    "protocol.md": protocol.page,
    "artifact.md": artifact.page,
    "python.md": python_api.page,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` compare them; return 1 if one of them is out of date."""
    if arguments not in ([], ["--check"]):
        print(f"unknown: {' '.join(arguments)}; expected nothing, or --check", file=sys.stderr)
        return 2
    is_check = bool(arguments)
    stale = stale_pages(FOLDER)
    if not is_check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in stale:
            (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
            print(f"wrote docs/reference/{name}")
        return 0
    for name in stale:
        print(f"docs/reference/{name} does not say what the code says: run `make reference`", file=sys.stderr)
    return 1 if stale else 0


def stale_pages(folder: Path) -> list[str]:
    """Return the pages in ``folder`` that are missing or differ from what the code gives."""
    return [name for name, page in PAGES.items() if _text_of(folder / name) != page()]


def _text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
