"""Chains of element-wise operations, compiled into one kernel each: for training with TensorFlow on a CPU.

TensorFlow runs one operation at a time, and each reads and writes whole feature maps: batch normalisation with swish
takes thirty such passes, forward and back. XLA makes a loop or two of them, but its convolutions are several times
slower than TensorFlow's there. So the chains are compiled by XLA and the convolutions are not. Backwards, a chain is
computed again from its inputs instead of being kept: that costs arithmetic, of which there is plenty, and saves memory.

Elsewhere the same functions run as they are: JAX compiles the whole step, and so does TensorFlow on a GPU.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from efficientdet import backend
from efficientdet.structures import Array

LEAST_SIZE = 2**20
"""Numbers in the largest array from which on a kernel is worth the second that it takes to compile."""


def pays(*arrays: Array) -> bool:
    """Says whether arrays are large, of a known size, and TensorFlow's on a CPU."""
    return are_known(*arrays) and max(math.prod(array.shape) for array in arrays) >= LEAST_SIZE


def are_known(*arrays: Array) -> bool:
    """Says whether arrays are of a known size, and TensorFlow's on a CPU."""
    if not backend.is_tensorflow_on_cpu():
        return False
    import tensorflow as tf

    return all(tf.TensorShape(array.shape).is_fully_defined() for array in arrays)


def compute(function: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
    """Computes `function(*arrays, **options)`, as one kernel where that pays.

    Args:
        function: of the module's top level, of Keras operations on its arguments alone; returns an array or a tuple.
        *arrays: of the running backend; integers have no gradient.
        **options: hashable, the same for all images.

    Returns:
        What the function returns.
    """
    if not pays(*arrays):
        return function(*arrays, **options)
    import tensorflow as tf

    tensors = map(tf.convert_to_tensor, arrays)  # a variable would want a gradient of its own
    return _kernel(function, tuple(sorted(options.items())))(*tensors)


@functools.cache
def _kernel(function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """Compiles a function and its gradient; once for each set of shapes, whichever layers ask for them."""
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
