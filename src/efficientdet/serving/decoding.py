"""Decodes uploads to pixels, a few at a time, in threads and within a memory budget."""

import asyncio
import concurrent.futures
from typing import Any

import numpy as np

from efficientdet.errors import UserError
from efficientdet.media import images
from efficientdet.serving.admission import DECODING_BYTES, PIXEL_BYTES, Budget, Limits, Refusal
from efficientdet.serving.uploads import Upload

# A progressive JPEG is decoded once per scan: 10 are usual, but even a small file may have thousands.
_MOST_SCANS = 100
_SCAN = b"\xff\xda"  # inside the data of a scan, 0xFF is followed by 0 or a restart marker


class Image:
    """Pixels and the memory reserved for them."""

    def __init__(self, image: np.ndarray, memory: Budget):
        """Takes over pixels whose memory is already reserved.

        Args:
            image: uint8[H, W, 3].
            memory: the budget that image.nbytes were taken from.
        """
        self.image, self._memory, self._taken = image, memory, image.nbytes

    def close(self) -> None:
        """Drops the pixels and returns their memory."""
        self._memory.give(self._taken)
        self._taken = 0
        del self.image


class Decoder:
    """Decodes untrusted images."""

    def __init__(self, limits: Limits):
        """Sets up the thread pool; threads start with the first image."""
        self._limits = limits
        self._pool = concurrent.futures.ThreadPoolExecutor(limits.decode_threads, thread_name_prefix="decode")
        self.memory = Budget(limits.image_memory_mb * 1e6)
        self.num_pending = 0
        """Number of images that are being decoded or waiting for it."""

    async def decode(self, upload: Upload) -> Image:
        """Decodes an image, upright, once a thread and memory are free.

        Raises:
            Refusal: 413, 415 or 422.
        """
        self.num_pending += 1
        try:
            pixels = await self._run(_inspect, upload, self._limits.max_megapixels * 1e6)
            await self.memory.take(pixels * DECODING_BYTES)
            return await self._read(upload, pixels * DECODING_BYTES)
        finally:
            self.num_pending -= 1

    async def _read(self, upload: Upload, taken: int) -> Image:
        """Decodes with the memory already reserved and returns what is no longer needed."""
        loop = asyncio.get_running_loop()
        running = self._pool.submit(_read, upload)
        try:
            image = await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            # A thread cannot be stopped, so it keeps the memory until it finishes.
            running.add_done_callback(lambda _: _call_soon(loop, self.memory.give, taken))
            raise
        except BaseException:
            self.memory.give(taken)
            raise
        self.memory.give(taken - image.size // 3 * PIXEL_BYTES)
        return Image(image, self.memory)

    async def _run(self, function: Any, *values: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *values)

    def close(self) -> None:
        """Stops the threads after their current images."""
        self._pool.shutdown(cancel_futures=True)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Any, *values: Any) -> None:
    """Calls a function in the loop's thread, if the loop is still running."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *values)


def _inspect(upload: Upload, most: float) -> int:
    """Checks an image by its header and returns the number of pixels to decode.

    Raises:
        Refusal: the image must not be decoded.
    """
    try:
        facts = images.inspect(upload.content, upload.name)
    except images.UnknownFormatError as error:
        raise Refusal(415, str(error)) from None
    except images.TooManyPixelsError as error:
        raise Refusal(413, str(error)) from None
    except UserError as error:
        raise Refusal(422, str(error)) from None
    if facts.decoded_pixels > most:
        raise Refusal(
            413, f"`{upload.name}` is {facts.height} x {facts.width} px; the limit is {most:,.0f} px. Make it smaller."
        )
    if facts.format == "JPEG" and upload.content.count(_SCAN) > _MOST_SCANS:
        raise Refusal(422, f"`{upload.name}` has more than {_MOST_SCANS} scans; save it as a baseline JPEG.")
    return facts.decoded_pixels


def _read(upload: Upload) -> np.ndarray:
    try:
        return images.read_image(upload.content, upload.name)
    except UserError as error:
        raise Refusal(422, str(error)) from None
