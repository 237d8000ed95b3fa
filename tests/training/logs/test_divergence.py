"""When a training loss diverges, and when it only looks bad for a moment."""

import numpy as np
import pytest

from efficientdet.training.logs.divergence import LossTrend


def _follow(losses):
    """Returns whether the loss was ever diverging, and whether it is high at the end."""
    trend, ever = LossTrend(), False
    for loss in losses:
        trend.add(float(loss))
        ever = ever or trend.is_diverging
    return ever, trend.is_high


def _noisy(levels, spread=0.6, seed=0):
    """Losses of a small batch: log-normal around the levels."""
    return np.asarray(levels) * np.random.default_rng(seed).lognormal(0, spread, len(levels))


_FALLING = np.geomspace(2.0, 0.4, 400)
_LOSSES = {
    "falls": (_FALLING, False, False),
    "falls, small batches": (_noisy(_FALLING), False, False),
    "rises to 31.7 and stays": ([*_FALLING, *np.geomspace(0.4, 31.7, 100), *np.full(100, 31.7)], True, True),
    "rises at the end": ([*_FALLING, *np.geomspace(0.4, 31.7, 30)], False, True),
    "stays bad, below where it began": ([*_FALLING, *np.full(200, 1.6)], True, True),
    "recovers": ([*_FALLING, *np.full(150, 9.0), *_FALLING], True, False),
    "one batch is bad": ([*_FALLING, 40.0, *np.full(200, 0.4)], False, False),
    "diverges at once": ([2.0, 500.0, 300.0, *np.full(100, 31.7)], True, True),
    "warm-up raises it a little": ([*np.linspace(0.8, 1.6, 100), *_FALLING], False, False),
    "overfits, then jumps": ([*np.geomspace(2.0, 0.02, 300), *np.full(200, 0.1)], False, False),
    "two steps": ([1.0, 1.5], False, False),
    "none": ([], False, False),
}


@pytest.mark.parametrize("name", _LOSSES)
def test_a_loss_diverges_when_it_stays_far_above_its_lowest(name):
    losses, ever, at_the_end = _LOSSES[name]
    assert _follow(losses) == (ever, at_the_end)


@pytest.mark.parametrize("seed", range(20))
def test_the_noise_of_two_images_a_batch_is_no_divergence(seed):
    """A loss that is normalised by the positives of two images is off by two either way in one step of three."""
    assert _follow(_noisy(np.geomspace(2.0, 0.5, 1000), spread=0.7, seed=seed)) == (False, False)
