"""How much a service takes on: its limits, and what is under way counted against them.

Whoever can reach the service decides what is sent and how fast. So each thing a request can make grow has a limit, and
what all requests together can make grow has a budget: images without an answer, memory for bodies, memory for pixels.
"""

import asyncio
import dataclasses
import os
from collections import deque

from efficientdet.errors import UserError

MOST_HEADERS = 16 * 1024
"""Bytes of a request's headers. Beyond: 400 or 431."""
PIXEL_BYTES = 3
"""Memory of a decoded pixel that waits for the model."""
DECODING_BYTES = 24
"""Memory that decoding takes a pixel at its worst: measured 11 to 22 over formats and pixel types."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a service accepts from strangers."""

    max_upload_mb: float = 20.0
    """Largest body of a request, MB (10^6 bytes). Beyond: 413."""
    max_images: int = 16
    """Most images in a request. Beyond: 413."""
    max_megapixels: float = 50.0
    """Largest image, 10^6 px; judged by its header before a pixel is decoded. Beyond: 413."""
    max_waiting: int = 256
    """Images that are accepted and have no answer yet. Beyond: 503 with Retry-After."""
    max_connections: int = 512
    """Open connections. Beyond: 503 with Retry-After."""
    upload_memory_mb: float = 256.0
    """Memory for the bodies of all requests under way, MB. Beyond: 503 with Retry-After."""
    image_memory_mb: float = 1500.0
    """Memory for decoded images, MB: 24 bytes a pixel while one is decoded, 3 until it has its answer. Images wait
    for it."""
    header_seconds: float = 10.0
    """Until the head of a request is there. Beyond: 408."""
    upload_seconds: float = 30.0
    """Until the body is there. Beyond: 408."""
    answer_seconds: float = 60.0
    """From the body to the answer. Beyond: 503 with Retry-After."""
    shutdown_seconds: float = 30.0
    """For the accepted requests after SIGTERM or Ctrl-C; what is not done then is dropped."""
    max_batch: int = 8
    """Most images that the model sees at once; 1 on a CPU where memory is short."""
    batch_wait_ms: float = 10.0
    """How long a batch waits for images that are being decoded; without such it does not wait."""
    decode_threads: int = min(4, os.cpu_count() or 1)
    """Images that are decoded at once."""


def check(limits: Limits) -> None:
    """Raises a UserError that names the first limit that cannot work."""
    for field in dataclasses.fields(limits):
        value = getattr(limits, field.name)
        least = 1 if field.type is int else 0 if field.name == "batch_wait_ms" else 1e-3
        if not least <= value <= 1e9:
            name = field.name.replace("_", "-")
            raise UserError(f"`limits.{name}` is {value}; it must be at least {least:g} and at most 1e9.")
    needed = limits.max_megapixels * DECODING_BYTES
    if needed > limits.image_memory_mb:
        raise UserError(
            f"`limits.image-memory-mb` is {limits.image_memory_mb:g}; one image of `limits.max-megapixels` "
            f"({limits.max_megapixels:g}) needs {needed:g}."
        )
    if limits.max_upload_mb > limits.upload_memory_mb:
        raise UserError(
            f"`limits.upload-memory-mb` is {limits.upload_memory_mb:g}; one body of `limits.max-upload-mb` needs "
            f"{limits.max_upload_mb:g}."
        )


class Refusal(Exception):
    """A request that is not served, and what its answer says."""

    def __init__(self, status: int, detail: str, *, retry_after: int | None = None):
        """Makes a refusal.

        Args:
            status: of HTTP, 400 to 599.
            detail: for the client; names nothing of the server.
            retry_after: seconds after which another try may succeed.
        """
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after


class Budget:
    """A number of things, taken and given back in one event loop; who waits is served in turn."""

    def __init__(self, total: float):
        self.total = int(total)
        self.free = self.total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """How much is not free."""
        return self.total - self.free

    def try_take(self, amount: int) -> bool:
        """Takes an amount if it is free and nobody waits; says whether it did."""
        if self._waiting or amount > self.free:
            return False
        self.free -= amount
        return True

    async def take(self, amount: int) -> None:
        """Takes an amount, at most `total`, once it is free."""
        assert amount <= self.total
        if self.try_take(amount):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self.give(0)  # who waits behind may have room now
            else:
                self.give(amount)
            raise

    def give(self, amount: int) -> None:
        """Gives an amount back."""
        self.free += amount
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self.free):
            wanted, turn = self._waiting.popleft()
            if not turn.cancelled():
                self.free -= wanted
                turn.set_result(None)
