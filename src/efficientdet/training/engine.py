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
