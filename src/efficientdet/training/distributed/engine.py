"""The parts of a training step that differ between backends: gradients, loops, and moving arrays to the device.

Compilation is in `backend` because evaluation needs it too.
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
        The scalar, the rest, and one gradient per weight; zeros if the scalar does not depend on it.
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
    """Folds over parts one by one, carry <- function(carry, part); a loop inside a compiled function.

    A loop is compiled once whatever `count` is, and needs the memory of one part. The two loops of `keras.ops` behave
    differently on TensorFlow: `fori_loop` computes up to ten parts at a time, `scan` keeps every carry (Keras 3.15).

    Args:
        function: returns arrays with the types and shapes of `carry`.
        first: carry before the first part, nested arrays.
        parts: nested arrays with the parts along the first axis.
        count: number of parts.

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
    """Selects one of two states, nested arrays of the same shapes, by bool[]."""
    import keras
    from keras import ops

    if backend.gpus():
        # Fused with the update itself. A branch would copy a thousand arrays, each with its own kernel.
        return keras.tree.map_structure(lambda a, b: ops.where(is_new, a, b), new, old)
    # On a CPU there are few arrays (`packing`), and `where` would read and write all of them.
    return ops.cond(is_new, lambda: new, lambda: old)


def to_device(values: Any) -> Any:
    """Converts nested NumPy arrays to arrays of the running backend, keeping their types."""
    import keras

    return keras.tree.map_structure(
        lambda value: keras.ops.convert_to_tensor(value, dtype=keras.backend.standardize_dtype(value.dtype)), values
    )


def to_host(values: Any) -> Any:
    """Copies nested arrays of the running backend to NumPy arrays; waits until they are computed.

    They must be copies: a checkpoint is written from them while the next step overwrites its inputs.
    """
    import keras

    return keras.tree.map_structure(lambda value: np.asarray(keras.ops.convert_to_numpy(value)), values)
