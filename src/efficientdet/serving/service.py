"""`efficientdet serve`: loads a model, serves it, and shuts down cleanly."""

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
    """What a service did before it was stopped."""

    address: str
    num_requests: int
    num_images: int
    seconds: float

    def text(self) -> str:
        """Summarizes in one line how long it ran and how much it served."""
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
    """Serves a model over HTTP: /v1/detect, /healthz, /metrics, /docs, and a web page at /.

    On SIGTERM or Ctrl-C it finishes accepted requests, refuses new ones and stops. There is no password and no
    encryption; put a reverse proxy in front of it before you expose it to other computers (docs/serving.md).

    Args:
        weights: weights file, run folder (uses its best weights), export, or published name such as coco-d0.
        host: address to listen on; 0.0.0.0 listens on every network of this computer.
        port: port to listen on; 0 picks a free one, which is printed.
        score_threshold: drop detections with a lower score, unless the request sets another threshold.
        class_thresholds: score thresholds for individual classes, by name or id, such as person 0.5 dog 0.2.
        class_agnostic: among boxes with an IoU of at least 0.5, keep only the best, regardless of class.
        max_detections: maximum number of detections per image, best first; default: all.
        cors_origins: origins of other web pages that may send requests, such as https://example.com; * for all.
        image_size: height and width of the network input, px; default: what the weights were trained with.
        precision: precision of the network's arithmetic.
        runtime: what runs the network; auto picks OpenVINO on a CPU if it is installed, else Keras.
        xla: compile Keras's graph with XLA; auto does so on a GPU.
        access_log: write one line per request to standard error.
        limits: limits on what clients can send.

    Returns:
        A summary, once the service has stopped.

    Raises:
        UserError: the model cannot be used, the address is in use, or the extra is not installed.
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
        selection.choose(detector.categories, **choice)  # fails now rather than at the first request
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
        _print(f"Serving {name} on {address} (documentation at {address}docs). Press Ctrl-C to stop.")
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
            raise UserError(
                f"`serve` needs {name}, which is not installed; run `pip install 'efficientdet-keras[serve]'`."
            )


def _check_origins(origins: tuple[str, ...]) -> None:
    """Raises a UserError for an invalid origin."""
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
            raise UserError(
                f"`cors_origins` contains `{origin}`; expected https://host or http://host:port without a path, or *."
            )


def _bind(host: str, port: int) -> socket.socket:
    """Binds the address before the model is loaded, without accepting connections yet.

    Raises:
        UserError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio disables Nagle's algorithm only if the protocol is given; otherwise an answer waits for 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except (OSError, OverflowError) as error:
        raise UserError(f"`host` is {host}, which is not an address of this computer: {error}.") from error
    try:
        if os.name == "posix":  # on Windows it would let two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"`port` is {port}, but the server cannot listen on {host}:{port}: {reason}.") from error
    return listener


def _listen(listener: socket.socket, limits: Limits) -> None:
    """Starts to accept connections.

    Raises:
        UserError: another program took the address at the same time.
    """
    try:
        listener.listen(2 * limits.max_connections)
    except OSError as error:
        raise UserError(f"The server cannot listen on {_address(listener)}: {error.strerror}.") from error


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
    """Exits normally after a stop signal, which uvicorn would otherwise raise again when it is done."""
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
    """Keeps Pillow's warnings about odd images out of the log; decoding threads cannot filter them individually."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _log(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


def _print(line: str) -> None:
    progress.console.print(line, soft_wrap=True, markup=False)
