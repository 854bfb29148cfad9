"""The system's Chromium, headless, controlled by playwright, with a record of every request of a page.

    with browser.started() as chromium:
        tab = browser.Tab(chromium, width=1280, height=900)
        tab.open(path)
        tab.evaluate("document.title")
        tab.requests, tab.dialogs, tab.errors

`find` returns the first Chromium or Chrome on the path, or the one in CHROMIUM; without one, tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright import sync_api

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
NONE_FOUND = "no Chromium on the path; install one, or name it in the environment variable CHROMIUM"


def find() -> str | None:
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


def needs_browser(test: Any) -> Any:
    """Marks a test that opens a page in a real browser."""
    return pytest.mark.slow(pytest.mark.browser(pytest.mark.skipif(find() is None, reason=NONE_FOUND)(test)))


@contextlib.contextmanager
def started() -> Iterator[sync_api.Browser]:
    """A browser that closes with the block. As root, Chromium runs only without its sandbox."""
    sandbox = not hasattr(os, "geteuid") or os.geteuid() != 0
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), chromium_sandbox=sandbox)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One tab with its own storage. `requests`, `dialogs` and `errors` record what its pages do.

    Width and height are in CSS pixels; below 600 the tab is a phone. Other settings are those of playwright's new_context.
    """

    def __init__(self, browser: sync_api.Browser, width: int = 1400, height: int = 1000, **settings: Any) -> None:
        window = sync_api.ViewportSize(width=width, height=height)
        self._context = browser.new_context(viewport=window, is_mobile=width < 600, **settings)
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self._context.on("request", lambda request: self.requests.append(request.url))
        self._context.on("dialog", self._accept)
        self._context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self._context.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self._page = self._context.new_page()

    def _accept(self, dialog: sync_api.Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.accept()

    def close(self) -> None:
        self._context.close()

    def before_every_page(self, script: str) -> None:
        self._page.add_init_script(script)

    def open(self, path: Path, anchor: str = "") -> None:
        """Loads a file anew, even if only the anchor differs, and waits until it is drawn."""
        self._page.goto("about:blank")
        self._page.goto(path.resolve().as_uri() + anchor)
        self._page.wait_for_timeout(30)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited. The page's own policy does not apply to it."""
        return self._page.evaluate(script)

    def press(self, *keys: str) -> None:
        for key in keys:
            self._page.keyboard.press(key)

    def prefer(self, colours: Literal["light", "dark"]) -> None:
        """The colours that the system prefers: light or dark."""
        self._page.emulate_media(color_scheme=colours)


def outside(requests: Iterable[str]) -> list[str]:
    """Requests for anything but the page's own file."""
    return [url for url in requests if not url.startswith(("file://", "about:", "blob:"))]
