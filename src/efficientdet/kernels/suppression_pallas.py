"""Soft-NMS as one Pallas kernel, for JAX on a GPU: one program picks all detections of an image, one by one.

The loop of `postprocess.soft_nms` launches a dozen kernels for each of a hundred picks and checks after each whether to
continue; for a single image this takes longer than the network. The kernel does the same computation in the same order.
Importing this module imports JAX.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from efficientdet.kernels import pallas

MOST_CANDIDATES = 8192
"""Most candidates whose values fit in the registers of one program."""
_DROPPED = -1.0
_WARPS = 16


def pick(
    boxes: jax.Array,
    labels: jax.Array,
    scores: jax.Array,
    *,
    max_detections: int,
    sigma: float,
    score_threshold: float,
) -> tuple[jax.Array, jax.Array]:
    """Repeatedly picks the best box and lowers the scores of overlapping boxes of the same class.

    Args:
        boxes: float32[B, M, 4], yxyx px; M is at most `MOST_CANDIDATES`.
        labels: int32[B, M].
        scores: float32[B, M] in [0, 1].
        max_detections: K.
        sigma: width of the Gaussian.
        score_threshold: boxes with a decayed score below this are dropped.

    Returns:
        picks: int32[B, K], positions among the candidates; scores: float32[B, K], 0 if no box was left to pick.
    """
    batch, count = scores.shape
    size = pl.next_power_of_2(count)
    padding = ((0, 0), (0, size - count))
    sides = [jnp.pad(boxes[..., side], padding) for side in range(4)]
    pixels = jnp.pad((boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1), padding)
    labels = jnp.pad(labels, padding, constant_values=-1)
    scores = jnp.pad(scores, padding, constant_values=_DROPPED)

    def soft_nms(*refs: Any) -> None:
        *side_refs, pixels_ref, labels_ref, scores_ref, picks_ref, picked_ref = refs
        image, place = pl.program_id(0), pallas.places(0, size)
        own = [triton.load(ref.at[image, place]) for ref in (*side_refs, pixels_ref, labels_ref)]

        def step(turn: Any, left: Any) -> Any:
            score = jnp.max(left)
            # Of equal scores the first, like `top_k`.
            best = jnp.min(jnp.where(left == score, place, size - 1))
            top, start, bottom, end, area, label = (
                triton.load(ref.at[image, best]) for ref in (*side_refs, pixels_ref, labels_ref)
            )
            height = jnp.minimum(bottom, own[2]) - jnp.maximum(top, own[0]) + 1.0
            width = jnp.minimum(end, own[3]) - jnp.maximum(start, own[1]) + 1.0
            shared = jnp.maximum(height, 0.0) * jnp.maximum(width, 0.0)
            iou = shared / (area + own[4] - shared)
            decayed = left * jnp.exp(-(iou * iou) / sigma)
            decayed = jnp.where(decayed < score_threshold, _DROPPED, decayed)
            left = jnp.where(own[5] == label, decayed, left)
            left = jnp.where(place == best, _DROPPED, left)
            is_found = score > 0
            triton.store(picks_ref.at[image, turn], jnp.where(is_found, best, 0))
            triton.store(picked_ref.at[image, turn], jnp.where(is_found, score, 0.0))
            return left

        jax.lax.fori_loop(0, max_detections, step, triton.load(scores_ref.at[image, place]))

    shape = (
        jax.ShapeDtypeStruct((batch, max_detections), jnp.int32),
        jax.ShapeDtypeStruct((batch, max_detections), jnp.float32),
    )
    found: tuple[jax.Array, jax.Array] = pallas.call(soft_nms, (batch,), shape, _WARPS, *sides, pixels, labels, scores)
    return found
