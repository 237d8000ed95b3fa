"""Batches: what shares one, and that one bad image does not spoil the others."""

import asyncio
import threading

import little_service
import numpy as np
import pytest

from efficientdet.serving import batching
from efficientdet.serving.admission import Limits


class _Watched:
    """A detector that notes the sizes of its batches, waits to be let go, and cannot see images of one row."""

    def __init__(self, detector):
        self.sizes, self.gate, self._detector = [], threading.Event(), detector

    def detect(self, images):
        assert self.gate.wait(30)
        self.sizes.append(len(images))
        if any(image.shape[0] == 1 for image in images):
            raise RuntimeError("one row")
        return self._detector.detect(images)


def _run(detector, photos, *, cancelled=()):
    """Gives images to a batcher while its model waits: answers, sizes of batches, how many were closed."""

    async def scenario():
        watched, closed = _Watched(detector), []
        batcher = batching.Batcher(watched, Limits(max_batch=8), lambda: False, lambda *_: None)
        tasks = []
        for place, pixels in enumerate(photos):
            tasks.append(asyncio.ensure_future(batcher.detect(pixels, lambda place=place: closed.append(place))))
            await asyncio.sleep(0 if place else 0.1)  # the model is at work on the first when the others come
        for place in cancelled:
            tasks[place].cancel()
        await asyncio.sleep(0)
        watched.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        await asyncio.sleep(0.05)
        return answers, watched.sizes, sorted(closed)

    return asyncio.run(scenario())


@pytest.fixture(scope="module")
def photos():
    return [little_service.image(seed) for seed in range(12)]


def test_what_waits_is_answered_in_batches_of_powers_of_two(detector, photos):
    answers, sizes, closed = _run(detector, photos)
    assert sizes == [1, 8, 2, 1]
    assert closed == list(range(12))
    for pixels, answer in zip(photos, answers, strict=True):
        little_service.assert_same(answer.to_dict(), detector.detect([pixels])[0].to_dict())


def test_an_image_that_the_model_cannot_take_fails_alone(detector, photos):
    given = [*photos[:2], np.zeros((1, 50, 3), np.uint8), *photos[2:5]]
    answers, _, closed = _run(detector, given)
    assert isinstance(answers.pop(2), RuntimeError)
    assert closed == list(range(6))
    for pixels, answer in zip(photos[:5], answers, strict=True):
        little_service.assert_same(answer.to_dict(), detector.detect([pixels])[0].to_dict())


def test_who_went_away_is_not_detected_for(detector, photos):
    answers, sizes, closed = _run(detector, photos[:6], cancelled=(2, 3, 4))
    assert sizes == [1, 1, 1]
    assert closed == list(range(6)), "memory is given back all the same"
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [False, False, True, True, True, False]


def test_every_size_of_batch_is_warmed_up(detector):
    watched = _Watched(detector)
    watched.gate.set()
    batching.warm_up(watched, Limits(max_batch=8))
    assert watched.sizes == [1, 2, 4, 8]
