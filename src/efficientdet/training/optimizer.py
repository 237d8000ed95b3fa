"""SGD with momentum, Adam, their schedule, clipping, and the weight average: pure functions of lists of arrays.

    sgd     m <- momentum * m + g                   w <- w - learning_rate(step) * m
    adam    m <- momentum * m + (1 - momentum) g    v <- square_decay * v + (1 - square_decay) g^2
            w <- w - learning_rate(step) * m' / (sqrt(v') + 1e-6),  m' = m / (1 - momentum^n), v' likewise, n updates
    average <- average + (1 - d) (w - average),  d = min(decay, (1 + n) / (10 + n)) after n updates

Momentum is defined as in TensorFlow 1 and PyTorch; Keras's SGD multiplies by the learning rate before accumulating,
which differs only while the rate changes.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from efficientdet.structures import Array, Channels, Scalar

ADAM_EPSILON = 1e-6
"""Added to the root of the squares: a gradient far below this moves a weight by less than the learning rate."""


def learning_rate(step: Any, *, peak: float, start: float, warmup_steps: float, total_steps: float) -> Scalar:
    """Computes the learning rate: linear from `start` to `peak`, then half a cosine to 0 (SGDR, eq. 5, one period).

    The cosine begins at the end of the warm-up, as in NVIDIA's code; google/automl's begins at step 0.

    Args:
        step: int32[], steps done before this one.
        peak: highest rate.
        start: rate of step 0.
        warmup_steps: length of the linear part.
        total_steps: step at which the rate reaches 0.

    Returns:
        float32[].
    """
    step = ops.cast(step, "float32")
    warmup = start + (peak - start) * step / max(warmup_steps, 1.0)
    progress = ops.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1.0), 0.0, 1.0)
    cosine = 0.5 * peak * (1.0 + ops.cos(math.pi * progress))
    return ops.where(step < warmup_steps, warmup, cosine)


def global_norm(arrays: list[Array]) -> Scalar:
    """Computes the joint norm of all arrays: float32[]."""
    return ops.sqrt(sum(_sum_of_squares(array) for array in arrays))


def _sum_of_squares(array: Array) -> Scalar:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return 2.0 * tf.nn.l2_loss(array)  # one operation to trace instead of three; a network has hundreds of arrays
    return ops.sum(ops.square(array))


def clip(gradients: list[Any], norm: float) -> list[Array]:
    """Clips each gradient to `norm`, then all together to `norm` (google/automl clips twice).

    Args:
        gradients: float32 arrays.
        norm: maximum norm; 0: no clipping.

    Returns:
        float32 arrays.
    """
    if not norm:
        return gradients
    norms = ops.sqrt(ops.stack([_sum_of_squares(gradient) for gradient in gradients]))
    factors = norm / ops.maximum(norms, norm)
    together = ops.sqrt(ops.sum(ops.square(norms * factors)))
    factors = factors * (norm / ops.maximum(together, norm))
    return [gradient * factor for gradient, factor in zip(gradients, ops.unstack(factors), strict=True)]


def momentum_update(
    weights: list[Any], gradients: list[Any], momenta: list[Any], *, rate: Scalar, momentum: float
) -> tuple[list[Array], list[Array]]:
    """Applies one SGD update.

    Returns:
        New weights and new momenta.
    """

    def move(weight: Array, gradient: Array, moment: Array) -> tuple[Any, Any]:
        moment = momentum * moment + gradient
        return weight - rate * moment, moment

    weights, momenta = _apply(move, weights, gradients, momenta)
    return weights, momenta


def adam_update(
    weights: list[Any],
    gradients: list[Any],
    means: list[Any],
    squares: list[Any],
    *,
    updates: Scalar,
    rate: Scalar,
    momentum: float,
    square_decay: float,
) -> tuple[list[Array], list[Array], list[Array]]:
    """Applies one Adam update (Kingma and Ba 2015, algorithm 1).

    Args:
        weights: float32 arrays.
        gradients: float32 arrays.
        means: moving averages of the gradients, initially zeros.
        squares: moving averages of their squares, initially zeros.
        updates: int32[], number of updates including this one.
        rate: float32[].
        momentum: decay of the means.
        square_decay: decay of the squares.

    Returns:
        New weights, means and squares.
    """
    count = ops.cast(updates, "float32")
    of_mean, of_square = 1.0 - ops.power(momentum, count), 1.0 - ops.power(square_decay, count)

    def move(weight: Array, gradient: Array, mean: Channels, square: Array) -> tuple[Any, Any, Any]:
        mean = momentum * mean + (1.0 - momentum) * gradient
        square = square_decay * square + (1.0 - square_decay) * ops.square(gradient)
        step = (mean / of_mean) / (ops.sqrt(square / of_square) + ADAM_EPSILON)
        return weight - rate * step, mean, square

    weights, means, squares = _apply(move, weights, gradients, means, squares)
    return weights, means, squares


def average_decay(updates: Scalar, decay: float) -> Scalar:
    """Computes the effective decay after `updates` updates: float32[]; the first is 2 / 11."""
    count = ops.cast(updates, "float32")
    return ops.minimum(decay, (1.0 + count) / (10.0 + count))


def average_update(averages: list[Any], values: list[Array], decay: Any) -> list[Array]:
    """Moves averages toward values; integers (random generator states) are copied."""
    return [
        average + (1.0 - decay) * (value - average) if "float" in str(value.dtype) else value
        for average, value in zip(averages, values, strict=True)
    ]


def _apply(function: Callable[..., tuple[Any, ...]], *lists: list[Any]) -> tuple[list[Any], ...]:
    """Applies (array of the first list, of the second, ...) -> arrays; returns one list per returned array."""
    rows = [function(*row) for row in zip(*lists, strict=True)]
    return tuple(map(list, zip(*rows, strict=True))) if rows else ([],) * len(lists)
