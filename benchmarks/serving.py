"""How much of a Detector's throughput does `efficientdet serve` pass on? For 1, 8 and 32 clients, in turns with it.

The service runs in a process of its own, its clients in this one; all share the processor. Both start from JPEG files
in memory and end with plain JSON values. The Detector is called with one image, and with as many as the service
puts together. Writes the figures as JSON.

    python benchmarks/serving.py --output benchmarks/results/serving.json
"""

import concurrent.futures
import contextlib
import http.client
import itertools
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro

from efficientdet import backend
from efficientdet.benchmarks import drawn_weights, inference, report, timing
from efficientdet.media import images
from efficientdet.serving.admission import Limits
from efficientdet.storage import files

_GOAL = 0.8
_START_SECONDS = 300


def main(
    *,
    output: Path | None = None,
    model: str = "d0",
    photos: Path | None = None,
    clients: tuple[int, ...] = (1, 8, 32),
    rounds: int = 5,
    turn_seconds: float = 4.0,
) -> None:
    """Measures and prints.

    Args:
        output: JSON file to write.
        model: weights file, run, published name, or a preset, whose weights are then random.
        images: folder of photographs; generated images if not given.
        clients: how many send at once, each one image after the other.
        rounds: how often everything has its turn; one more before warms up.
        turn_seconds: how long a turn lasts.
    """
    backend.choose()
    from efficientdet.inference.detector import Detector

    encoded = inference._read_images(photos)
    batch = Limits().max_batch
    with contextlib.ExitStack() as stack:
        location = stack.enter_context(drawn_weights.weights_of(model))
        ours = Detector(location)
        port = stack.enter_context(_service(str(location)))

        def direct(size: int) -> Callable[[], float]:
            given = itertools.cycle(encoded)

            def detect() -> int:
                arrays = [images.read_image(next(given), "image") for _ in range(size)]
                return len([found.to_dict() for found in ours.detect(arrays)])

            return lambda: _rate(detect, 1, turn_seconds)

        def served(count: int) -> Callable[[], float]:
            return lambda: _rate_of_clients(port, encoded, count, turn_seconds)

        calls = {f"Detector, {size} a call": direct(size) for size in (1, batch)}
        calls |= {f"serve, {count} at once": served(count) for count in clients}
        rates = timing.in_turns(calls, rounds)
    ratios = {}
    for count in clients:
        size = 1 if count == 1 else batch
        found = timing.ratio(rates[f"serve, {count} at once"], rates[f"Detector, {size} a call"])
        ratios[f"serve_{count}_vs_detector_{size}"] = {**found, "goal": _GOAL}
    rows = [{"by": name, "images_per_second": timing.spread(values)} for name, values in rates.items()]
    for line in (*rows, *ratios.items()):
        print(line)
    if output is not None:
        size = ours.runtime.image_size
        kind = "photographs" if photos else "generated images"
        what = f"{model} at {size[0]} x {size[1]} px over HTTP and by itself, {len(encoded)} {kind}"
        files.write_json(output, {"what": what, "rows": rows, "ratios": ratios, **report.circumstances()})


@contextlib.contextmanager
def _service(location: str) -> Iterator[int]:
    """Runs the service while the block runs, and gives its port."""
    command = [sys.executable, "-m", "efficientdet", "serve", location, "--port", "0", "--no-access-log"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        until = time.monotonic() + _START_SECONDS
        port = None
        while port is None and time.monotonic() < until and (line := process.stderr.readline()):
            if found := re.search(r"on http://[^ ]*:(\d+)/", line):
                port = int(found[1])
        assert port is not None, "the service did not start"
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _rate(work: Callable[[], int], threads: int, seconds: float) -> float:
    """Counts what `work`, called again and again in some threads, does a second."""
    began = time.perf_counter()

    def repeat(_: int) -> int:
        done = 0
        while time.perf_counter() - began < seconds:
            done += work()
        return done

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(repeat, range(threads)))
    return done / (time.perf_counter() - began)


def _rate_of_clients(port: int, encoded: list[bytes], count: int, seconds: float) -> float:
    """Lets clients send one image after the other, each over a connection of its own."""
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=120) for _ in range(count)]
    free, given = list(connections), itertools.cycle(encoded)

    def detect() -> int:
        connection = free.pop()
        connection.request("POST", "/v1/detect", next(given), {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        free.append(connection)
        return 1

    try:
        return _rate(detect, count, seconds)
    finally:
        for connection in connections:
            connection.close()


if __name__ == "__main__":
    tyro.cli(main)
