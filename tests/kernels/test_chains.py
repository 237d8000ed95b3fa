"""Chains in kernels: when, how often, and what sums in them lose. Their numbers: test_sums.py."""

import math

import float64
import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientdet.kernels import chains
from efficientdet.kernels import normalization as kernel_normalization
from efficientdet.model import layers, normalization

_SHAPE = (2, 128, 128, 32)  # as many numbers as a kernel pays for


@pytest.fixture(autouse=True)
def _on_a_cpu():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("kernels are for a CPU")


def _draw(rng, *shape, dtype="float32"):
    return tf.constant(rng.normal(size=shape), dtype)


@pytest.mark.parametrize("shape", [_SHAPE, (2, 8, 8, 32), (1, 1, 1, 32)], ids=["kernel", "operation", "one pixel"])
def test_normalisation_moves_the_statistics_as_keras_does(rng, shape):
    """Each of the two is within 8 sqrt(n) roundings of float64, relative to the sum of sizes (`float64`)."""
    x = _draw(rng, *shape) * 3 + 1
    ours = normalization.batch_norm("norm", 0.9, "float32", "swish")
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    for layer in (ours, theirs):
        layer.build(shape)
        layer(x, training=True)
    rows = np.asarray(x, np.float64).reshape(-1, shape[-1])
    rounding = float64.SUM_FACTOR * math.sqrt(len(rows)) * 2.0**-24
    for name, terms in (("moving_mean", np.abs(rows)), ("moving_variance", np.square(rows - rows.mean(0)))):
        difference = np.abs(np.asarray(getattr(ours, name)) - np.asarray(getattr(theirs, name)))
        assert (difference <= 0.1 * 2 * rounding * terms.mean(0) + 2.0**-23).all()


def test_sums_over_many_pixels_are_exact_enough(rng):
    """A mean far from zero is where sums in float32 lose most."""
    x = _draw(rng, 4, 256, 256, 8) + 30
    _, mean, variance = chains.compute(
        kernel_normalization.normalize_by_batch, x, tf.ones(8), tf.zeros(8), epsilon=1e-3, activation=None
    )
    exact = np.asarray(x, np.float64).reshape(-1, 8)
    # All terms of the mean have one sign, and so have those of the variance, of which each has the mean's error twice.
    rounding = float64.SUM_FACTOR * math.sqrt(len(exact)) * 2.0**-24
    np.testing.assert_allclose(mean, exact.mean(0), rtol=rounding)
    np.testing.assert_allclose(variance, exact.var(0), rtol=rounding, atol=np.square(30 * rounding))


def test_layers_of_one_shape_share_a_kernel(rng):
    arrays = [_draw(rng, *_SHAPE) for _ in range(2)]
    options = {"method": "sum", "relu": False, "activation": "relu6"}
    chains.compute(layers.fuse, *arrays, **options)
    known = chains._kernel.cache_info().misses
    chains.compute(layers.fuse, *arrays, **options)
    assert chains._kernel.cache_info().misses == known


@pytest.mark.parametrize("shape", [_SHAPE, (2, 8, 8, 32)], ids=["kernel", "operation"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_normalisation_by_fixed_statistics_is_its_formula_backwards_too(rng, shape, dtype):
    layer = normalization.batch_norm("norm", 0.9, float64.POLICIES[dtype], "swish")
    layer.build(shape)
    drawn = {name: rng.uniform(0.5, 2.0, 32).astype(np.float32) for name in ("gamma", "beta", "mean", "variance")}
    gamma, beta, mean, variance = (tf.constant(value) for value in drawn.values())
    x, upstream = _draw(rng, *shape, dtype=dtype), _draw(rng, *shape, dtype=dtype)

    def differentiate(function, *inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function()
        return [outputs, *tape.gradient(outputs, inputs, tf.cast(upstream, outputs.dtype))]

    def call():
        # As a training step does: the values are not those of the layer's variables, in the gradient neither.
        outputs, moved = layer.stateless_call([gamma, beta], [mean, variance], x, training=True)
        np.testing.assert_array_equal(moved, [drawn["mean"], drawn["variance"]])
        return outputs

    with normalization.fixed():
        found = differentiate(call, x, gamma, beta)
    wide, factor, shift = (tf.cast(array, "float64") for array in (x, gamma, beta))
    deviation = tf.sqrt(tf.cast(variance, "float64") + 1e-3)
    exact = differentiate(
        lambda: tf.nn.silu((wide - tf.cast(mean, "float64")) / deviation * factor + shift), wide, factor, shift
    )
    rounding = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for one, other in zip(found, exact, strict=True):
        # A few roundings of each number; of the sums over pixels each term has been rounded.
        limit = 16 * rounding * np.abs(other).max() * (1 if one.shape.rank == 4 else math.sqrt(math.prod(shape[:-1])))
        assert np.abs(np.asarray(one, np.float64) - other).max() <= limit


def test_a_small_array_or_one_of_unknown_size_is_not_worth_a_kernel(rng):
    assert chains.pays(_draw(rng, *_SHAPE))
    assert not chains.pays(_draw(rng, 2, 8, 8, 32))
    seen = []
    tf.function(lambda x: seen.append(chains.pays(x))).get_concrete_function(
        tf.TensorSpec([None, 64, 64, 64], "float32")
    )
    assert seen == [False]
