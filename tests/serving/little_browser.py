"""Headless Chromium through its driver, which speaks WebDriver: JSON over HTTP."""

import base64
import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import requests

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how WebDriver marks an element in JSON

TAB, ENTER, SPACE, LEFT, RIGHT = "\ue004", "\ue007", " ", "\ue012", "\ue014"


def missing() -> str | None:
    """Says which program is not there."""
    gone = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(gone)}: `apt-get install chromium chromium-driver`" if gone else None


class Browser:
    """One window."""

    def __init__(self, session: str):
        """Speaks to a session of the driver."""
        self._session = session
        self._http = requests.Session()
        self._http.trust_env = False

    def call(self, method: str, path: str, **values: Any) -> Any:
        """Sends a command of WebDriver's."""
        body = values if method == "POST" else None
        answer = self._http.request(method, f"{self._session}/{path}".rstrip("/"), json=body, timeout=60).json()[
            "value"
        ]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["message"])
        return answer

    def open(self, address: str) -> None:
        """Opens a page."""
        self.call("POST", "url", url=address)

    def find(self, selector: str) -> str:
        """Finds an element."""
        return self.call("POST", "element", using="css selector", value=selector)[_ELEMENT]

    def type(self, selector: str, keys: str) -> None:
        """Sends keys to an element; for a field of files, their paths."""
        self.call("POST", f"element/{self.find(selector)}/value", text=keys)

    def press(self, *keys: str) -> None:
        """Presses keys wherever the focus is."""
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "actions", actions=[{"type": "key", "id": "keyboard", "actions": steps}])

    def run(self, script: str, *values: Any) -> Any:
        """Runs JavaScript; `arguments` are the values."""
        return self.call("POST", "execute/sync", script=script, args=list(values))

    def wait(self, script: str, seconds: float = 30) -> Any:
        """Waits until an expression of JavaScript is true."""
        until = time.monotonic() + seconds
        while not (found := self.run(f"return {script}")):
            assert time.monotonic() < until, f"{script}: not within {seconds} s"
            time.sleep(0.05)
        return found

    def resize(self, width: int, height: int) -> None:
        """Lets the page have so many px, as a phone of that size would."""
        self._command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True
        )

    def prefer_dark(self, is_dark: bool) -> None:
        """Lets the person prefer dark or light."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self._command("Emulation.setEmulatedMedia", features=features)

    def save_downloads(self, folder: Path) -> None:
        """Says where downloads go."""
        self._command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def take_screenshot(self, path: Path) -> None:
        """Writes what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("GET", "screenshot")))

    def _command(self, name: str, **values: Any) -> Any:
        """Sends a command of Chromium's own."""
        return self.call("POST", "goog/cdp/execute", cmd=name, params=values)


@contextlib.contextmanager
def run(folder: Path):
    """Runs a browser with a new profile in `folder` while the block runs."""
    log = folder / "driver.txt"
    with log.open("wb") as file:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=file, stderr=file)
    browser = None
    try:
        until = time.monotonic() + 30
        while not (found := re.search(r"started successfully on port (\d+)", log.read_text())):
            assert time.monotonic() < until, log.read_text()
            assert driver.poll() is None, log.read_text()
            time.sleep(0.05)
        address = f"http://127.0.0.1:{found[1]}/session"
        options = {"args": [*_FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,860"]}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        with requests.Session() as http:
            http.trust_env = False
            answer = http.post(address, json=wanted, timeout=60).json()["value"]
        assert "sessionId" in answer, answer
        browser = Browser(f"{address}/{answer['sessionId']}")
        yield browser
    finally:
        if browser is not None:
            browser.call("DELETE", "")
        driver.terminate()
        driver.wait()
