"""Convolutions computed differently from the backend where it is slow or not exact enough.

For training with TensorFlow on a CPU: `dense` and `depthwise`. Their forward pass is TensorFlow's. In the backward
pass, the gradients of a 1 x 1 convolution are computed as matrix products; and the gradient of a depthwise kernel is
requested with explicit padding, because with SAME padding TensorFlow uses oneDNN, which takes up to four times as long
as TensorFlow's own loop. Sums that would be computed in 16 bits are converted to float32 first (`mixed_precision`); if
oneDNN has instructions for bfloat16, it is several times faster and is used. For GPUs: `by_blocks` and `shift_and_add`.
"""

import functools
import math
from typing import Any

from keras import ops

from efficientdet.kernels import chains, mixed_precision
from efficientdet.structures import Array, Channels, Features


def plain(x: Features, kernel: Array, bias: Channels | None, stride: int, training: bool) -> Features:
    """Convolves with SAME padding by the backend's operations; the gradient of a bias is summed in float32.

    Args:
        x: [B, h, w, C], of any float type.
        kernel: [k, k, C, D], of the same type.
        bias: [D], of the same type; None: no bias.
        stride: vertical and horizontal stride.
        training: whether gradients will be needed.

    Returns:
        [B, h / stride, w / stride, D], sizes rounded up.
    """
    outputs = ops.conv(x, kernel, strides=stride, padding="same")
    if bias is None:
        return outputs
    if training and mixed_precision.is_sixteen_bit(x):
        return mixed_precision.add_bias(outputs, bias)
    return ops.add(outputs, ops.reshape(bias, (1, 1, 1, -1)))


def with_tensorflow(x: Features, kernel: Array, bias: Channels | None, stride: int, training: bool) -> Features:
    """Like `plain`, with TensorFlow's operation for a bias."""
    if bias is None or not (training and mixed_precision.is_sixteen_bit(x)):
        return plain(x, kernel, bias, stride, training)
    return mixed_precision.add_bias_with_tensorflow(plain(x, kernel, None, stride, training), bias)


def on_processors(x: Features, kernel: Array, bias: Channels | None, stride: int, training: bool) -> Features:
    """Like `plain`, but uses `dense` in training if that is faster or more exact."""
    is_slow = kernel.shape[0] == stride == 1 and chains.are_known(x)
    if not training or not (is_slow or mixed_precision.is_sixteen_bit(x)):
        return plain(x, kernel, bias, stride, training)
    outputs = dense(x, kernel, stride)
    return outputs if bias is None else mixed_precision.add_bias_with_tensorflow(outputs, bias)


def with_stem_by_blocks(x: Features, kernel: Array, bias: Channels | None, stride: int, training: bool) -> Features:
    """Like `plain`, but computes the stem's convolution, the only one with a stride, by blocks."""
    if stride == 2 and bias is None:
        return by_blocks(x, kernel)
    return plain(x, kernel, bias, stride, training)


def plain_depthwise(x: Features, kernel: Array, stride: int, training: bool = False) -> Features:
    """Convolves each channel separately with SAME padding, by the backend's operation.

    Args:
        x: [B, h, w, D], of any float type.
        kernel: [k, k, D, 1], of the same type.
        stride: vertical and horizontal stride.
        training: whether gradients will be needed.

    Returns:
        [B, h / stride, w / stride, D], sizes rounded up.
    """
    return ops.depthwise_conv(x, kernel, strides=stride, padding="same")


def depthwise_on_processors(x: Features, kernel: Array, stride: int, training: bool = False) -> Features:
    """Like `plain_depthwise`, but uses `depthwise` in training; sums are computed in float32."""
    if training and (chains.are_known(x) or mixed_precision.is_sixteen_bit(x)):
        return depthwise(x, kernel, stride)
    if not mixed_precision.convolves_in_float32(x):
        return depthwise_in_float32(x, kernel, stride)
    return plain_depthwise(x, kernel, stride)


def depthwise_in_float32(x: Features, kernel: Array, stride: int, training: bool = False) -> Features:
    """Like `plain_depthwise`, but computed in float32 and rounded at the end."""
    wide = (mixed_precision.widened(array) for array in (x, kernel))
    return ops.cast(ops.depthwise_conv(*wide, strides=stride, padding="same"), x.dtype)


