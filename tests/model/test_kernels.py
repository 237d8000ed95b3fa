"""A chain in a kernel gives the values and gradients of its operations one by one, which Keras and float64 confirm."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientdet.model import kernels, layers, normalization
from efficientdet.training import losses

_SHAPE = (2, 64, 64, 32)  # as many numbers as a kernel pays for


@pytest.fixture(autouse=True)
def _on_a_cpu():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("kernels are for a CPU")


def _draw(rng, *shape, dtype="float32"):
    return tf.constant(rng.normal(size=shape), dtype)


def _differentiate(function, arrays, weights):
    """Computes the outputs, and the gradient of their sum weighted with the first one's weights."""
    with tf.GradientTape() as tape:
        floats = [array for array in arrays if array.dtype.is_floating]
        tape.watch(floats)
        outputs = tf.nest.flatten(function(*arrays))
        total = tf.reduce_sum(tf.cast(outputs[0], "float32") * weights)
    return [np.asarray(tf.cast(x, "float32")) for x in (*outputs, *tape.gradient(total, floats))]


def _compare(function, arrays, weights, tolerance=1e-5, **options):
    """Holds the kernel against the plain operations."""
    plain = _differentiate(functools.partial(function, **options), arrays, weights)
    kernel = _differentiate(functools.partial(kernels.compute, function, **options), arrays, weights)
    for found, expected in zip(kernel, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("activation", [None, "swish", "relu6"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 2e-3)])
def test_normalisation_is_that_of_its_operations(rng, activation, dtype, tolerance):
    x = _draw(rng, *_SHAPE, dtype=dtype) * 3 + 1
    gamma, beta = 1 + 0.1 * _draw(rng, 32), _draw(rng, 32)
    _compare(
        normalization.normalize_by_batch,
        [x, gamma, beta],
        _draw(rng, *_SHAPE),
        tolerance,
        epsilon=1e-3,
        activation=activation,
    )


def test_normalisation_is_keras_s_with_its_gradient_and_moving_statistics(rng):
    x, weights = _draw(rng, *_SHAPE) * 3 + 1, _draw(rng, *_SHAPE)
    ours = normalization.batch_norm("norm", 0.9, "float32", "swish")
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    for layer in (ours, theirs):
        layer.build(_SHAPE)
        layer.gamma.assign(np.linspace(0.5, 1.5, 32))
    found = _differentiate(lambda x: ours(x, training=True), [x], weights)
    expected = _differentiate(lambda x: keras.ops.silu(theirs(x, training=True)), [x], weights)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-6)


def test_sums_over_many_pixels_are_exact_enough(rng):
    """A mean far from zero is where sums in float32 lose most."""
    x = _draw(rng, 4, 256, 256, 8) + 30
    _, mean, variance = kernels.compute(
        normalization.normalize_by_batch, x, tf.ones(8), tf.zeros(8), epsilon=1e-3, activation=None
    )
    exact = np.asarray(x, np.float64).reshape(-1, 8)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-4)


@pytest.mark.parametrize("method", ["fast_attention", "attention", "sum"])
def test_fusion_is_that_of_its_operations(rng, method):
    features = [_draw(rng, *_SHAPE) for _ in range(3)]
    weights = [] if method == "sum" else [tf.constant(value) for value in (0.5, 1.5, -0.2)]
    _compare(layers.fuse, features + weights, _draw(rng, *_SHAPE), method=method, relu=True, activation="swish")


def test_the_focal_loss_is_that_of_its_operations(rng):
    logits = 3 * _draw(rng, 2, 5000, 90)
    labels = tf.constant(rng.integers(-2, 90, (2, 5000)), "int32")
    options = {"alpha": 0.25, "gamma": 1.5, "label_smoothing": 0.1}
    _compare(losses.focal_by_anchor, [logits, labels], _draw(rng, 2, 5000), **options)


def test_layers_of_one_shape_share_a_kernel(rng):
    arrays = [_draw(rng, *_SHAPE) for _ in range(2)]
    options = {"method": "sum", "relu": False, "activation": "relu6"}
    kernels.compute(layers.fuse, *arrays, **options)
    known = kernels._kernel.cache_info().misses
    kernels.compute(layers.fuse, *arrays, **options)
    assert kernels._kernel.cache_info().misses == known


def test_a_small_array_or_one_of_unknown_size_is_not_worth_a_kernel(rng):
    assert kernels.pays(_draw(rng, *_SHAPE))
    assert not kernels.pays(_draw(rng, 2, 8, 8, 32))
    seen = []
    tf.function(lambda x: seen.append(kernels.pays(x))).get_concrete_function(
        tf.TensorSpec([None, 64, 64, 64], "float32")
    )
    assert seen == [False]
