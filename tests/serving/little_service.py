"""A real service in a process of its own, and clients that speak to it over sockets."""

import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RUNTIME = "openvino"  # starts in half the time
LIMITS = {
    "max-upload-mb": 4,
    "max-megapixels": 12,
    "image-memory-mb": 300,
    "upload-memory-mb": 40,
    "header-seconds": 2,
    "upload-seconds": 2,
}


@dataclasses.dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Reads the body."""
        return json.loads(self.body)


@dataclasses.dataclass
class Service:
    """A running service."""

    process: subprocess.Popen
    log: Path
    port: int

    @property
    def address(self) -> str:
        """Where it is, with a slash at the end."""
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path, body=None, headers=None, method=None, timeout=60) -> Answer:
        """Sends one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            return read_answer(connection.getresponse())

    def detect(self, image: bytes, query="", **named) -> Answer:
        """Sends one image."""
        return self.ask(f"/v1/detect{query}", image, {"Content-Type": "image/png"}, **named)

    def send_raw(self, content: bytes, timeout=20) -> bytes:
        """Sends bytes and reads until the service closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            with contextlib.suppress(ConnectionError):  # it may answer, and close, before all is sent
                connection.sendall(content)
            received = b""
            with contextlib.suppress(ConnectionError):
                while chunk := connection.recv(65536):
                    received += chunk
            return received

    def memory(self, field="VmRSS") -> float:
        """Reads the memory of the process now, or at its most (VmHWM), MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

    def forget_peak(self) -> None:
        """Lets VmHWM begin at what is used now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self, timeout=60) -> int:
        """Asks it to stop, and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextlib.contextmanager
def run(weights: Path, folder: Path, *words: str):
    """Runs a service while the block runs; `words` are further options."""
    log = folder / "log.txt"
    limits = [word for name, value in LIMITS.items() for word in (f"--limits.{name}", str(value))]
    command = [sys.executable, "-m", "efficientdet", "serve", str(weights), "--port", "0", "--runtime", RUNTIME]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *limits, *words], stderr=file, stdout=file, env=environment)
    try:
        yield Service(process, log, _wait_for_port(process, log))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait_for_port(process: subprocess.Popen, log: Path) -> int:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"on http://127\.0\.0\.1:(\d+)/", log.read_text()):
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(f"the service did not start: {log.read_text()}")


def read_answer(response: http.client.HTTPResponse) -> Answer:
    """Reads an answer to its end."""
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def image(seed: int, size=(70, 90)) -> np.ndarray:
    """Draws uint8[*size, 3], different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.NEAREST))


def encode(pixels: np.ndarray, kind="PNG", **named) -> bytes:
    """Writes an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **named)
    return buffer.getvalue()


def form(parts: list[tuple[str, bytes]], boundary="limit") -> tuple[bytes, dict[str, str]]:
    """Packs files as multipart/form-data: body and headers."""
    head = '--{}\r\nContent-Disposition: form-data; name="image"; filename="{}"\r\nContent-Type: image/png\r\n\r\n'
    packed = [head.format(boundary, name).encode() + content + b"\r\n" for name, content in parts]
    body = b"".join(packed) + f"--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def assert_same(found: dict, expected: dict, threshold: float = 0.2) -> None:
    """Holds one image's answer to a detector's own, up to the rounding of a batch.

    Rounding may swap neighbours in the order and move a score over the threshold; so each detection that is clearly
    above it must have its like in the other answer, wherever that stands.
    """
    assert (found["height"], found["width"]) == (expected["height"], expected["width"])
    sides = [_rows(found), _rows(expected)]
    for ours, theirs in (sides, sides[::-1]):
        clear = ours[ours[:, -1] >= threshold + 0.005]
        distance = np.abs(clear[:, None] - theirs[None]) / [0.5, 0.5, 0.5, 0.5, 0.5, 0.005]
        alike = distance.max(axis=-1, initial=0) < 1
        assert alike.any(axis=1).all(), clear[~alike.any(axis=1)]


def _rows(answer: dict) -> np.ndarray:
    """Lists the detections of an answer: class, x1, y1, x2, y2, score."""
    rows = [[each["category_id"], *each["box"].values(), each["score"]] for each in answer["detections"]]
    return np.array(rows, float).reshape(-1, 6)