def depthwise_in_pallas(x: Features, kernel: Array, stride: int, training: bool = False) -> Features:
    """Like `plain_depthwise`, with our own kernels for JAX on a GPU."""
    from efficientdet.kernels import depthwise_pallas, pallas

    if math.prod(x.shape) > pallas.MOST_NUMBERS:
        return plain_depthwise(x, kernel, stride)
    return depthwise_pallas.convolve(x, kernel, (stride, stride))


def dense(x: Features, kernel: Array, stride: int) -> Features:
    """Computes a convolution with SAME padding.

    Args:
        x: TensorFlow tensor, [B, h, w, C].
        kernel: [k, k, C, D].
        stride: vertical and horizontal stride.

    Returns:
        [B, h / stride, w / stride, D], sizes rounded up.
    """
    import tensorflow as tf

    return _dense(stride)(x, tf.convert_to_tensor(kernel))  # a variable would need its own gradient


def depthwise(x: Features, kernel: Array, stride: int) -> Features:
    """Computes a depthwise convolution with SAME padding.

    Args:
        x: TensorFlow tensor, [B, h, w, D].
        kernel: [k, k, D, 1].
        stride: vertical and horizontal stride.

    Returns:
        [B, h / stride, w / stride, D], sizes rounded up.
    """
    import tensorflow as tf

    return _depthwise(stride)(x, tf.convert_to_tensor(kernel))


@functools.cache
def _dense(stride: int) -> Any:
    import tensorflow as tf

    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def convolve(x: Features, kernel: Array) -> Any:
        def differentiate(upstream: Array) -> tuple[Any, Any]:
            is_exact = mixed_precision.convolves_in_float32(x)
            by = [_widened(array, is_exact) for array in (kernel, upstream)]
            # oneDNN takes 200 times as long for float16 (TensorFlow 2.21 with AVX-512 FP16).
            of = [_widened(array, is_exact and x.dtype != tf.float16) for array in (x, upstream)]
            if stride == 1 and kernel.shape[:2] == (1, 1):
                kernel_columns, upstream_columns, x_columns = (_columns(array) for array in (*by, of[0]))
                by_x = tf.reshape(tf.matmul(upstream_columns, kernel_columns, transpose_b=True), tf.shape(x))
                if of[1] is not by[1]:
                    upstream_columns = _columns(of[1])
                by_kernel = tf.reshape(tf.matmul(x_columns, upstream_columns, transpose_a=True), kernel.shape)
            else:
                by_x = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(x), filter=by[0], out_backprop=by[1], strides=strides, padding="SAME"
                )
                by_kernel = tf.raw_ops.Conv2DBackpropFilter(
                    input=of[0], filter_sizes=kernel.shape, out_backprop=of[1], strides=strides, padding="SAME"
                )
            return tf.cast(by_x, x.dtype), tf.cast(by_kernel, kernel.dtype)

        return tf.nn.conv2d(x, kernel, stride, "SAME"), differentiate

    return convolve


@functools.cache
def _depthwise(stride: int) -> Any:
    import tensorflow as tf

    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def convolve(x: Features, kernel: Array) -> Any:
        is_exact = mixed_precision.convolves_in_float32(x)
        outputs = tf.nn.depthwise_conv2d(_widened(x, is_exact), _widened(kernel, is_exact), strides, "SAME")

        def differentiate(upstream: Array) -> tuple[Any, Any]:
            # Widened for 16 bits too: oneDNN is slower with them in both gradients, TensorFlow's own loop sums in them.
            options = {"out_backprop": _widened(upstream), "strides": strides}
            by_x = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x), filter=_widened(kernel), padding="SAME", **options
            )
            by_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=_widened(x),
                filter_sizes=kernel.shape,
                **_padding(x.shape[1:3], outputs.shape[1:3], kernel.shape[0], stride),
                **options,
            )
            return tf.cast(by_x, x.dtype), tf.cast(by_kernel, kernel.dtype)

        return tf.cast(outputs, x.dtype), differentiate

    return convolve


