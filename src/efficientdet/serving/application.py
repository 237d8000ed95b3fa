"""The routes of the service: detection, health, metrics, documentation and the web page.

Answers depend only on the model that the service was started with, the request, and the files in `page/`; a request
cannot name a file, a model or an address.
"""

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from importlib import resources
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from efficientdet.inference import selection
from efficientdet.inference.detections import ImageDetections
from efficientdet.serving import documentation, uploads, wishes
from efficientdet.serving.admission import MOST_HEADERS, Budget, Limits, Refusal
from efficientdet.serving.batching import Batcher, Model
from efficientdet.serving.decoding import Decoder
from efficientdet.serving.gateway import Gateway
from efficientdet.serving.metrics import Metrics
from efficientdet.structures import Category

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_LONGEST_RETRY = 60  # s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a service reports about its model."""

    name: str
    version: str
    categories: tuple[Category, ...]
    image_size: tuple[int, int]
    defaults: wishes.Defaults
    """Used where a request sets no value."""

    @property
    def score_threshold(self) -> float:
        """Returns the threshold used if a request sets none."""
        return self.defaults.score_threshold


class Service:
    """A model, its workers, and the requests in progress. Must be created in the event loop that it runs in."""

    def __init__(self, model: Model, facts: Facts, limits: Limits, metrics: Metrics):
        """Starts the model's thread."""
        self.facts, self.limits, self.metrics = facts, limits, metrics
        self.decoder = Decoder(limits)
        self.batcher = Batcher(model, limits, lambda: self.decoder.num_pending > 0, metrics.batch)
        self.places = Budget(limits.max_waiting)
        self.upload_memory = Budget(limits.upload_memory_mb * 1e6)
        metrics.waiting.set_function(lambda: self.places.taken)
        metrics.upload_memory.set_function(lambda: self.upload_memory.taken)
        metrics.image_memory.set_function(lambda: self.decoder.memory.taken)

    def close(self) -> None:
        """Stops the threads; no request may be in progress."""
        self.decoder.close()
        self.batcher.close()

    async def detect(self, request: Request) -> Response:
        """Answers /v1/detect."""
        asked = list(request.query_params.multi_items())
        wishes.check(asked, "query")
        wishes.read(asked, self.facts.categories, self.facts.defaults)  # before the body is read
        with self._place() as take_more:
            async with uploads.received(request, self.limits, self.upload_memory) as body:
                images = body.uploads
                choice, threshold = wishes.read([*asked, *body.asked], self.facts.categories, self.facts.defaults)
                take_more(len(images) - 1)
                request.state.images = len(images)
                found = await self._while_connected(request, self._detect_all(images))
        shown = [
            {"name": upload.name, **_pick(one, choice).to_dict()} for upload, one in zip(images, found, strict=True)
        ]
        return JSONResponse({"model": self.facts.name, "score_threshold": threshold, "images": shown})

    @contextlib.contextmanager
    def _place(self) -> Any:
        """Reserves a place for one image while the block runs; the block can reserve more."""
        held = 0

        def take(amount: int) -> None:
            nonlocal held
            if not self.places.try_take(amount):
                raise Refusal(503, "Too many images are waiting; try again later.", retry_after=self._retry_after())
            held += amount

        take(1)
        try:
            yield take
        finally:
            self.places.give(held)

    def _retry_after(self) -> int:
        """Estimates the seconds until the images that are waiting now are done."""
        return min(_LONGEST_RETRY, math.ceil(self.places.taken * self.batcher.seconds_per_image) or 1)

    async def _while_connected(self, request: Request, work: Any) -> list[ImageDetections]:
        """Waits for the work; drops it if the client disconnects or the time limit is reached."""
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait(
                {working, leaving}, timeout=self.limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if working.done():
                return working.result()
            if leaving.done():
                raise ClientDisconnect
            raise Refusal(503, f"No answer within {self.limits.answer_seconds:g} s.", retry_after=self._retry_after())
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _detect_all(self, images: Iterable[uploads.Upload]) -> list[ImageDetections]:
        """Detects in the images of a request; the first unusable one cancels the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._detect_one(image)) for image in images]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _detect_one(self, upload: uploads.Upload) -> ImageDetections:
        image = await self.decoder.decode(upload)
        return await self.batcher.detect(image.image, image.close)

    async def health(self, _: Request) -> Response:
        """Answers /healthz."""
        if not self.batcher.is_alive:
            raise Refusal(503, "The model has stopped.")
        return JSONResponse({"status": "ok"})

    async def model(self, _: Request) -> Response:
        """Answers /v1/model."""
        return JSONResponse(documentation.model_facts(self.facts, self.limits))

    async def measured(self, _: Request) -> Response:
        """Answers /metrics."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})


def make_application(
    model: Model,
    facts: Facts,
    limits: Limits,
    metrics: Metrics,
    log: Callable[[str], None] | None,
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    """Makes the application that a web server runs.

    Args:
        model: a `Detector` whose score threshold is 0.
        facts: facts about the model.
        limits: limits of the service.
        metrics: counters to update.
        log: receives one line per request; None means no log.
        cors_origins: origins of other web pages that may send requests; * for all.
    """
    services: list[Service] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        services.append(Service(model, facts, limits, metrics))
        yield
        services.pop().close()

    def route(path: str, answer: Callable[..., Any], method: str = "GET") -> Route:
        async def endpoint(request: Request) -> Response:
            request.state.route = path
            if sum(len(name) + len(value) for name, value in request.scope["headers"]) > MOST_HEADERS:
                raise Refusal(431, f"The headers are larger than {MOST_HEADERS:,} bytes.")
            result: Response = await answer(request)
            return result

        return Route(path, endpoint, methods=[method])

    described = documentation.describe(facts, limits)
    routes = [
        route("/v1/detect", lambda request: services[0].detect(request), "POST"),
        route("/v1/model", lambda request: services[0].model(request)),
        route("/healthz", lambda request: services[0].health(request)),
        route("/metrics", lambda request: services[0].measured(request)),
        route("/openapi.json", _constant(JSONResponse(described))),
        route("/docs", _constant(HTMLResponse(documentation.page(described)))),
    ]
    for path, (name, kind) in _PAGE.items():
        content = (resources.files("efficientdet.serving") / "page" / name).read_bytes()
        routes.append(route(path, _constant(Response(content, media_type=kind))))
    handlers: Any = {
        Refusal: _refuse,
        HTTPException: _refuse_route,
        ClientDisconnect: _leave,
        Exception: _apologise,
    }
    application = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    return Gateway(application, metrics.request, log, cors_origins)


def make_busy(metrics: Metrics, log: Callable[[str], None] | None) -> ASGIApp:
    """Makes the application for excess connections, which answers each request with 503."""
    response = _problem(503, "Too many connections; try again later.", {"retry-after": "1"})
    return Gateway(response, metrics.request, log)


def _constant(response: Response) -> Callable[[Request], Any]:
    """Makes an endpoint that always returns the same response."""

    async def answer(_: Request) -> Response:
        return response

    return answer


def _pick(found: ImageDetections, choice: selection.Choice) -> ImageDetections:
    """Selects the detections that were requested."""
    rows = choice.rows(found.boxes, found.labels, found.scores)
    return dataclasses.replace(found, boxes=found.boxes[rows], labels=found.labels[rows], scores=found.scores[rows])


async def _disconnected(request: Request) -> None:
    """Returns when the client disconnects; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Makes an error response as in RFC 9457."""
    body = {"status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _refuse(_: Request, refusal: Refusal) -> Response:
    headers = None if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
    return _problem(refusal.status, refusal.detail, headers)


async def _refuse_route(_: Request, error: HTTPException) -> Response:
    return _problem(error.status_code, error.detail, dict(error.headers or {}))


async def _apologise(_: Request, __: Exception) -> Response:
    return _problem(500, "Internal error; see the service's log.")


class _Nothing(Response):
    async def __call__(self, *_: Any) -> None:
        """Sends nothing, because the client has disconnected."""


async def _leave(_: Request, __: Exception) -> Response:
    return _Nothing()
