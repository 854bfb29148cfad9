"""A real headless Chromium, driven over its debugging pipe: no port, no library, and a note of everything that it asks for.

    with Browser(find()) as browser:
        browser.open(path)
        browser.evaluate("document.title")
        browser.requests, browser.dialogs, browser.errors

`find` gives the first Chromium or Chrome that there is; tests skip where there is none (CHROMIUM names another one).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
NONE_FOUND = "no Chromium on the path; install one, or name it in the environment variable CHROMIUM"
OPTIONS = (
    "--headless=new --remote-debugging-pipe --no-first-run --disable-gpu --disable-dev-shm-usage --disable-extensions "
    "--disable-background-networking --disable-component-update --disable-sync --no-default-browser-check --hide-scrollbars"
).split()
PATIENCE = 60
# The browser reads commands from file 3 and answers in file 4, whatever numbers the two pipes have here.
LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, pipe in zip((3, 4), pipes):
    os.dup2(pipe, number)
    os.close(pipe)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. What the page requests, opens and breaks is kept in `requests`, `dialogs` and `errors`."""

    def __init__(self, program: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        theirs, self.out = os.pipe()
        self.into, answers = os.pipe()
        command = [program, *OPTIONS, *root, f"--user-data-dir={self.folder.name}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCH, str(theirs), str(answers), *command],
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self.folder.name},
        )
        os.close(theirs)
        os.close(answers)
        self.buffer, self.number = b"", 0
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self.loaded: set[str] = set()
        self.session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.out)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.into)
        self.folder.cleanup()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol and its result; events that come meanwhile are noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.out, json.dumps(message).encode() + b"\0")
        number = self.number
        while (reply := self._receive()).get("id") != number:
            self._note(reply)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready = select.select([self.into], [], [], max(0, deadline - time.monotonic()))[0]
            data = os.read(self.into, 1 << 20) if ready else b""
            assert data, "the browser ended or says nothing"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(params["message"])
                self.number += 1
                message = {"id": self.number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                os.write(self.out, json.dumps(message | {"sessionId": self.session}).encode() + b"\0")
            case "Runtime.exceptionThrown":
                self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "an exception"))
            case "Log.entryAdded":
                self.errors.append(params["entry"]["text"])
            case "Page.lifecycleEvent" if params["name"] == "load":
                self.loaded.add(params["loaderId"])

    def open(self, path: Path, anchor: str = "") -> None:
        """Loads a file afresh, and waits until it stands."""
        for url in ("about:blank", path.resolve().as_uri() + anchor):
            loader = self.send("Page.navigate", url=url)["loaderId"]
            while loader not in self.loaded:
                self._note(self._receive())
        self.evaluate("new Promise((done) => setTimeout(done, 30))")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited. The page's own policy does not bind it."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """The window's size (a phone below 600 px) and the colours that the system prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def before_every_page(self, script: str) -> None:
        self.send("Page.addScriptToEvaluateOnNewDocument", source=script)

    def picture(self) -> str:
        """What the window shows, as base64 of a PNG."""
        return self.send("Page.captureScreenshot", format="png")["data"]


def outside(requests: Iterable[str]) -> list[str]:
    """Requests for anything but the page's own file."""
    return [url for url in requests if not url.startswith(("file://", "about:", "blob:"))]
