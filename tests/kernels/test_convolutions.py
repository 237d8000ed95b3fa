"""Convolutions and their gradients are those of float64, but for rounding, however they are computed."""

import math

import float64
import keras
import numpy as np
import pytest

from efficientdet import backend
from efficientdet.kernels import choice, convolutions, mixed_precision
from efficientdet.model import layers

_LARGE = (2, 65, 66, 33)  # worth a form of our own with TensorFlow on a CPU; SAME padding differs between the sides
_SMALL = (2, 17, 18, 24)

each_type = pytest.mark.parametrize("dtype", list(float64.POLICIES))
each_size = pytest.mark.parametrize("shape", [_LARGE, _SMALL], ids=["large", "small"])


def _convolve(x, kernel, upstream, stride, is_depthwise):
    """Computes a convolution with SAME padding and its gradients, tap after tap, in float64."""
    extent, (height, width) = kernel.shape[0], upstream.shape[1:3]
    spans = [(side - 1) * stride + 1 for side in (height, width)]
    missing = [max(span + extent - 1 - side, 0) for span, side in zip(spans, x.shape[1:3], strict=True)]
    sides = [(total // 2, total - total // 2) for total in missing]
    padded = np.pad(x, [(0, 0), *sides, (0, 0)])
    outputs, by_padded, by_kernel = 0.0, np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(extent):
        for j in range(extent):
            seen = (slice(None), slice(i, i + spans[0], stride), slice(j, j + spans[1], stride))
            tap = np.diag(kernel[i, j, :, 0]) if is_depthwise else kernel[i, j]
            outputs = outputs + padded[seen] @ tap
            by_padded[seen] += upstream @ tap.T
            products = np.einsum("bhwc,bhwd->cd", padded[seen], upstream)
            by_kernel[i, j] = np.diag(products)[:, None] if is_depthwise else products
    (top, _), (left, _) = sides
    return outputs, by_padded[:, top : top + x.shape[1], left : left + x.shape[2]], by_kernel


def _check(rng, layer, shape, dtype, *, is_depthwise=False, training=True, xla=False):
    x = float64.draw(rng, shape, dtype)
    stride, extent = layer.strides[0], layer.kernel_size[0]
    kernel = float64.draw(rng, (extent, extent, shape[-1], 1 if is_depthwise else layer.filters), dtype)
    upstream = float64.draw(rng, layer.compute_output_shape(shape), dtype)
    values = [kernel] if not layer.use_bias else [kernel, bias := float64.draw(rng, kernel.shape[-1:], dtype)]
    found = float64.run(layer, x, upstream, dtype, values, xla=xla, training=training)
    exact = _convolve(x, kernel, upstream, stride, is_depthwise)
    terms = _convolve(np.abs(x), np.abs(kernel), np.abs(upstream), stride, is_depthwise)
    taps = extent**2
    counts = [taps * (1 if is_depthwise else shape[-1]), taps * (1 if is_depthwise else layer.filters)]
    counts.append(math.prod(upstream.shape[:3]))
    if layer.use_bias:  # the sum is rounded, and again with the bias
        found[0] -= bias
        float64.compare(found.pop(), upstream.sum((0, 1, 2)), np.abs(upstream).sum((0, 1, 2)), counts[-1], dtype)
        extra = 1.01 * float64.ROUNDING[dtype] * (np.abs(exact[0]) + np.abs(bias))
        assert (np.abs(found[0] - exact[0]) <= 2 * extra + 1e-6 * terms[0] + 2 * float64.LEAST[dtype]).all()
        found, exact, terms, counts = found[1:], exact[1:], terms[1:], counts[1:]
    for row in zip(found, exact, terms, counts, strict=True):
        float64.compare(*row, dtype)


@each_type
@each_size
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_a_depthwise_convolution(rng, kernel, stride, training, shape, dtype):
    layer = layers.DepthwiseConv(kernel, strides=stride, dtype=float64.POLICIES[dtype])
    _check(rng, layer, shape, dtype, is_depthwise=True, training=training)


@each_type
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_a_depthwise_convolution_as_shifts(rng, kernel, stride, dtype):
    with choice.used(choice.choose("shifts")):
        layer = layers.DepthwiseConv(kernel, strides=stride, dtype=float64.POLICIES[dtype])
    _check(rng, layer, _SMALL, dtype, is_depthwise=True)


@each_type
def test_a_depthwise_convolution_in_a_kernel_for_gpus(rng, dtype):
    if keras.backend.backend() != "jax":
        pytest.skip("needs JAX")
    with choice.used(choice.choose("pallas")):
        layer = layers.DepthwiseConv(3, strides=2, dtype=float64.POLICIES[dtype])
    _check(rng, layer, (2, 33, 34, 16), dtype, is_depthwise=True)


@each_type
@each_size
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
def test_a_pointwise_convolution(rng, use_bias, shape, dtype):
    layer = layers.Conv(24, 1, use_bias=use_bias, dtype=float64.POLICIES[dtype])
    _check(rng, layer, shape, dtype)


@each_type
@pytest.mark.parametrize("by_blocks", [False, True], ids=["plain", "blocks"])
def test_the_stem(rng, by_blocks, dtype):
    if by_blocks and keras.backend.backend() != "jax":
        pytest.skip("needs JAX")
    with choice.used(choice.choose("pallas" if by_blocks else "convolution")):
        layer = layers.Conv(24, 3, strides=2, use_bias=False, dtype=float64.POLICIES[dtype])
    _check(rng, layer, (2, 65, 66, 3), dtype)


@each_type
def test_xla_takes_them_too(rng, dtype):
    """`--training.xla on` compiles the whole step, the gradients included."""
    _check(rng, layers.Conv(8, 1, dtype=float64.POLICIES[dtype]), _LARGE, dtype, xla=True)
    layer = layers.DepthwiseConv(3, strides=2, dtype=float64.POLICIES[dtype])
    _check(rng, layer, _LARGE, dtype, is_depthwise=True, xla=True)


def test_ours_train_where_the_backend_s_are_slow_or_add_in_16_bits(monkeypatch):
    if not backend.is_tensorflow_on_cpu():
        pytest.skip("for TensorFlow on a CPU")
    import tensorflow as tf

    asked = []
    monkeypatch.setattr(convolutions, "dense", lambda x, kernel, stride: asked.append(True) or x)

    def takes_ours(x, size, training=True):
        asked.clear()
        convolutions.on_processors(x, keras.ops.zeros((size, size, x.shape[-1], 4), x.dtype), None, 1, training)
        return bool(asked)

    x = keras.ops.zeros(_SMALL)
    assert takes_ours(x, 1)
    assert not takes_ours(x, 1, training=False)
    assert not takes_ours(x, 3)
    assert takes_ours(keras.ops.cast(x, "bfloat16"), 3)
    unknown = []
    tf.function(lambda x: unknown.append(takes_ours(x, 1))).get_concrete_function(
        tf.TensorSpec((None, *_SMALL[1:]), tf.float32)
    )
    assert unknown == [False]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_graph_for_any_processor_does_not_ask_this_one(rng, monkeypatch, dtype):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's graphs")
    monkeypatch.setattr(mixed_precision, "_adds_in_float32", lambda name: pytest.fail("the processor was asked"))
    with choice.used(choice.portable()):
        layer = layers.DepthwiseConv(3, dtype=float64.POLICIES[dtype])
    _check(rng, layer, _SMALL, dtype, is_depthwise=True, training=False)
