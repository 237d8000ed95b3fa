"""SGD with momentum, its schedule, clipping, the weight average: pure functions of lists of arrays.

    m <- momentum * m + g            w <- w - learning_rate(step) * m
    average <- average + (1 - d) (w - average),  d = min(decay, (1 + n) / (10 + n)) after n updates

The momentum is TensorFlow 1's and PyTorch's; Keras's SGD multiplies by the learning rate before it accumulates, which
differs only while the rate changes.
"""

import math
from typing import Any

from keras import ops


def learning_rate(step: Any, *, peak: float, start: float, warmup_steps: float, total_steps: float) -> Any:
    """Computes the schedule: linear from `start` to `peak`, then half a cosine to 0 (SGDR, eq. 5, one period).

    The cosine begins at the end of the warm-up, as NVIDIA's; google/automl's begins at step 0.

    Args:
        step: int32[], steps done before this one.
        peak: highest rate.
        start: rate of step 0.
        warmup_steps: length of the linear part.
        total_steps: step at which the rate is 0.

    Returns:
        float32[].
    """
    step = ops.cast(step, "float32")
    warmup = start + (peak - start) * step / max(warmup_steps, 1.0)
    progress = ops.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1.0), 0.0, 1.0)
    cosine = 0.5 * peak * (1.0 + ops.cos(math.pi * progress))
    return ops.where(step < warmup_steps, warmup, cosine)


def global_norm(arrays: list[Any]) -> Any:
    """Computes the norm of all arrays together: float32[]."""
    return ops.sqrt(sum(ops.sum(ops.square(array)) for array in arrays))


def clip(gradients: list[Any], norm: float) -> list[Any]:
    """Clips each gradient to `norm`, then all together to `norm` (google/automl clips twice).

    Args:
        gradients: float32 arrays.
        norm: largest norm; 0 leaves everything as it is.

    Returns:
        float32 arrays.
    """
    if not norm:
        return gradients
    norms = [ops.sqrt(ops.sum(ops.square(gradient))) for gradient in gradients]
    factors = [norm / ops.maximum(own, norm) for own in norms]
    together = ops.sqrt(sum(ops.square(own * factor) for own, factor in zip(norms, factors, strict=True)))
    factor_of_all = norm / ops.maximum(together, norm)
    return [gradient * (factor * factor_of_all) for gradient, factor in zip(gradients, factors, strict=True)]


def momentum_update(
    weights: list[Any], gradients: list[Any], momenta: list[Any], *, rate: Any, momentum: float
) -> tuple[list[Any], list[Any]]:
    """Makes one step of SGD.

    Returns:
        New weights and new momenta.
    """
    momenta = [momentum * m + g for m, g in zip(momenta, gradients, strict=True)]
    return [w - rate * m for w, m in zip(weights, momenta, strict=True)], momenta


def average_decay(updates: Any, decay: float) -> Any:
    """Computes the effective decay after `updates` updates: float32[]; the first is 2 / 11."""
    count = ops.cast(updates, "float32")
    return ops.minimum(decay, (1.0 + count) / (10.0 + count))


def average_update(averages: list[Any], values: list[Any], decay: Any) -> list[Any]:
    """Moves averages towards values; integers (states of random generators) are copied."""
    return [
        average + (1.0 - decay) * (value - average) if _is_float(value) else value
        for average, value in zip(averages, values, strict=True)
    ]


def _is_float(array: Any) -> bool:
    return "float" in str(array.dtype)
