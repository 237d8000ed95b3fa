"""`efficientdet serve`: loads a model, listens, and ends in good order."""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import efficientdet
from efficientdet import progress
from efficientdet.config import Precision, RuntimeName, Switch
from efficientdet.errors import UserError
from efficientdet.inference import selection
from efficientdet.result import Result
from efficientdet.serving.admission import MOST_HEADERS, Limits, check

_NEEDED = ("starlette", "uvicorn", "prometheus_client", "multipart")
_DEFAULTS = Limits()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served(Result):
    """What a service did until it was stopped."""

    address: str
    num_requests: int
    num_images: int
    seconds: float

    def text(self) -> str:
        """Says in a line how long it served, and how much."""
        return f"Stopped after {self.seconds:.0f} s: {self.num_requests} requests, {self.num_images} images."


def serve(
    weights: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    score_threshold: float = 0.3,
    class_thresholds: dict[str, float] | None = None,
    class_agnostic: bool = False,
    max_detections: int | None = None,
    cors_origins: tuple[str, ...] = (),
    image_size: tuple[int, int] | None = None,
    precision: Precision = "float32",
    runtime: RuntimeName = "auto",
    xla: Switch = "auto",
    access_log: bool = True,
    limits: Limits = _DEFAULTS,
) -> Served:
    """Serves a model over HTTP: /v1/detect, /healthz, /metrics, /docs, and a page for people at /.

    It stops on SIGTERM or Ctrl-C: requests it has accepted are answered, new ones are refused. There is no password and
    no encryption; for others than this computer put a reverse proxy before it (docs/serving.md).

    Args:
        weights: weights file, folder of a run (its best weights), an export, or a published name such as coco-d0.
        host: address to listen at; 0.0.0.0: every network this computer is in.
        port: to listen at; 0: a free one, which is printed.
        score_threshold: detections below this are left out, where a request names no other.
        class_thresholds: classes, by name or id, that have a threshold of their own, such as person 0.5 dog 0.2.
        class_agnostic: of boxes that share half of their union, whatever their classes, only the best stays.
        max_detections: most detections an image, the best ones; all if not given.
        cors_origins: web pages elsewhere that may ask from a browser, such as https://example.com; * for all.
        image_size: height and width of the network input, px; what the weights were trained with if not given.
        precision: of the arithmetic inside the network.
        runtime: what runs the network; auto: OpenVINO on a CPU, where its extra is installed, else Keras.
        xla: compile Keras's graph with XLA; auto: on a GPU.
        access_log: write a line a request to standard error.
        limits: what is accepted from strangers.

    Returns:
        What it did, once it was stopped.

    Raises:
        UserError: the model cannot be used, the address is taken, or the extra is not installed.
    """
    _check_extra()
    check(limits)
    selection.check_threshold(score_threshold, "score_threshold")
    _check_origins(cors_origins)
    with contextlib.closing(_bind(host, port)) as listener, _quiet_about_images():
        from efficientdet.inference.detector import Detector
        from efficientdet.serving import application, batching, wishes
        from efficientdet.serving.metrics import Metrics

        detector = Detector(
            weights, score_threshold=0.0, image_size=image_size, precision=precision, runtime=runtime, xla=xla
        )
        choice: dict[str, Any] = {
            "score_threshold": score_threshold,
            "class_thresholds": class_thresholds,
            "class_agnostic": class_agnostic,
            "max_detections": max_detections,
        }
        selection.choose(detector.categories, **choice)  # what cannot be is said now
        name = Path(weights).name.removesuffix(".safetensors")
        batching.warm_up(detector, limits)
        facts = application.Facts(
            name=name,
            version=efficientdet.__version__,
            categories=detector.categories,
            image_size=detector.runtime.image_size,
            defaults=wishes.Defaults(**choice),
        )
        metrics = Metrics()
        log = _log if access_log else None
        app = application.make_application(detector, facts, limits, metrics, log, cors_origins)
        busy = application.make_busy(metrics, log)
        _listen(listener, limits)
        address = _address(listener)
        _print(f"Serving {name} on {address} (documentation at {address}docs); Ctrl-C stops it.")
        began = time.monotonic()
        _run(app, busy, listener, limits)
    return Served(
        address=address,
        num_requests=metrics.num_requests,
        num_images=metrics.num_images,
        seconds=round(time.monotonic() - began, 1),
    )


def _check_extra() -> None:
    """Raises a UserError if the web server is not installed."""
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"`serve` needs {name}, which is not installed; `pip install 'efficientdet-keras[serve]'`.")


def _check_origins(origins: tuple[str, ...]) -> None:
    """Raises a UserError for what no browser calls an origin."""
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
            raise UserError(
                f"`cors_origins` has `{origin}`; expected https://host or http://host:port, without a path, or *."
            )


def _bind(host: str, port: int) -> socket.socket:
    """Takes the address before the model is loaded; nobody is listened to yet.

    Raises:
        UserError: it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio switches Nagle's algorithm off only where the protocol is named; with it an answer waits for 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except (OSError, OverflowError) as error:
        raise UserError(f"`host` is {host}, which is not an address of this computer: {error}.") from error
    try:
        if os.name == "posix":  # on Windows it would let two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"`port` is {port}, and {host}:{port} cannot be listened at: {reason}.") from error
    return listener


def _listen(listener: socket.socket, limits: Limits) -> None:
    """Lets clients come.

    Raises:
        UserError: another program, which took the address at the same time, was faster.
    """
    try:
        listener.listen(2 * limits.max_connections)
    except OSError as error:
        raise UserError(f"{_address(listener)} cannot be listened at: {error.strerror}.") from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _run(app: Any, busy: Any, listener: socket.socket, limits: Limits) -> None:
    """Runs the web server until a signal stops it."""
    import uvicorn

    from efficientdet.serving import connections

    connection = functools.partial(connections.Connection, limits=limits, busy=busy)
    config = uvicorn.Config(
        app,
        http=connection,  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MOST_HEADERS,
        backlog=2 * limits.max_connections,
        timeout_graceful_shutdown=max(1, round(limits.shutdown_seconds)),
    )
    with _signals_only_stop():
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _signals_only_stop() -> Iterator[None]:
    """Ends well after a signal that asked for the end, which uvicorn would raise once more when it is done."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may handle signals
        yield
        return
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet_about_images() -> Iterator[None]:
    """Keeps Pillow's remarks on odd images out of the log: threads that decode cannot switch warnings one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _log(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


def _print(line: str) -> None:
    progress.console.print(line, soft_wrap=True, markup=False)
