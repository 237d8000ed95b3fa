"""Admission control: the limits of a service, and budgets for the work in progress.

Clients decide what they send and how fast. So everything that one request can make grow has a limit, and everything
that all requests together can make grow has a budget: unanswered images, memory for bodies, memory for pixels.
"""

import asyncio
import dataclasses
import os
from collections import deque

from efficientdet.errors import UserError

MOST_HEADERS = 16 * 1024
"""Maximum size of a request's headers, bytes; larger ones get 400 or 431."""
PIXEL_BYTES = 3
"""Memory per decoded pixel while it waits for the model."""
DECODING_BYTES = 24
"""Worst-case memory per pixel while decoding; 11 to 22 were measured over formats and pixel types."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on what a service accepts from clients."""

    max_upload_mb: float = 20.0
    """Maximum size of a request body, MB (10^6 bytes); larger ones get 413."""
    max_images: int = 16
    """Maximum number of images in a request; more get 413."""
    max_megapixels: float = 50.0
    """Maximum size of an image, 10^6 px, read from its header before decoding; larger ones get 413."""
    max_waiting: int = 256
    """Maximum number of accepted images waiting for an answer; beyond it, requests get 503 with Retry-After."""
    max_connections: int = 512
    """Maximum number of open connections; beyond it, requests get 503 with Retry-After."""
    upload_memory_mb: float = 256.0
    """Memory for the bodies of all requests in progress, MB; beyond it, requests get 503 with Retry-After."""
    image_memory_mb: float = 1500.0
    """Memory for decoded images, MB: 24 bytes per pixel during decoding, then 3 until the answer is sent. Images wait
    until memory is free."""
    header_seconds: float = 10.0
    """Time to receive the headers of a request, s; slower clients get 408."""
    upload_seconds: float = 30.0
    """Time to receive the body, s; slower clients get 408."""
    answer_seconds: float = 60.0
    """Time from the body to the answer, s; slower requests get 503 with Retry-After."""
    shutdown_seconds: float = 30.0
    """Time to finish accepted requests after SIGTERM or Ctrl-C, s; unfinished ones are dropped."""
    max_batch: int = 8
    """Maximum number of images per batch; use 1 on a CPU with little memory."""
    batch_wait_ms: float = 10.0
    """Time that a batch waits for images that are being decoded, ms; if there are none, it doesn't wait."""
    decode_threads: int = min(4, os.cpu_count() or 1)
    """Number of images decoded in parallel."""


def check(limits: Limits) -> None:
    """Raises a UserError that names the first unusable limit."""
    for field in dataclasses.fields(limits):
        value = getattr(limits, field.name)
        least = 1 if field.type is int else 0 if field.name == "batch_wait_ms" else 1e-3
        if not least <= value <= 1e9:
            name = field.name.replace("_", "-")
            raise UserError(f"`limits.{name}` is {value}; it must be between {least:g} and 1e9.")
    needed = limits.max_megapixels * DECODING_BYTES
    if needed > limits.image_memory_mb:
        raise UserError(
            f"`limits.image-memory-mb` is {limits.image_memory_mb:g}, but one image of `limits.max-megapixels` "
            f"({limits.max_megapixels:g}) needs {needed:g}; raise the former or lower the latter."
        )
    if limits.max_upload_mb > limits.upload_memory_mb:
        raise UserError(
            f"`limits.upload-memory-mb` is {limits.upload_memory_mb:g}, but one body of `limits.max-upload-mb` needs "
            f"{limits.max_upload_mb:g}; raise the former or lower the latter."
        )


class Refusal(Exception):
    """Rejects a request with an HTTP status and a message for the client."""

    def __init__(self, status: int, detail: str, *, retry_after: int | None = None):
        """Makes a refusal.

        Args:
            status: HTTP status, 400 to 599.
            detail: message for the client; reveals nothing about the server.
            retry_after: seconds after which a retry may succeed.
        """
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after


class Budget:
    """A counted resource shared within one event loop; waiters are served in order."""

    def __init__(self, total: float):
        self.total = int(total)
        self.free = self.total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """Returns how much is in use."""
        return self.total - self.free

    def try_take(self, amount: int) -> bool:
        """Takes an amount if it is free and nobody is waiting; returns whether it did."""
        if self._waiting or amount > self.free:
            return False
        self.free -= amount
        return True

    async def take(self, amount: int) -> None:
        """Waits until an amount, at most `total`, is free and takes it."""
        assert amount <= self.total
        if self.try_take(amount):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self.give(0)  # the next waiter may fit now
            else:
                self.give(amount)
            raise

    def give(self, amount: int) -> None:
        """Returns an amount to the budget."""
        self.free += amount
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self.free):
            wanted, turn = self._waiting.popleft()
            if not turn.cancelled():
                self.free -= wanted
                turn.set_result(None)
