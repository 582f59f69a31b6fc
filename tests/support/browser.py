"""A headless Chromium, driven by Playwright, that writes down all that it asks for."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.foreign_clients import SOURCE, require_installed
from tests.support.page_process import PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

AXE = SOURCE / "tests" / "ui" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
# Generous: a browser on a busy machine, with one core for it and two servers.
TIMEOUT_MS = 60_000
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# The browser's own requests, for updates and the like, are off: those that are left are the page's.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A camera that shows a test pattern, and leave to use it.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the browser; skip the test if something is missing, unless CI says that it must be there."""
    require_installed([PYTHON, AXE], "the page's environment and axe-core")
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        _lack("needs a browser: install Debian's package chromium, as .ci/install-chromium does")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        _lack("needs playwright, which `make install` brings")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_FLAGS))
        yield browser
        browser.close()


def _lack(reason: str) -> None:
    if os.environ.get("FOLDSERVE_BROWSER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


class Visit:
    """One visitor: a browser window of its own, on the page.

    Attributes:
        page: Playwright's page.
        requests: addresses of all that the browser asked for, but for data: and blob: ones.
        errors: what the browser's console said of errors.
    """

    def __init__(self, browser: Browser, url: str, *, width: int = 1100, dark: bool = False) -> None:
        self._context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write", "camera"],
            locale="en-GB",
        )
        self._context.set_default_timeout(TIMEOUT_MS)
        self.url = url
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page: Page = self._context.new_page()
        self._context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.get_by_text("Connected to").wait_for()

    def close(self) -> None:
        self._context.close()

    def strangers(self) -> list[str]:
        """Return the requests that were for somebody else than the page's own server."""
        own = (self.url + "/", "data:", f"blob:{self.url}/")
        return [address for address in self.requests if not address.startswith(own)]

    def violations(self) -> list[str]:
        """Return what axe-core finds, in all of its rules."""
        if not self.page.evaluate("() => Boolean(window.axe)"):
            self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: list[dict[str, Any]] = self.page.evaluate("async () => (await window.axe.run()).violations")
        return [f"{one['id']}: {json.dumps([node['html'] for node in one['nodes']])}" for one in found]

    def sideways(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        width: int = self.page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        return max(0, width)

    def screenshot(self, path: Path) -> None:
        self.page.screenshot(path=path, full_page=True)
