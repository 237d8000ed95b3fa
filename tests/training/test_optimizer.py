"""The optimiser: the schedule's published values, clipping, momentum and average against plain loops."""

import keras
import numpy as np
import pytest

from efficientdet.training import optimizer
from efficientdet.training.distributed import engine


def _rate(step, peak=2.2, start=1e-4, warmup_steps=1875.0, total_steps=30000.0):
    return float(
        optimizer.learning_rate(
            np.int32(step), peak=peak, start=start, warmup_steps=warmup_steps, total_steps=total_steps
        )
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(0, 1e-4, id="the first step"),
        pytest.param(937, 1e-4 + (2.2 - 1e-4) * 937 / 1875, id="half of the warm-up"),
        pytest.param(1875, 2.2, id="the peak"),
        pytest.param(22500, 0.36396, id="epoch 300 of 400, where NVIDIA stops"),
        pytest.param((1875 + 30000) // 2, 1.1, id="half of the cosine"),
        pytest.param(30000, 0, id="the end"),
        pytest.param(40000, 0, id="after the end it stays at 0"),
    ],
)
def test_the_schedule_of_nvidia_s_a100_recipe(step, expected):
    assert _rate(step) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_schedule_rises_then_falls():
    rates = np.array([_rate(step) for step in range(0, 30001, 375)])
    peak = rates.argmax()
    assert peak == 5
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()


def test_without_warm_up_the_first_step_has_the_peak():
    assert _rate(0, warmup_steps=0.0, total_steps=100.0) == pytest.approx(2.2)


def _norm(*arrays):
    return float(np.sqrt(sum((np.asarray(a, np.float64) ** 2).sum() for a in arrays)))


def _clip(gradients, norm):
    return [np.array(g) for g in optimizer.clip(engine.to_device([np.asarray(g, np.float32) for g in gradients]), norm)]


def test_clip_clips_each_gradient_and_then_all_together():
    clipped = _clip([[30.0, 40.0], [0.0, 6.0]], 10.0)
    # The first goes from 50 to 10; together they are sqrt(136), and go to 10.
    factor = 10 / np.sqrt(136)
    np.testing.assert_allclose(clipped[0], np.array([6, 8]) * factor, rtol=1e-6)
    np.testing.assert_allclose(clipped[1], np.array([0, 6]) * factor, rtol=1e-6)
    assert _norm(*clipped) == pytest.approx(10, rel=1e-6)


def test_small_gradients_are_not_clipped():
    np.testing.assert_array_equal(_clip([[3.0], [4.0]], 10.0), [[3.0], [4.0]])


def test_zero_gradients_stay_zero():
    np.testing.assert_array_equal(_clip([[0.0], [0.0]], 10.0), [[0.0], [0.0]])


def test_clip_norm_0_is_off():
    np.testing.assert_array_equal(_clip([[3000.0], [4000.0]], 0.0), [[3000.0], [4000.0]])


def test_clip_equals_two_loops(rng):
    gradients = [rng.normal(0, scale, (4, 5)) for scale in (0.1, 1, 10, 100)]
    once = [g * min(1, 10 / _norm(g)) for g in gradients]
    together = [g * min(1, 10 / _norm(*once)) for g in once]
    np.testing.assert_allclose(_clip(gradients, 10.0), together, rtol=1e-5)


def test_global_norm_is_that_of_all_numbers_together(rng):
    arrays = [rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=4).astype(np.float32)]
    assert float(optimizer.global_norm(arrays)) == pytest.approx(_norm(*arrays), rel=1e-6)


def test_momentum_equals_a_loop_while_the_rate_changes(rng):
    weight, gradients, rates = rng.normal(size=5), rng.normal(size=(20, 5)), np.linspace(0.1, 1, 20)
    ours, momenta = [weight.astype(np.float32)], [np.zeros(5, np.float32)]
    theirs, velocity = weight.copy(), np.zeros(5)
    for gradient, rate in zip(gradients, rates, strict=True):
        ours, momenta = optimizer.momentum_update(
            ours, [gradient.astype(np.float32)], momenta, rate=np.float32(rate), momentum=0.9
        )
        velocity = 0.9 * velocity + gradient
        theirs = theirs - rate * velocity
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(momenta[0], velocity, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("updates", "expected"), [(1, 2 / 11), (2, 3 / 12), (90, 91 / 100), (10**6, 0.9998)])
def test_the_average_starts_fast(updates, expected):
    assert float(optimizer.average_decay(np.int32(updates), 0.9998)) == pytest.approx(expected, rel=1e-6)


def test_the_average_equals_a_loop(rng):
    values = rng.normal(size=(30, 4)).astype(np.float32)
    ours, theirs = [values[0]], values[0].astype(np.float64)
    for n, value in enumerate(values[1:], start=1):
        ours = optimizer.average_update(ours, [value], optimizer.average_decay(np.int32(n), 0.7))
        decay = min(0.7, (1 + n) / (10 + n))
        theirs = decay * theirs + (1 - decay) * value
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-6)


def test_an_average_of_constant_weights_does_not_move():
    value = np.full(3, 1 / 3, np.float32)
    np.testing.assert_array_equal(optimizer.average_update([value], [value], np.float32(0.3))[0], value)


def test_integers_are_copied():
    seeds = np.array([7, 3], np.uint32)
    copied = optimizer.average_update([np.array([1, 1], np.uint32)], [seeds], 0.5)[0]
    np.testing.assert_array_equal(copied, seeds)


def test_adam_is_keras_s_while_the_rate_changes(rng):
    """Keras adds its epsilon to a square root that is not yet divided by its bias: the same where it is 0."""
    weight, gradients = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(20, 4, 3)).astype(np.float32)
    ours, means, squares = [weight], [np.zeros_like(weight)], [np.zeros_like(weight)]
    variable, theirs = keras.Variable(weight), keras.optimizers.Adam(beta_1=0.9, beta_2=0.99, epsilon=0.0)
    for number, gradient in enumerate(gradients, start=1):
        ours, means, squares = optimizer.adam_update(
            ours,
            [gradient],
            means,
            squares,
            updates=np.int32(number),
            rate=np.float32(0.1 / number),
            momentum=0.9,
            square_decay=0.99,
        )
        theirs.learning_rate = 0.1 / number
        theirs.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    np.testing.assert_allclose(ours[0], variable.numpy(), rtol=1e-4, atol=1e-5)
