"""What every request passes through: headers for browsers, one log line, metrics, and a clean end to refused uploads.

A client that is still sending when it is refused often sees a broken connection instead of the answer. So the whole
answer is sent at once, and further data is read and discarded for a moment before the connection is closed.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LINGER_SECONDS = 2.0
_LONGEST_PATH = 60  # characters in the log

# The page's script, style and images are served from here; images that the user chooses are `blob:`.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


# Answers what a browser asks before it sends JSON from another site's page (Fetch standard, "CORS-preflight").
_PREFLIGHT = {
    "access-control-allow-methods": "GET, POST, OPTIONS",
    "access-control-allow-headers": "content-type",
    "access-control-max-age": "3600",
}


class Gateway:
    """Wraps an application in the processing that every request passes through."""

    def __init__(
        self,
        app: ASGIApp,
        observe: Callable[[str, int, float], None],
        log: Callable[[str], None] | None,
        cors_origins: Sequence[str] = (),
    ):
        """Wraps an application.

        Args:
            app: answers requests and stores the route in scope["state"]["route"].
            observe: called with the route, status and seconds of each answer.
            log: receives one line per request; None means no log.
            cors_origins: origins (`https://host`) whose pages may send requests from a browser; * for all.
        """
        self._app, self._observe, self._log = app, observe, log
        self._origins = frozenset(cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request (ASGI interface)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
        is_allowed = bool(origin) and ("*" in self._origins or origin in self._origins)
        exchange = _Exchange(receive, send, _has_body(scope), _allowance(origin, self._origins) if is_allowed else {})
        began = time.monotonic()
        try:
            if is_allowed and scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_PREFLIGHT)(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        finally:
            state, seconds = scope.get("state", {}), time.monotonic() - began
            # 499: the client disconnected before its answer (nginx's convention).
            status = exchange.status or 499
            self._observe(state.get("route", "other"), status, seconds)
            if self._log is not None:
                self._log(_line(scope, status, seconds, state.get("images", 0)))


class _Exchange:
    """One request and its answer."""

    def __init__(self, receive: Receive, send: Send, has_body: bool, allowance: dict[str, str]):
        self._receive, self._send, self._allowance = receive, send, allowance
        self._is_received = not has_body
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_received = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {**_HEADERS, **self._allowance}.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
            if not self._is_received:
                headers["connection"] = "close"
        elif not self._is_received and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Discards further data for a moment."""
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._is_received:
                    await self.receive()
        except TimeoutError:
            pass


def _allowance(origin: str, origins: frozenset[str]) -> dict[str, str]:
    """Returns the headers that let another site's page read an answer."""
    return {
        "access-control-allow-origin": "*" if "*" in origins else origin,
        "access-control-expose-headers": "retry-after",
        "cross-origin-resource-policy": "cross-origin",
        "vary": "origin",
    }


def _has_body(scope: Scope) -> bool:
    names = dict(scope["headers"])
    return b"transfer-encoding" in names or names.get(b"content-length", b"0") != b"0"


def _line(scope: Scope, status: int, seconds: float, images: int) -> str:
    """Formats the log line of a request; text from the client cannot start a new line."""
    host = scope["client"][0] if scope.get("client") else "-"
    path = ascii(scope["path"][:_LONGEST_PATH])[1:-1]
    counted = f" {images} image{'s' * (images != 1)}" if images else ""
    return f"{host} {scope['method'][:10]} {path} {status} {1e3 * seconds:.0f} ms{counted}"
