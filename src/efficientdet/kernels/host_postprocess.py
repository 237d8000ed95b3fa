"""Post-processing on the host: the computation of `postprocess` in NumPy, for runtimes with slow loops.

It picks the same boxes, with scores equal up to float32 rounding; a test checks this. It is fast because:

- Of A x C logits, the best M belong to the M anchors with the best class; the other logits are not read.
- Scores only decrease, so the best hundred detections depend only on candidates down to the score of the last of them.
  It starts with a window of the best few hundred and enlarges it only if the picks get worse than the window's end.
- A box decays only its own class: each class is a contiguous slice with its own best, and a heap of the best of each
  class gives the next pick.
"""

import heapq
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from efficientdet.config import PostprocessConfig
from efficientdet.structures import Detections

# Boxes larger than this times the anchor are not plausible; without a limit an untrained network predicts infinity.
MAX_LOG_SIZE = math.log(1000 / 16)

_FIRST_WINDOW = 4  # candidates per requested detection
_GROWTH = 4

_Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]


def detect(
    class_logits: np.ndarray,
    box_deltas: np.ndarray,
    best_logits: np.ndarray,
    anchors: np.ndarray,
    config: PostprocessConfig,
) -> Detections:
    """Converts raw predictions to detections like `postprocess.detect`.

    Args:
        class_logits: float32[B, A, C].
        box_deltas: float32[B, A, 4].
        best_logits: float32[B, A], the highest logit of each anchor, which a runtime computes faster than NumPy.
        anchors: float32[A, 4], yxyx px.
        config: limits and thresholds.
    """
    _, num_anchors, num_classes = class_logits.shape
    limit = min(config.max_candidates, num_anchors * num_classes)

    def candidates_of(row: int) -> Callable[[int], _Candidates]:
        def best(count: int) -> _Candidates:
            logits, positions = _top_logits(class_logits[row], best_logits[row], count)
            chosen, labels = positions // num_classes, positions % num_classes
            scores = 1 / (1 + np.exp(-logits))
            return _decode(box_deltas[row][chosen], anchors[chosen]), labels, scores

        return best

    return _stack([_suppress(candidates_of(row), limit, config) for row in range(len(class_logits))], config)


def soft_nms(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, config: PostprocessConfig) -> Detections:
    """Applies soft-NMS like `postprocess.soft_nms`.

    Args:
        boxes: float32[B, M, 4], yxyx px.
        labels: int[B, M].
        scores: float32[B, M] in [0, 1], best first.
        config: limits and thresholds.
    """

    def candidates_of(row: int) -> Callable[[int], _Candidates]:
        return lambda count: (boxes[row, :count], labels[row, :count], scores[row, :count])

    return _stack([_suppress(candidates_of(row), boxes.shape[1], config) for row in range(len(boxes))], config)


def _top_logits(logits: np.ndarray, best: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the largest of float32[A, C]: values and flat positions, best first; equal values keep their order."""
    num_anchors, num_classes = logits.shape
    rows = np.arange(num_anchors)
    if count < num_anchors:
        rows = _largest(best, count)  # they have at least `count` logits as large as the smallest of these
        values = logits[rows].ravel()
        inside = np.flatnonzero(values >= best[rows].min())
        values = values[inside]
    else:
        values = logits.ravel()
        inside = np.arange(len(values))
    if count < len(values):
        largest = _largest(values, count)
        inside, values = inside[largest], values[largest]
    order = np.argsort(-values, kind="stable")
    inside = inside[order]
    return values[order], rows[inside // num_classes] * num_classes + inside % num_classes


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Finds the indices of the largest `count` of float32[N], in ascending order; of equal values the first."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    is_largest = values > least
    is_largest[np.flatnonzero(values == least)[: count - np.count_nonzero(is_largest)]] = True
    return np.flatnonzero(is_largest)


def _decode(deltas: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Computes `boxes.decode` with the limit of `postprocess.top_candidates`: float32[M, 4], yxyx px."""
    low, high = anchors[:, :2], anchors[:, 2:]
    sides = high - low
    centers = deltas[:, :2] * sides + (low + high) / 2
    halves = np.exp(np.minimum(deltas[:, 2:], np.float32(MAX_LOG_SIZE))) * sides / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)


