"""Convolutions computed otherwise than the backend does, where it is slow or not exact enough.

For training with TensorFlow on a CPU, `dense` and `depthwise`: forward they are TensorFlow's. Backward, the gradients
of a 1 x 1 convolution are computed as the products of two matrices that they are; and that of a depthwise kernel is
asked for with its padding spelt out, since oneDNN, which takes it with SAME padding, needs up to four times as long for
it as TensorFlow's own loop. What would be added up in 16 bits is converted to float32 first (`mixed_precision`); where
oneDNN has instructions for bfloat16 it is several times faster, and stays. For GPUs, `by_blocks` and `shift_and_add`.
"""

import functools
from typing import Any

from keras import ops

from efficientdet import backend
from efficientdet.kernels import chains, mixed_precision


def pay(x: Any, *, is_slow: bool) -> bool:
    """Says whether training is better off with `dense` and `depthwise` than with the backend's own.

    Args:
        x: what is convolved.
        is_slow: the backend's own are slow for such a convolution.
    """
    return (is_slow and chains.are_known(x)) or (mixed_precision.is_sixteen_bit(x) and backend.is_tensorflow_on_cpu())


def dense(x: Any, kernel: Any, stride: int) -> Any:
    """Computes a convolution with SAME padding.

    Args:
        x: tensor of TensorFlow's, [B, h, w, C].
        kernel: [k, k, C, D].
        stride: downwards and to the right.

    Returns:
        [B, h / stride, w / stride, D], sizes rounded up.
    """
    import tensorflow as tf

    return _dense(stride)(x, tf.convert_to_tensor(kernel))  # a variable would want a gradient of its own


def depthwise(x: Any, kernel: Any, stride: int) -> Any:
    """Computes a depthwise convolution with SAME padding.

    Args:
        x: tensor of TensorFlow's, [B, h, w, D].
        kernel: [k, k, D, 1].
        stride: downwards and to the right.

    Returns:
        [B, h / stride, w / stride, D], sizes rounded up.
    """
    import tensorflow as tf

    return _depthwise(stride)(x, tf.convert_to_tensor(kernel))


def depthwise_in_float32(x: Any, kernel: Any, strides: tuple[int, int]) -> Any:
    """Computes the same in float32, rounded at the end, with the backend's own gradients."""
    wide = (mixed_precision.widened(array) for array in (x, kernel))
    return ops.cast(ops.depthwise_conv(*wide, strides=strides, padding="same"), x.dtype)


@functools.cache
def _dense(stride: int) -> Any:
    import tensorflow as tf

    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def convolve(x: Any, kernel: Any) -> Any:
        def differentiate(upstream: Any) -> tuple[Any, Any]:
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
    def convolve(x: Any, kernel: Any) -> Any:
        is_exact = mixed_precision.convolves_in_float32(x)
        outputs = tf.nn.depthwise_conv2d(_widened(x, is_exact), _widened(kernel, is_exact), strides, "SAME")

        def differentiate(upstream: Any) -> tuple[Any, Any]:
            # Of 16 bits too: oneDNN is slower with them in both gradients, TensorFlow's own loop adds in them.
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


def _columns(array: Any) -> Any:
    """Makes a matrix with a row for each pixel."""
    import tensorflow as tf

    return tf.reshape(array, [-1, array.shape[-1]])


def _widened(array: Any, is_exact: bool = False) -> Any:
    """Converts 16 bits to float32, unless they are exact enough as they are."""
    return array if is_exact else mixed_precision.widened(array)


def _padding(sizes: Any, new_sizes: Any, extent: int, stride: int) -> dict[str, Any]:
    """Spells out SAME padding where sizes are known, as options of an operation."""
    if None in (*sizes, *new_sizes):
        return {"padding": "SAME"}
    return {"padding": "EXPLICIT", "explicit_paddings": _same_padding(sizes, new_sizes, extent, stride)}


def _same_padding(sizes: Any, new_sizes: Any, extent: int, stride: int) -> list[int]:
    """Spells out SAME padding for `explicit_paddings`: the odd pixel at the bottom and right."""
    missing = [max((new - 1) * stride + extent - old, 0) for old, new in zip(sizes, new_sizes, strict=True)]
    return [0, 0, *(side for total in missing for side in (total // 2, total - total // 2)), 0, 0]


def by_blocks(x: Any, kernel: Any) -> Any:
    """Computes a convolution with SAME padding and stride 2 on blocks of 2 x 2 pixels: for the stem, with JAX on a GPU.

    Four pixels of three channels become one of sixteen, four of them zeros, and a kernel of 3 x 3 one of 2 x 2: tensor
    cores want channels in eights, and cuDNN takes longer to bring images into that form than to convolve.

    Args:
        x: [B, h, w, C], of a known size.
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


def shift_and_add(x: Any, kernel: Any, strides: tuple[int, int]) -> Any:
    """Computes a depthwise convolution with SAME padding as a sum of products.

    Args:
        x: [B, h, w, D], of a known size.
        kernel: [k, k, D, 1].
        strides: downwards and to the right.

    Returns:
        [B, h / stride, w / stride, D], sizes rounded up.
    """
    height, width = (-(-side // stride) for side, stride in zip(x.shape[1:3], strides, strict=True))
    spans = ((height - 1) * strides[0] + 1, (width - 1) * strides[1] + 1)  # from the first pixel used to the last
    missing = [
        max(span + extent - 1 - side, 0)
        for span, extent, side in zip(spans, kernel.shape[:2], x.shape[1:3], strict=True)
    ]
    padded = ops.pad(x, [(0, 0), *((total // 2, total - total // 2) for total in missing), (0, 0)])
    padded, kernel = (
        mixed_precision.widened(padded),
        mixed_precision.widened(kernel),
    )  # no cost: it becomes part of the loop
    terms = [
        padded[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]] * kernel[i, j, :, 0]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return ops.cast(sum(terms[1:], terms[0]), x.dtype)
