"""Chains of element-wise operations, compiled into one kernel each, for training with TensorFlow on a CPU.

TensorFlow runs one operation at a time, and each reads and writes whole feature maps: batch normalization with swish
takes thirty such passes, forward and backward. XLA fuses them into a loop or two, but its convolutions are several
times slower than TensorFlow's on a CPU. So XLA compiles the chains but not the convolutions. In the backward pass, a
chain is recomputed from its inputs instead of being stored: that costs arithmetic, which is cheap, and saves memory.

Elsewhere the same functions run unchanged: JAX compiles the whole step, and so does TensorFlow on a GPU.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from efficientdet import backend
from efficientdet.structures import Array

LEAST_SIZE = 2**20
"""Minimum size of the largest array for which a kernel is worth the second it takes to compile."""


def pays(*arrays: Array) -> bool:
    """Returns whether arrays are large, of known size, and TensorFlow's on a CPU."""
    return are_known(*arrays) and max(math.prod(array.shape) for array in arrays) >= LEAST_SIZE


def are_known(*arrays: Array) -> bool:
    """Returns whether arrays are of known size, and TensorFlow's on a CPU."""
    if not backend.is_tensorflow_on_cpu():
        return False
    import tensorflow as tf

    return all(tf.TensorShape(array.shape).is_fully_defined() for array in arrays)


def compute(function: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
    """Computes `function(*arrays, **options)`, as one kernel if that pays off.

    Args:
        function: a top-level function that applies Keras operations to its arguments only; returns an array or a tuple.
        *arrays: arrays of the running backend; integers have no gradient.
        **options: hashable, the same for all images.

    Returns:
        The result of the function.
    """
    if not pays(*arrays):
        return function(*arrays, **options)
    import tensorflow as tf

    tensors = map(tf.convert_to_tensor, arrays)  # a variable would need its own gradient
    return _kernel(function, tuple(sorted(options.items())))(*tensors)


@functools.cache
def _kernel(function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """Compiles a function and its gradient, once for each set of shapes, shared by all layers."""
    import tensorflow as tf

    plain = functools.partial(function, **dict(options))
    forward = tf.function(plain, jit_compile=True, autograph=False)

    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def backward(arrays: list[Array], upstream: list[Array]) -> list[Any]:
        watched = [array for array in arrays if array.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            outputs = tf.nest.flatten(plain(*arrays))
        return tape.gradient(outputs, watched, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    @tf.custom_gradient
    def kernel(*arrays: Array) -> Any:
        def differentiate(*upstream: Array) -> list[Any]:
            gradients = iter(backward(list(arrays), list(upstream)))
            return [next(gradients) if array.dtype.is_floating else None for array in arrays]

        return forward(*arrays), differentiate

    return kernel
