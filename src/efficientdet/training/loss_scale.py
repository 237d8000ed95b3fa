"""The dynamic loss scale of float16, and the counters of good and bad steps (Micikevicius et al. 2018, section 3.2).

The loss is multiplied by the scale before it is differentiated, so that small gradients do not vanish in float16. A
step that overflows changes no weights and halves the scale; 2,000 good steps in a row double it.
"""

from collections.abc import Mapping
from typing import Any

from keras import ops

from efficientdet.structures import Array, Scalar

AT_FIRST = 2.0**15
LEAST = 1.0
GOOD_STEPS_TO_GROW = 2000


def is_overflow(state: Mapping[str, Array], ok: Scalar, loss: Scalar, is_scaled: bool) -> Scalar:
    """Returns whether a step failed only because the loss scale was too large, an expected part of the search: bool[].

    The loss itself is not scaled: if it is not finite, or if the scale cannot shrink further, the batch is to blame.

    Args:
        state: the state before the step; see `step`.
        ok: bool[], whether everything in the step was finite.
        loss: float32[], unscaled.
        is_scaled: whether the run uses a loss scale.
    """
    could_shrink = ops.logical_and(is_scaled, state["loss_scale"] > LEAST)
    return ops.logical_and(ops.logical_not(ok), ops.logical_and(could_shrink, ops.isfinite(loss)))


def count(state: Mapping[str, Array], ok: Scalar, has_overflowed: Scalar, is_scaled: bool) -> dict[str, Any]:
    """Returns the counters after a step and the loss scale of the next one.

    Args:
        state: the state before the step; see `step`.
        ok: bool[], whether everything in the step was finite.
        has_overflowed: bool[], from `is_overflow`.
        is_scaled: whether the run uses a loss scale.
    """
    good_steps = ops.where(ok, state["good_steps"] + 1, 0)
    scale = state["loss_scale"]
    if is_scaled:
        grows = good_steps >= GOOD_STEPS_TO_GROW
        smaller, larger = ops.maximum(scale / 2.0, LEAST), ops.where(grows, scale * 2.0, scale)
        scale = ops.where(has_overflowed, smaller, larger)
        good_steps = ops.where(grows, 0, good_steps)
    bad_steps = state["bad_steps"] + ops.cast(ops.logical_not(has_overflowed), "int32")
    return {
        "step": state["step"] + 1,
        "bad_steps": ops.where(ok, 0, bad_steps),
        "loss_scale": scale,
        "good_steps": good_steps,
    }
