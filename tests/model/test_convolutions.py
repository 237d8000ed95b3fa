"""Convolutions with gradients of their own answer and differentiate as TensorFlow's do."""

import keras
import numpy as np
import pytest

from efficientdet.model import kernels, layers

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's kernels")


def _differentiate(function, arrays, weights):
    """Computes `function` and the gradients of its weighted sum."""
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        outputs = function(*arrays)
        total = tf.reduce_sum(tf.cast(outputs, "float32") * weights)
    return [np.asarray(tf.cast(x, "float32")) for x in (outputs, *tape.gradient(total, arrays))]


def _of_layer(layer, **options):
    """Makes a function of the input and the layer's variables."""

    def call(x, *values):
        with keras.StatelessScope(state_mapping=list(zip(layer.trainable_variables, values, strict=True))):
            return layer(x, **options)

    return call


def _compare(layer, x, rng, tolerance):
    layer.build(x.shape)
    values = [tf.constant(rng.normal(size=v.shape), "float32") for v in layer.trainable_variables]
    weights = tf.constant(rng.normal(size=layer.compute_output_shape(x.shape)), "float32")
    assert kernels.pays(x)
    ours = _differentiate(_of_layer(layer, training=True), [x, *values], weights)
    plain = _differentiate(_of_layer(layer, training=False), [x, *values], weights)
    assert len(ours) == len(plain) == 2 + len(values)
    for found, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 4e-2)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_pointwise_convolution_is_tensorflow_s(rng, use_bias, dtype, tolerance):
    layer = layers.Conv(24, 1, use_bias=use_bias, dtype=dtype)
    x = tf.cast(rng.normal(size=(2, 65, 66, 33)), layer.compute_dtype)
    _compare(layer, x, rng, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 4e-2)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [(65, 66), (64, 67)])
def test_a_depthwise_convolution_is_tensorflow_s(rng, kernel, stride, size, dtype, tolerance):
    layer = layers.DepthwiseConv(kernel, strides=stride, dtype=dtype)
    x = tf.cast(rng.normal(size=(2, *size, 33)), layer.compute_dtype)
    _compare(layer, x, rng, tolerance)


def test_only_1_x_1_at_stride_1_is_a_product_of_matrices(rng):
    x = tf.constant(rng.normal(size=(2, 64, 64, 33)), "float32")
    for layer in (layers.Conv(8, 3), layers.Conv(8, 1, strides=2)):
        _compare(layer, x, rng, 1e-5)


def test_xla_takes_them_too(rng):
    """`--training.xla on` compiles the whole step, the gradients included."""
    x = tf.constant(rng.normal(size=(1, 64, 64, 65)), "float32")
    for layer in (layers.Conv(8, 1), layers.DepthwiseConv(3, strides=2)):
        layer.build(x.shape)
        values = [tf.convert_to_tensor(v) for v in layer.trainable_variables]

        def gradient(layer=layer, values=values):
            with tf.GradientTape() as tape:
                tape.watch(values)
                total = tf.reduce_sum(_of_layer(layer, training=True)(x, *values))
            return tape.gradient(total, values)

        for found, expected in zip(tf.function(gradient, jit_compile=True)(), gradient(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