def _suppress(best: Callable[[int], _Candidates], limit: int, config: PostprocessConfig) -> _Candidates:
    """Picks from a window of the best candidates, and from a larger one if necessary."""
    window = min(_FIRST_WINDOW * config.max_detections, limit)
    while True:
        # A diverged network may predict boxes of infinite size.
        with np.errstate(over="ignore", invalid="ignore"):
            boxes, labels, scores = best(window)
            picks, picked_scores = _pick(boxes, labels, scores, config, is_all=window == limit)
        if picks is not None:
            return boxes[picks], labels[picks], picked_scores
        window = min(_GROWTH * window, limit)


def _pick(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, config: PostprocessConfig, *, is_all: bool
) -> tuple[Any, Any]:
    """Repeatedly picks the best box; None if a candidate outside the window could be better than a pick."""
    order = np.argsort(labels, kind="stable")  # one class after another, best first within each
    corners = boxes[order].T
    low, high = np.ascontiguousarray(corners[:2]), corners[2:] + np.float32(1)  # areas count pixels
    pixels = (high[0] - low[0]) * (high[1] - low[1])
    left = scores[order]
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1)).tolist()
    pieces = list(zip(starts, [*starts[1:], len(order)], strict=True))
    places = order.tolist()
    heap = [(-float(left[start]), places[start], start, number) for number, (start, _) in enumerate(pieces)]
    heapq.heapify(heap)
    has_pick = [False] * len(pieces)
    last = 0.0 if is_all or not len(scores) else float(scores[-1])
    picks: list[int] = []
    picked_scores: list[float] = []
    while heap and len(picks) < config.max_detections:
        negative, place, position, number = heapq.heappop(heap)
        if -negative < last:
            return None, None
        if negative == 0 or (-negative < config.score_threshold and has_pick[number]):
            continue  # dropped, as is the rest of the class
        picks.append(place)
        picked_scores.append(-negative)
        has_pick[number] = True
        start, end = pieces[number]
        following = _decay(left, low, high, pixels, slice(start, end), position, config.nms_sigma)
        if left[following] > 0:
            heapq.heappush(heap, (-float(left[following]), places[following], following, number))
    return picks, np.array(picked_scores, np.float32)


def _decay(
    left: np.ndarray, low: np.ndarray, high: np.ndarray, pixels: np.ndarray, piece: slice, pick: int, sigma: float
) -> int:
    """Removes a pick from its class, decays the others in place, and returns the index of the next best."""
    of_class = left[piece]
    if len(of_class) > 1:
        sides = np.minimum(high[:, piece], high[:, pick : pick + 1])
        sides -= np.maximum(low[:, piece], low[:, pick : pick + 1])
        np.maximum(sides, 0, out=sides)
        shared = sides[0] * sides[1]
        iou = shared / (pixels[pick] + pixels[piece] - shared)
        iou *= iou
        iou *= -1 / sigma
        of_class *= np.exp(iou, out=iou)
    left[pick] = 0
    return piece.start + int(of_class.argmax())


def _stack(found: list[_Candidates], config: PostprocessConfig) -> Detections:
    """Pads the detections of each image and stacks them."""
    size = (len(found), config.max_detections)
    detections: Detections = {
        "boxes": np.zeros((*size, 4), np.float32),
        "labels": np.full(size, -1, np.int32),
        "scores": np.zeros(size, np.float32),
        "num_detections": np.array([len(scores) for _, _, scores in found], np.int32),
    }
    for row, (boxes, labels, scores) in enumerate(found):
        detections["boxes"][row, : len(scores)] = boxes
        detections["labels"][row, : len(scores)] = labels
        detections["scores"][row, : len(scores)] = scores
    return detections
