"""Raw predictions -> Detections: best logits, decoding, per-class Gaussian soft-NMS (Bodla et al. 2017).

The one definition for evaluation, prediction, export and benchmark, float32 throughout, vectorised over the batch.
It answers what google/automl's NumPy suppression answers, with which its AP was published: areas count pixels (side +
1), a class's best box is kept whatever its score, every other one is dropped once its decayed score is below the
threshold. That code loops over classes and merges; since classes do not touch each other and scores only fall, taking
the best of all classes again and again gives the same list, already sorted.
"""

from typing import Any

import keras
from keras import ops

from efficientdet import backend
from efficientdet import boxes as box_geometry
from efficientdet.config import PostprocessConfig
from efficientdet.kernels.host_postprocess import MAX_LOG_SIZE
from efficientdet.structures import Detections, RawPredictions

_DROPPED = -1.0
_SORTS_INTEGERS = True


def detect(
    raw: RawPredictions, anchors: Any, config: PostprocessConfig, *, logits_dtype: str = "float32"
) -> Detections:
    """Turns the network's answer into detections.

    Args:
        raw: of B images.
        anchors: float32[A, 4], yxyx px.
        config: limits and thresholds.
        logits_dtype: what the logits were computed in; they are in no more numbers than that has.

    Returns:
        Detections with K = `config.max_detections`, in px of the network input, not clipped to it.
    """
    boxes, labels, scores = top_candidates(raw, anchors, config.max_candidates, logits_dtype)
    return soft_nms(
        boxes,
        labels,
        scores,
        max_detections=config.max_detections,
        sigma=config.nms_sigma,
        score_threshold=config.score_threshold,
    )


def top_candidates(
    raw: RawPredictions, anchors: Any, max_candidates: int, logits_dtype: str = "float32"
) -> tuple[Any, Any, Any]:
    """Picks the best logits over all anchors and classes and decodes their boxes.

    An anchor may be picked several times, with different classes.

    Returns:
        boxes: float32[B, M, 4], yxyx px; labels: int32[B, M]; scores: float32[B, M], best first.
        M = min(max_candidates, A * C).
    """
    num_classes = raw["class_logits"].shape[2]
    logits, kept = raw["class_logits"], None
    if keras.backend.backend() == "jax" and logits.shape[1] > max_candidates:
        logits, kept = _best_anchors(logits, max_candidates, logits_dtype)
    logits = ops.reshape(ops.cast(logits, "float32"), (-1, logits.shape[1] * num_classes))
    best_logits, positions = _top_k(logits, min(max_candidates, logits.shape[1]), logits_dtype)
    positions = ops.cast(positions, "int32")
    anchor_positions, labels = positions // num_classes, positions % num_classes
    if kept is not None:
        anchor_positions = _take(kept, anchor_positions)
    deltas = _take(ops.cast(raw["box_deltas"], "float32"), anchor_positions)
    deltas = ops.concatenate([deltas[..., :2], ops.minimum(deltas[..., 2:], MAX_LOG_SIZE)], axis=-1)
    chosen_anchors = ops.take(ops.convert_to_tensor(anchors, "float32"), anchor_positions, axis=0)
    return box_geometry.decode(deltas, chosen_anchors), labels, ops.sigmoid(best_logits)


def _best_anchors(logits: Any, count: int, dtype: str) -> tuple[Any, Any]:
    """Leaves out anchors that none of the best `count` logits can belong to, for JAX, which sorts all that it is given.

    The best logit of one that is left out is below the best of `count` others. Those that stay keep their order, so
    that equal logits are taken in the same order too.

    Returns:
        [B, count, C]; int32[B, count], places among the anchors.
    """
    _, best = _top_k(ops.max(logits, axis=-1), count, dtype)
    kept = ops.sort(ops.cast(best, "int32"), axis=-1)
    return _take(logits, kept), kept


def _top_k(logits: Any, count: int, dtype: str) -> tuple[Any, Any]:
    """Takes the best of [B, N], as `ops.top_k`, of equal ones the first."""
    if not (_SORTS_INTEGERS and keras.backend.backend() == "jax" and dtype in ("bfloat16", "float16")):
        return ops.top_k(logits, count)
    import jax
    import jax.numpy as jnp

    # Integers in the order of the numbers: XLA sorts 16 bits of them in half the time of 32.
    bits = jax.lax.bitcast_convert_type(logits.astype(dtype), jnp.uint16)
    ordered = jnp.where(bits >> 15 == 1, ~bits, bits | 0x8000)
    _, positions = jax.lax.top_k(ordered, count)
    return jnp.take_along_axis(logits, positions, axis=1), positions


