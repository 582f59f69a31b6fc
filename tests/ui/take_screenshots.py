"""Takes the screenshots of docs/ui.md: `python -m tests.ui.take_screenshots REPOSITORY MODEL FOLDER`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.browser import Visit, open_browser
from tests.support.page_process import PageProcess
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The label of the example that is shown, if the model has it.
_SHOWN = "Sneaker"


def main() -> None:
    repository, model, target = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, open_browser() as browser:
        folder = Path(scratch)
        with ServerProcess(repository, folder / "server") as server:
            flags = ("--repository", str(repository), "--keep", "corrections")
            with PageProcess(server.address, folder / "page", *flags) as page:
                _explained(browser, page, model).screenshot(target / "ui-desktop.png")
                _explained(browser, page, model, width=360).screenshot(target / "ui-phone.png")
                _drawing(browser, page, model, dark=True).screenshot(target / "ui-dark.png")
                gone = _explained(browser, page, model)
                server.process.kill()
                gone.page.get_by_text("The server is gone.").wait_for()
                gone.screenshot(target / "ui-gone.png")


def _explained(browser: Browser, page: PageProcess, model: str, **window: int) -> Visit:
    """Return a visitor who took an example, asked why, and chose its right label."""
    visited = Visit(browser, page.url, **window)
    _choose(visited, model)
    every = visited.page.locator("[data-example]")
    named = every.filter(has_text=_SHOWN)
    (named if named.count() else every).first.click()
    visited.page.locator(".fs-answer").wait_for()
    visited.page.locator("#fs-why-button").click()
    visited.page.locator(".fs-why img").wait_for()
    visited.page.wait_for_timeout(500)
    return visited


def _drawing(browser: Browser, page: PageProcess, model: str, *, dark: bool) -> Visit:
    """Return a visitor who drew something like a bag."""
    visited = Visit(browser, page.url, dark=dark)
    _choose(visited, model)
    visited.page.get_by_role("tab", name="Draw").click()
    box = visited.page.locator("canvas").bounding_box()
    assert box is not None
    mouse = visited.page.mouse
    strokes = [[(60, row), (220, row)] for row in range(130, 231, 16)]
    strokes.append([(105, 130), (115, 80), (165, 80), (175, 130)])
    for stroke in strokes:
        mouse.move(box["x"] + stroke[0][0], box["y"] + stroke[0][1])
        mouse.down()
        for x, y in stroke[1:]:
            mouse.move(box["x"] + x, box["y"] + y, steps=4)
        mouse.up()
    visited.page.wait_for_timeout(2000)
    return visited


def _choose(visited: Visit, model: str) -> None:
    visited.page.locator("#fs-model input").click()
    visited.page.get_by_role("option", name=model).click()
    visited.page.locator("[data-example]").first.wait_for()


if __name__ == "__main__":
    main()
