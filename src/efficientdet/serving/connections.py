"""uvicorn connections that slow clients cannot hold open.

uvicorn waits forever for the headers of a request, and for a client to read its answer. Here each phase is limited.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from efficientdet.serving.admission import Limits

_CLOSING_SECONDS = 10.0  # for a client to take its answer


class Connection(H11Protocol):
    """A uvicorn connection that is closed if a phase exceeds its time limit."""

    def __init__(self, *values: Any, limits: Limits, busy: ASGIApp, **named: Any):
        """Makes a connection.

        Args:
            values: passed to uvicorn.
            limits: limits of the service.
            busy: answers instead of the application if there are too many connections.
            named: passed to uvicorn.
        """
        super().__init__(*values, **named)
        self._limits, self._busy = limits, busy
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the connection; at twice the limit, closes it at once, since even refusing costs too much."""
        super().connection_made(transport)
        if len(self.connections) > 2 * self._limits.max_connections:
            transport.abort()
            return
        if len(self.connections) > self._limits.max_connections:
            self.app = self._busy
        self._set_timer(self._limits.header_seconds, self._refuse_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer, which keeps the connection alive."""
        self._set_timer(None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handles what has arrived and sets the timer of the phase that it starts."""
        was_waiting = self._waits_for_head()
        super().handle_events()
        if self.transport.is_closing():
            return
        if not self._waits_for_head():
            if was_waiting:
                phases = self._limits.upload_seconds + self._limits.answer_seconds + _CLOSING_SECONDS
                self._set_timer(phases, self.transport.abort)
        elif self._timer is None:  # the first bytes of another request
            self._set_timer(self._limits.header_seconds, self._refuse_slow_head)

    def on_response_complete(self) -> None:
        """Waits for another request, or for the client to read the rest of the answer."""
        is_closing = self.transport.is_closing()
        self._set_timer(_CLOSING_SECONDS if is_closing else None, self.transport.abort)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, and aborts it if the client doesn't close its end."""
        super().timeout_keep_alive_handler()
        self._set_timer(_CLOSING_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Rejects invalid HTTP, unless an answer has already started."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
        else:
            self._refuse(b"400 Bad Request")

    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse_slow_head(self) -> None:
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        """Answers without the application and closes the connection."""
        self.transport.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)
        self.transport.close()
        self._set_timer(_CLOSING_SECONDS, self.transport.abort)

    def _set_timer(self, seconds: float | None, action: Any = None) -> None:
        """Replaces the timer; None only cancels it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, action)
