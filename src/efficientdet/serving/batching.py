"""Groups the images of many requests into batches for one model, in one thread.

Images that arrive while the model is busy go into the next batch. An idle model waits for more only if some are being
decoded, and only briefly, so a single client never waits for others.

Batch sizes are powers of two. Compiling a graph for a new batch size can take seconds, so there are few sizes, and all
are compiled before the first request.
"""

import asyncio
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from efficientdet.inference.detections import ImageDetections
from efficientdet.serving.admission import Limits


class Model(Protocol):
    """Anything that detects, such as a `Detector`."""

    def detect(self, images: Sequence[np.ndarray]) -> list[ImageDetections]:
        """Detects in images, uint8[h, w, 3] each."""
        ...


@dataclasses.dataclass(eq=False)
class _Job:
    image: np.ndarray | None
    close: Callable[[], None]
    answer: asyncio.Future[ImageDetections]


class Batcher:
    """Feeds images to a model, several at a time."""

    def __init__(
        self, model: Model, limits: Limits, is_more_coming: Callable[[], bool], observe: Callable[[int, float], None]
    ):
        """Starts the model's thread.

        Args:
            model: used only by that thread.
            limits: limits of the service.
            is_more_coming: returns whether images are being decoded.
            observe: called with the size and seconds of each batch.
        """
        self._model, self._limits = model, limits
        self._is_more_coming, self._observe = is_more_coming, observe
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.seconds_per_image = 0.1
        """Recent average time in the model."""
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    async def detect(self, image: np.ndarray, close: Callable[[], None]) -> ImageDetections:
        """Detects in one image.

        Args:
            image: uint8[h, w, 3].
            close: called in the event loop when the model no longer needs the image, even without an answer.
        """
        loop = asyncio.get_running_loop()
        job = _Job(image, close, loop.create_future())
        self._jobs.put(job)
        return await job.answer

    @property
    def is_alive(self) -> bool:
        """Returns whether the model's thread is running."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stops the thread after it has answered the queued images."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        """Processes batches until `close` is called."""
        while (job := self._jobs.get()) is not None:
            jobs, is_last = self._gather(job)
            for batch in _powers_of_two(jobs):
                self._answer(batch)
            del job, jobs, batch  # so that an idle thread holds no image
            if is_last:
                return

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        """Collects the jobs that are queued or arrive within the wait; returns whether `close` was among them."""
        jobs = [first]
        until = time.monotonic() + self._limits.batch_wait_ms / 1e3
        while len(jobs) < self._limits.max_batch:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                left = until - time.monotonic()
                if left <= 0 or not self._is_more_coming():
                    break
                try:
                    job = self._jobs.get(timeout=min(left, 1e-3))
                except queue.Empty:
                    continue
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _answer(self, jobs: list[_Job]) -> None:
        """Detects in a batch and delivers the answers, except to clients that have disconnected."""
        wanted = [job for job in jobs if not job.answer.cancelled()]
        found: list[ImageDetections | BaseException] = []
        if wanted:
            began = time.monotonic()
            found = self._detect([job.image for job in wanted if job.image is not None])
            seconds = time.monotonic() - began
            self._observe(len(wanted), seconds)
            self.seconds_per_image += 0.2 * (seconds / len(wanted) - self.seconds_per_image)
        for job in jobs:
            job.image = None
        for job in jobs:
            result = found.pop(0) if job in wanted else None
            _hand_over(job, result)

    def _detect(self, images: list[np.ndarray]) -> list[ImageDetections | BaseException]:
        """Detects; if a batch fails, retries each image alone, so that one cannot spoil the others."""
        try:
            return list(self._model.detect(images))
        except Exception as error:
            if len(images) == 1:
                return [error]
        return [self._detect([image])[0] for image in images]


def warm_up(model: Model, limits: Limits) -> None:
    """Runs a batch of each size, so that everything is compiled before the first request."""
    for size in _sizes(limits.max_batch):
        model.detect([np.zeros((32, 32, 3), np.uint8)] * size)


def _sizes(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def _powers_of_two(jobs: list[_Job]) -> Iterator[list[_Job]]:
    """Splits a batch into powers of two: 7 becomes 4, 2 and 1."""
    while jobs:
        size = _sizes(len(jobs))[-1]
        yield jobs[:size]
        jobs = jobs[size:]


def _hand_over(job: _Job, result: ImageDetections | BaseException | None) -> None:
    """Passes an answer to the event loop, if it is still running."""

    def finish() -> None:
        job.close()
        if job.answer.done() or result is None:
            return
        if isinstance(result, BaseException):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)

    loop = job.answer.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(finish)