def _columns(array: Array) -> Array:
    """Reshapes to a matrix with one row per pixel."""
    import tensorflow as tf

    return tf.reshape(array, [-1, array.shape[-1]])


def _widened(array: Array, is_exact: bool = False) -> Array:
    """Converts 16-bit floats to float32 unless they are exact enough."""
    return array if is_exact else mixed_precision.widened(array)


def _padding(sizes: Any, new_sizes: Any, extent: int, stride: int) -> dict[str, Any]:
    """Returns the options of an operation for SAME padding: explicit if sizes are known."""
    if None in (*sizes, *new_sizes):
        return {"padding": "SAME"}
    return {"padding": "EXPLICIT", "explicit_paddings": _same_padding(sizes, new_sizes, extent, stride)}


def _same_padding(sizes: Any, new_sizes: Any, extent: int, stride: int) -> list[int]:
    """Computes SAME padding for `explicit_paddings`, with the odd pixel at the bottom and right."""
    missing = [max((new - 1) * stride + extent - old, 0) for old, new in zip(sizes, new_sizes, strict=True)]
    return [0, 0, *(side for total in missing for side in (total // 2, total - total // 2)), 0, 0]


def by_blocks(x: Features, kernel: Array) -> Features:
    """Computes a convolution with SAME padding and stride 2 on blocks of 2 x 2 pixels: for the stem, with JAX on a GPU.

    Four pixels of three channels become one pixel of sixteen channels, four of them zeros, and a 3 x 3 kernel becomes 2
    x 2: tensor cores need multiples of eight channels, and cuDNN spends more time on converting images than on
    convolving.

    Args:
        x: [B, h, w, C], of known size.
        kernel: [k, k, C, D], k at most 4.

    Returns:
        [B, h / 2, w / 2, D], sizes rounded up.
    """
    extent, _, channels, filters = kernel.shape
    outputs = [-(-side // 2) for side in x.shape[1:3]]
    before = [max((output - 1) * 2 + extent - side, 0) // 2 for output, side in zip(outputs, x.shape[1:3], strict=True)]
    after = [2 * output + 2 - side - first for output, side, first in zip(outputs, x.shape[1:3], before, strict=True)]
    rest = -4 * channels % 8
    x = ops.pad(x, [(0, 0), *zip(before, after, strict=True), (0, 0)])
    x = ops.reshape(x, (x.shape[0], outputs[0] + 1, 2, outputs[1] + 1, 2, channels))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (x.shape[0], outputs[0] + 1, outputs[1] + 1, 4 * channels))
    x = ops.pad(x, [(0, 0), (0, 0), (0, 0), (0, rest)])
    kernel = ops.pad(ops.cast(kernel, x.dtype), [(0, 4 - extent), (0, 4 - extent), (0, 0), (0, 0)])
    kernel = ops.transpose(ops.reshape(kernel, (2, 2, 2, 2, channels, filters)), (0, 2, 1, 3, 4, 5))
    kernel = ops.pad(ops.reshape(kernel, (2, 2, 4 * channels, filters)), [(0, 0), (0, 0), (0, rest), (0, 0)])
    return ops.conv(x, kernel, padding="valid")


def shift_and_add(x: Features, kernel: Array, stride: int, training: bool = False) -> Features:
    """Like `plain_depthwise`, but as a sum of products; x must have a known size."""
    height, width = (-(-side // stride) for side in x.shape[1:3])
    spans = ((height - 1) * stride + 1, (width - 1) * stride + 1)  # from the first pixel used to the last
    missing = [
        max(span + extent - 1 - side, 0)
        for span, extent, side in zip(spans, kernel.shape[:2], x.shape[1:3], strict=True)
    ]
    padded = ops.pad(x, [(0, 0), *((total // 2, total - total // 2) for total in missing), (0, 0)])
    padded, kernel = mixed_precision.widened(padded), mixed_precision.widened(kernel)  # free: part of XLA's loop
    terms = [
        padded[:, i : i + spans[0] : stride, j : j + spans[1] : stride] * kernel[i, j, :, 0]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return ops.cast(sum(terms[1:], terms[0]), x.dtype)
