"""Sums of 16-bit numbers: always in float32 and rounded once (Micikevicius et al. 2018, section 3.3).

bfloat16 has 8 binary digits, float16 has 11. Rounding a result to them does little harm, but rounding a sum after each
term does: terms smaller than the last digit of the running sum are lost. XLA on a CPU, and TensorFlow's own loops, add
in the type of their input. oneDNN, which TensorFlow uses if the CPU has instructions for the type (AVX-512 BF16, AMX),
adds in float32. Sums here therefore convert to float32 first unless that is certain.
"""

import functools
from typing import Any

import numpy as np
from keras import ops

from efficientdet.structures import Array, Channels

_DIGITS = {"bfloat16": 8, "float16": 11}


def is_sixteen_bit(x: Array) -> bool:
    """Returns whether a tensor has 16-bit floats."""
    return _name(x) in _DIGITS


def widened(x: Array) -> Array:
    """Converts 16-bit floats to float32; returns other types unchanged."""
    return ops.cast(x, "float32") if is_sixteen_bit(x) else x


def convolves_in_float32(x: Array) -> bool:
    """Returns whether TensorFlow's convolutions on this CPU sum values of the type of `x` in float32.

    True for float32. For 16 bits it depends on the CPU, so a convolution is tried, once.
    """
    name = _name(x)
    return name not in _DIGITS or _adds_in_float32(name)


def add_bias(x: Array, bias: Channels) -> Array:
    """Adds a number to each channel; its gradient, a sum over all pixels, is computed in float32.

    Args:
        x: [B, h, w, D], of any float type.
        bias: [D].

    Returns:
        The same shape and type as x.
    """
    wide = widened(x)
    return ops.cast(wide + ops.cast(bias, wide.dtype), x.dtype)  # XLA fuses it into a loop, where it costs nothing


def add_bias_with_tensorflow(x: Array, bias: Channels) -> Array:
    """Like `add_bias`, but without a float32 copy of the feature map."""
    import tensorflow as tf

    bias = ops.cast(bias, x.dtype)
    return _bias_adder()(x, bias) if is_sixteen_bit(x) else tf.nn.bias_add(x, bias)


@functools.cache
def _bias_adder() -> Any:
    import tensorflow as tf

    @tf.custom_gradient
    def add(x: Array, bias: Channels) -> Any:
        def differentiate(upstream: Array) -> tuple[Any, Any]:
            return upstream, tf.cast(tf.raw_ops.BiasAddGrad(out_backprop=widened(upstream)), bias.dtype)

        return tf.nn.bias_add(x, bias), differentiate

    return add


@functools.cache
def _adds_in_float32(name: str) -> bool:
    """Tries a convolution: its outputs equal the exact ones rounded once only if sums were not rounded on the way."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    with tf.init_scope():
        x, kernel = (
            tf.cast(tf.constant(rng.normal(size=size), tf.float32), name) for size in ((1, 16, 16, 32), (3, 3, 32, 1))
        )
        found, exact = (
            tf.cast(tf.nn.depthwise_conv2d(tf.cast(x, dtype), tf.cast(kernel, dtype), [1, 1, 1, 1], "SAME"), tf.float64)
            for dtype in (name, tf.float32)
        )
    error = np.abs(found.numpy() - exact.numpy())
    return bool((error <= 1.01 * 2.0 ** -_DIGITS[name] * np.abs(exact) + 1e-5).all())


def _name(x: Array) -> str:
    return getattr(x.dtype, "name", str(x.dtype))
