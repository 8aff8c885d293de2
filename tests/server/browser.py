"""A real Chromium over its debugging pipe: open a page, run script in it, press keys, take a picture."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]
PATIENCE_S = 90.0
BETWEEN_PAGES = (
    "Inspected target navigated or closed",
    "Execution context was destroyed",
    "Cannot find context",
)


class Navigated(AssertionError):
    """The page went away while a script ran in it."""


class Browser:
    """One page in a fresh profile; the browser reads commands on descriptor 3 and answers on 4."""

    def __init__(self, profile: Path) -> None:
        down, self._out = os.pipe()
        self._in, up = os.pipe()
        command = f'exec "$0" "$@" 3<&{down} 4>&{up}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(down, up),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(down)
        os.close(up)
        self._rest, self._number, self._session = b"", 0, ""
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; errors that the page logs meanwhile are kept."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(
            self._out,
            json.dumps({"id": self._number, "method": method, "params": params, **session}).encode() + b"\0",
        )
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                if any(words in str(message.get("error", "")) for words in BETWEEN_PAGES):
                    raise Navigated(message)
                assert "error" not in message, message
                return dict(message["result"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]))
            if (
                message.get("method") == "Log.entryAdded"
                and message["params"]["entry"]["source"] != "network"
            ):
                self.errors.append(json.dumps(message["params"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], PATIENCE_S)
            data = os.read(self._in, 1 << 16) if ready else b""
            assert data, "the browser is gone or does not answer"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a script expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)[
            "result"
        ].get("value")

    def wait(self, script: str, timeout_s: float = PATIENCE_S) -> Any:
        """Run a script until its value is true; a page that is just being left has no value yet."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                if value := self.run(script):
                    return value
            except Navigated:
                pass
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.03)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def choose(self, selector: str, *paths: Path) -> None:
        """Choose files in a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(p) for p in paths])

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