def _take(values: Any, places: Any) -> Any:
    """Takes [B, K, ...] of values [B, M, ...] at int32[B, K].

    On TensorFlow from the rows of all images in one list, since OpenVINO reads other memory where the batch that
    `take_along_axis` keeps apart is 1 (2026.4.1; the tests say when that ends).
    """
    if keras.backend.backend() != "tensorflow":
        return ops.take_along_axis(values, ops.reshape(places, (*places.shape, *[1] * (values.ndim - 2))), axis=1)
    batch, count = ops.shape(values)[0], values.shape[1]
    firsts = ops.expand_dims(ops.arange(batch, dtype="int32") * count, -1)
    return ops.take(ops.reshape(values, (-1, *values.shape[2:])), places + firsts, axis=0)


def soft_nms(
    boxes: Any, labels: Any, scores: Any, *, max_detections: int, sigma: float, score_threshold: float
) -> Detections:
    """Picks the best box, lowers the scores of its neighbours of the same class, and again.

    A neighbour's score is multiplied by exp(-iou^2 / sigma) for each box picked before it.

    Args:
        boxes: float32[B, M, 4], yxyx px.
        labels: int32[B, M].
        scores: float32[B, M] in [0, 1].
        max_detections: K.
        sigma: width of the Gaussian.
        score_threshold: decayed scores below are dropped.

    Returns:
        Detections.
    """
    limits: dict[str, Any] = {"max_detections": max_detections, "sigma": sigma, "score_threshold": score_threshold}
    picks, picked_scores = (_pick_in_kernel if _has_kernel(boxes.shape[1]) else _pick)(boxes, labels, scores, **limits)
    is_found = picked_scores > 0
    found_boxes = _take(boxes, picks)
    return {
        "boxes": ops.where(is_found[..., None], found_boxes, 0.0),
        "labels": ops.where(is_found, _take(labels, picks), -1),
        "scores": picked_scores,
        "num_detections": ops.sum(ops.cast(is_found, "int32"), axis=-1),
    }


def _has_kernel(num_candidates: int) -> bool:
    """Says whether a kernel of ours picks: with JAX on the only GPU, since it works on one."""
    if keras.backend.backend() != "jax" or backend.gpus() != 1:
        return False
    from efficientdet.kernels import suppression_pallas

    return num_candidates <= suppression_pallas.MOST_CANDIDATES


def _pick_in_kernel(boxes: Any, labels: Any, scores: Any, **limits: Any) -> tuple[Any, Any]:
    """Picks as `_pick` does."""
    from efficientdet.kernels import suppression_pallas

    return suppression_pallas.pick(boxes, labels, scores, **limits)


def _pick(
    boxes: Any, labels: Any, scores: Any, *, max_detections: int, sigma: float, score_threshold: float
) -> tuple[Any, Any]:
    """Picks, by the backend's operations.

    Returns:
        int32[B, K], places among the candidates; float32[B, K], 0 where nothing was left.
    """
    num_candidates = boxes.shape[1]
    pixels = (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)
    rows = ops.arange(max_detections, dtype="int32")[None]
    columns = ops.arange(num_candidates, dtype="int32")[None]

    def has_more(step: Any, left: Any, picks: Any, picked_scores: Any) -> Any:
        return ops.logical_and(step < max_detections, ops.any(left > 0))

    def pick(step: Any, left: Any, picks: Any, picked_scores: Any) -> tuple[Any, ...]:
        # top_k rather than argmax: the latter cannot be converted to LiteRT and OpenVINO.
        score, best = ops.top_k(left, 1)
        best = ops.cast(best, "int32")
        box = _take(boxes, best)
        shared = box_geometry.intersection(box, boxes, margin=1.0)
        iou = shared / (_take(pixels, best) + pixels - shared)
        decayed = left * ops.exp(-ops.square(iou) / sigma)
        decayed = ops.where(decayed < score_threshold, _DROPPED, decayed)
        is_same_class = labels == _take(labels, best)
        left = ops.where(is_same_class, decayed, left)
        left = ops.where(columns == best, _DROPPED, left)
        is_now = ops.logical_and(rows == step, score > 0)
        picks = ops.where(is_now, best, picks)
        picked_scores = ops.where(is_now, score, picked_scores)
        return step + 1, left, picks, picked_scores

    nothing = ops.zeros_like(scores[:, :1]) * ops.ones((1, max_detections), dtype="float32")
    start = (ops.zeros((), dtype="int32"), scores, ops.cast(nothing, "int32"), nothing)
    _, _, picks, picked_scores = ops.while_loop(has_more, pick, start)
    return picks, picked_scores
