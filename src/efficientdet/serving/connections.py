"""Connections of uvicorn's that cannot be held open by saying little.

uvicorn waits without end for the head of a request, and for a client to read its answer. Here each phase has a time.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from efficientdet.serving.admission import Limits

_CLOSING_SECONDS = 10.0  # for a client to take its answer


class Connection(H11Protocol):
    """A connection of uvicorn's that is closed where a phase takes longer than its limit."""

    def __init__(self, *values: Any, limits: Limits, busy: ASGIApp, **named: Any):
        """Makes a connection.

        Args:
            values: of uvicorn's.
            limits: of the service.
            busy: answers instead of the application when there are too many connections.
            named: of uvicorn's.
        """
        super().__init__(*values, **named)
        self._limits, self._busy = limits, busy
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins; so many over the limit that even refusing them costs too much are closed at once."""
        super().connection_made(transport)
        if len(self.connections) > 2 * self._limits.max_connections:
            transport.abort()
            return
        if len(self.connections) > self._limits.max_connections:
            self.app = self._busy
        self._set_timer(self._limits.header_seconds, self._refuse_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer, which holds the connection."""
        self._set_timer(None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Takes what has arrived, and sets the time of the phase that it begins."""
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
        """Waits for another request, or for the client to take what is left of the answer."""
        is_closing = self.transport.is_closing()
        self._set_timer(_CLOSING_SECONDS if is_closing else None, self.transport.abort)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, at once if the client does not take the end."""
        super().timeout_keep_alive_handler()
        self._set_timer(_CLOSING_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP, unless an answer is already on its way."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
        else:
            self._refuse(b"400 Bad Request")

    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse_slow_head(self) -> None:
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        """Answers without the application, and closes."""
        self.transport.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)
        self.transport.close()
        self._set_timer(_CLOSING_SECONDS, self.transport.abort)

    def _set_timer(self, seconds: float | None, action: Any = None) -> None:
        """Sets the one timer, or none."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, action)
