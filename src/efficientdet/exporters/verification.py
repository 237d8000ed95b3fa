"""Whether an export answers as Keras does from the same weights.

Two comparisons on the same letterboxed images, with Keras in float32:

- Raw predictions, where the export gives them: the score of each class of each anchor.
- Detections. Those of Keras above a threshold are paired with the export's of the same class in the same image, the
  pairs with the highest IoU (at least 0.5) first; then scores and sides of a pair are compared. The place in the list
  does not count: two scores that differ in their last digit may come in either order. One more thing may: of two boxes
  that overlap, the better lowers the other, so that the rounding of almost equal scores may swap which one was lowered.
  So a small share of detections may have no partner, or a worse one; the share is counted, and has a limit.

Limits are of the precision. float32 differs by the order of sums. float16 and bfloat16 have 11 and 8 binary digits, so
that a logit of 2 is known to 0.001 and 0.008 at best, and errors of a hundred layers add up. int8 has no such limit;
its AP is measured instead.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from efficientdet.config import ExportPrecision
from efficientdet.formats.calibration import Sample
from efficientdet.formats.loading import Runtime
from efficientdet.structures import Detections

LEAST_SCORE = 0.05
"""Detections below are not compared, unless all of a model's are low: then those below half of its best are not."""

_LEAST_IOU = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How far answers may be apart."""

    score: float
    """Of a class at an anchor, and of a detection."""
    box: float
    """Of a side of a box, px of the network input."""
    share: float
    """Of the detections that may be further apart, fraction."""


LIMITS: dict[ExportPrecision, Limits] = {
    "float32": Limits(score=1e-3, box=0.5, share=0.01),
    "float16": Limits(score=0.02, box=2.0, share=0.05),
    "bfloat16": Limits(score=0.1, box=8.0, share=0.1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the answers of an export are from Keras's."""

    images: int
    detections: int
    """Of Keras, compared."""
    apart: int
    """Those of them without a partner within the limits."""
    extra: int
    """Detections of the export that have no partner at all."""
    score_difference: float
    """Largest of the other detections."""
    box_difference: float
    """Largest of the other detections, px of the network input."""
    raw_score_difference: float | None
    """Largest of all classes of all anchors; none where the export answers detections."""

    def to_dict(self) -> dict[str, Any]:
        """Turns the figures into plain JSON values."""
        return dataclasses.asdict(self)

    def problem(self, limits: Limits) -> str | None:
        """Says which limit is exceeded, if one is."""
        if self.apart + self.extra > limits.share * self.detections:
            return (
                f"of Keras's {self.detections} detections {self.apart} are missing or further apart than "
                f"{limits.score:g} in score and {limits.box:g} px, and the export has {self.extra} that Keras does not "
                f"have; {limits.share:.0%} together is the most"
            )
        raw = self.raw_score_difference
        if raw is not None and not raw <= limits.score:
            return f"scores of anchors differ by {raw:.1e}; {limits.score:g} is the most"
        return None


def compare(export: Runtime, keras: Runtime, samples: Iterable[Sample], limits: Limits, *, has_raw: bool) -> Agreement:
    """Compares the answers to images.

    Args:
        export: the export, loaded by its program.
        keras: the weights in Keras, float32, with the same size and thresholds.
        samples: images; at least one.
        limits: beyond which a detection counts as apart.
        has_raw: whether the export gives raw predictions.
    """
    pairs, raw = [], [0.0]
    for sample in samples:
        batch = sample.images, sample.valid_size
        pairs.append((export.detect(*batch), keras.detect(*batch)))
        if has_raw:
            found, expected = (_scores(runtime.predict(*batch)["class_logits"]) for runtime in (export, keras))
            raw.append(float(np.abs(found - expected).max()))  # nan stays nan
    assert pairs
    best = max(float(expected["scores"].max()) for _, expected in pairs)
    least = min(LEAST_SCORE, best / 2)
    rows = [_pair(_row(found), _row(expected), least, limits) for found, expected in pairs]
    differences = np.array([pair for near, _, _ in rows for pair in near], np.float64).reshape(-1, 2)
    largest = differences.max(axis=0, initial=0.0).tolist()
    return Agreement(
        images=len(rows),
        detections=sum(count for _, _, count in rows),
        apart=sum(count - len(near) for near, _, count in rows),
        extra=sum(extra for _, extra, _ in rows),
        score_difference=largest[0],
        box_difference=largest[1],
        raw_score_difference=float(np.max(raw)) if has_raw else None,
    )


def _scores(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _row(detections: Detections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Takes the boxes, labels and scores of the only image."""
    count = int(detections["num_detections"][0])
    boxes, labels, scores = (np.asarray(detections[name][0])[:count] for name in ("boxes", "labels", "scores"))
    return boxes, labels, scores


def _pair(
    found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], least: float, limits: Limits
) -> tuple[list[tuple[float, float]], int, int]:
    """Pairs the detections of an image.

    Returns:
        Differences of score and box of the pairs within the limits; detections of the export that Keras does not have;
        how many of Keras there are.
    """
    boxes, labels, scores = found
    their_boxes, their_labels, their_scores = expected
    iou = _iou(their_boxes, boxes) * (their_labels[:, None] == labels[None])
    near: list[tuple[float, float]] = []
    taken = np.zeros(len(boxes), bool)
    is_counted = their_scores >= least
    for theirs, ours in _best_first(iou):
        score = abs(float(scores[ours]) - float(their_scores[theirs]))
        box = float(np.abs(boxes[ours] - their_boxes[theirs]).max())
        taken[ours] = True
        if is_counted[theirs] and score <= limits.score and box <= limits.box:
            near.append((score, box))
    count = int(is_counted.sum())
    # What Keras does not see at all, a little above the threshold so that rounding at it does not count.
    extra = int((~taken & (scores >= least + limits.score)).sum())
    return near, extra, count


def _best_first(iou: np.ndarray) -> list[tuple[int, int]]:
    """Pairs rows and columns, each at most once, highest first, down to the least IoU."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set(), set()
    for place in np.argsort(-iou, axis=None, kind="stable"):
        row, column = divmod(int(place), iou.shape[1])
        if not iou[row, column] >= _LEAST_IOU:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes `boxes.iou` of all pairs in NumPy: float64[N, M]; a pixel more a side, so that a line has an area."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    shared = np.clip(sides, 0, None).prod(axis=-1)
    areas = [np.prod(box[..., 2:] - box[..., :2] + 1, axis=-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)
