"""What differs between backends in a training step: the gradient, and how arrays reach the device.

Compiling is in `backend`, since evaluation needs it too.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from efficientdet import backend


def value_and_gradients(function: Callable[[list[Any]], tuple[Any, Any]], weights: list[Any]) -> tuple[Any, Any, list]:
    """Differentiates `function` at `weights`.

    Args:
        function: weights -> (scalar to differentiate, anything else).
        weights: arrays.

    Returns:
        The scalar, the rest, and one gradient a weight, zeros where the scalar does not depend on it.
    """
    if backend.running() == "jax":
        import jax

        (value, rest), gradients = jax.value_and_grad(function, has_aux=True)(weights)
        return value, rest, gradients
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        value, rest = function(weights)
    return value, rest, tape.gradient(value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def fold(function: Callable[[Any, Any], Any], first: Any, parts: Any, count: int) -> Any:
    """Goes through parts one after the other: carry <- function(carry, part); in a compiled function, a loop.

    A loop is compiled once whatever `count` is, and holds the memory of one part. `keras.ops` has two, which TensorFlow
    would run otherwise: `fori_loop` computes up to ten parts at a time, `scan` keeps every carry (Keras 3.15).

    Args:
        function: returns arrays of the types and shapes of `carry`.
        first: the carry before the first part, nested arrays.
        parts: nested arrays whose first axis has the parts.
        count: of parts.

    Returns:
        The carry after the last part.
    """
    if backend.running() == "jax":
        import jax

        return jax.lax.scan(lambda carry, part: (function(carry, part), None), first, parts, length=count)[0]
    import tensorflow as tf

    def body(number: Any, carry: Any) -> tuple[Any, Any]:
        return number + 1, function(carry, tf.nest.map_structure(lambda array: array[number], parts))

    return tf.while_loop(lambda number, _: number < count, body, (0, first), parallel_iterations=1)[1]


def choose(is_new: Any, new: Any, old: Any) -> Any:
    """Takes one of two states, nested arrays of the same shapes, by bool[]."""
    import keras
    from keras import ops

    if backend.gpus():
        # Joined with the update itself. A branch copies a thousand arrays, each with a kernel of its own.
        return keras.tree.map_structure(lambda a, b: ops.where(is_new, a, b), new, old)
    # There they are few, and choosing would read and write all of them.
    return ops.cond(is_new, lambda: new, lambda: old)


def to_device(values: Any) -> Any:
    """Turns nested NumPy arrays into arrays of the running backend, keeping their types."""
    import keras

    return keras.tree.map_structure(
        lambda value: keras.ops.convert_to_tensor(value, dtype=keras.backend.standardize_dtype(value.dtype)), values
    )


def to_host(values: Any) -> Any:
    """Turns nested arrays of the running backend into NumPy arrays of their own; waits until they are computed.

    Of their own: a checkpoint is written from them while the next step overwrites what it was given.
    """
    import keras

    return keras.tree.map_structure(lambda value: np.asarray(keras.ops.convert_to_numpy(value)), values)
