"""Raw predictions -> Detections: best logits, decoding, per-class Gaussian soft-NMS (Bodla et al. 2017).

The single definition for evaluation, prediction, export and benchmarks, in float32, vectorized over the batch. It gives
the same results as google/automl's NumPy suppression, the basis of its published AP: areas count pixels (side + 1), the
best box of a class is kept whatever its score, and every other box is dropped once its decayed score is below the
threshold. That code loops over classes and merges the results; since classes don't affect each other and scores only
decrease, repeatedly taking the best box of all classes gives the same list, already sorted.
"""

from typing import Any

from keras import ops

from efficientdet import boxes as box_geometry
from efficientdet.config import PostprocessConfig
from efficientdet.kernels import selection
from efficientdet.kernels.host_postprocess import MAX_LOG_SIZE
from efficientdet.structures import Array, Boxes, Detections, Labels, RawPredictions, Scores

_DROPPED = -1.0


def detect(
    raw: RawPredictions, anchors: Boxes, config: PostprocessConfig, *, logits_dtype: str = "float32"
) -> Detections:
    """Converts raw predictions to detections.

    Args:
        raw: raw predictions of B images.
        anchors: float32[A, 4], yxyx px.
        config: limits and thresholds.
        logits_dtype: data type the logits were computed in, which limits how many different values they have.

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
    raw: RawPredictions, anchors: Boxes, max_candidates: int, logits_dtype: str = "float32"
) -> tuple[Boxes, Labels, Scores]:
    """Selects the highest logits over all anchors and classes and decodes their boxes.

    An anchor may be selected several times, with different classes.

    Returns:
        boxes: float32[B, M, 4], yxyx px; labels: int32[B, M]; scores: float32[B, M], best first.
        M = min(max_candidates, A * C).
    """
    best_logits, anchor_positions, labels = selection.best_logits(raw["class_logits"], max_candidates, logits_dtype)
    deltas = selection.take(ops.cast(raw["box_deltas"], "float32"), anchor_positions)
    deltas = ops.concatenate([deltas[..., :2], ops.minimum(deltas[..., 2:], MAX_LOG_SIZE)], axis=-1)
    chosen_anchors = ops.take(ops.convert_to_tensor(anchors, "float32"), anchor_positions, axis=0)
    return box_geometry.decode(deltas, chosen_anchors), labels, ops.sigmoid(best_logits)


def soft_nms(
    boxes: Boxes, labels: Labels, scores: Scores, *, max_detections: int, sigma: float, score_threshold: float
) -> Detections:
    """Repeatedly picks the best box and lowers the scores of overlapping boxes of the same class.

    A score is multiplied by exp(-iou^2 / sigma) for each box picked earlier.

    Args:
        boxes: float32[B, M, 4], yxyx px.
        labels: int32[B, M].
        scores: float32[B, M] in [0, 1].
        max_detections: K.
        sigma: width of the Gaussian.
        score_threshold: boxes with a decayed score below this are dropped.

    Returns:
        Detections.
    """
    limits: dict[str, Any] = {"max_detections": max_detections, "sigma": sigma, "score_threshold": score_threshold}
    picks, picked_scores = (selection.kernel_that_picks(boxes.shape[1]) or pick)(boxes, labels, scores, **limits)
    is_found = picked_scores > 0
    found_boxes = selection.take(boxes, picks)
    return {
        "boxes": ops.where(is_found[..., None], found_boxes, 0.0),
        "labels": ops.where(is_found, selection.take(labels, picks), -1),
        "scores": picked_scores,
        "num_detections": ops.sum(ops.cast(is_found, "int32"), axis=-1),
    }


def pick(
    boxes: Boxes, labels: Labels, scores: Scores, *, max_detections: int, sigma: float, score_threshold: float
) -> tuple[Array, Scores]:
    """Picks boxes one by one, always the best of the remaining ones; arguments as in `soft_nms`.

    Returns:
        int32[B, K], positions among the candidates; float32[B, K], their scores, 0 if no box was left.
    """
    num_candidates = boxes.shape[1]
    pixels = (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)
    rows = ops.arange(max_detections, dtype="int32")[None]
    columns = ops.arange(num_candidates, dtype="int32")[None]

    def has_more(step: Any, left: Scores, picks: Array, picked_scores: Scores) -> Any:
        return ops.logical_and(step < max_detections, ops.any(left > 0))

    def pick_one(step: Any, left: Scores, picks: Array, picked_scores: Scores) -> tuple[Any, ...]:
        # top_k instead of argmax, which cannot be converted to LiteRT and OpenVINO.
        score, best = ops.top_k(left, 1)
        best = ops.cast(best, "int32")
        box = selection.take(boxes, best)
        shared = box_geometry.intersection(box, boxes, margin=1.0)
        iou = shared / (selection.take(pixels, best) + pixels - shared)
        decayed = left * ops.exp(-ops.square(iou) / sigma)
        decayed = ops.where(decayed < score_threshold, _DROPPED, decayed)
        is_same_class = labels == selection.take(labels, best)
        left = ops.where(is_same_class, decayed, left)
        left = ops.where(columns == best, _DROPPED, left)
        is_now = ops.logical_and(rows == step, score > 0)
        picks = ops.where(is_now, best, picks)
        picked_scores = ops.where(is_now, score, picked_scores)
        return step + 1, left, picks, picked_scores

    nothing = ops.zeros_like(scores[:, :1]) * ops.ones((1, max_detections), dtype="float32")
    start = (ops.zeros((), dtype="int32"), scores, ops.cast(nothing, "int32"), nothing)
    _, _, picks, picked_scores = ops.while_loop(has_more, pick_one, start)
    return picks, picked_scores
