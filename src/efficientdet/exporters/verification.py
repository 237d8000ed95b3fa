"""Checks whether an export returns the same results as Keras from the same weights.

Two comparisons on the same letterboxed images, with Keras in float32:

- Raw predictions, if the export returns them: the score of each class at each anchor.
- Detections. Keras's detections above a threshold are paired with the export's of the same class in the same image,
  highest IoU first (at least 0.5); then the scores and box sides of each pair are compared. The order in the list
  doesn't matter, since two scores that differ in their last digit may come in either order. Rounding has another
  effect: of two overlapping boxes, the better one lowers the score of the other, so with almost equal scores either may
  be lowered. So a small share of detections may have no partner, or a worse one; that share is limited.

The limits depend on the precision. float32 differs only by the order of sums. float16 and bfloat16 have 11 and 8 binary
digits, so a logit of 2 is accurate to 0.001 and 0.008 at best, and the errors of a hundred layers add up. int8 has no
such limits; its AP is measured instead.
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
"""Minimum score of compared detections, or half of the model's best score if that is lower."""

_LEAST_IOU = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How far results may differ."""

    score: float
    """Maximum difference in the score of a class at an anchor, or of a detection."""
    box: float
    """Maximum difference in a side of a box, px of the network input."""
    share: float
    """Fraction of the detections that may differ by more."""


LIMITS: dict[ExportPrecision, Limits] = {
    "float32": Limits(score=1e-3, box=0.5, share=0.01),
    "float16": Limits(score=0.02, box=2.0, share=0.05),
    "bfloat16": Limits(score=0.1, box=8.0, share=0.1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the results of an export differ from Keras."""

    images: int
    detections: int
    """Number of Keras's detections that were compared."""
    apart: int
    """Number of them without a partner within the limits."""
    extra: int
    """Number of the export's detections without any partner."""
    score_difference: float
    """Largest difference of the other detections."""
    box_difference: float
    """Largest difference of the other detections, px of the network input."""
    raw_score_difference: float | None
    """Largest difference over all classes and anchors; None if the export returns detections."""

    def to_dict(self) -> dict[str, Any]:
        """Converts the figures to plain JSON values."""
        return dataclasses.asdict(self)

    def problem(self, limits: Limits) -> str | None:
        """Describes which limit is exceeded; None means no limit is."""
        if self.apart + self.extra > limits.share * self.detections:
            return (
                f"of Keras's {self.detections} detections, {self.apart} are missing or differ by more than "
                f"{limits.score:g} in score or {limits.box:g} px, and the export has {self.extra} that Keras does not "
                f"have; at most {limits.share:.0%} in total is allowed"
            )
        raw = self.raw_score_difference
        if raw is not None and not raw <= limits.score:
            return f"scores of anchors differ by {raw:.1e}; the limit is {limits.score:g}"
        return None


def compare(export: Runtime, keras: Runtime, samples: Iterable[Sample], limits: Limits, *, has_raw: bool) -> Agreement:
    """Compares an export with Keras on images.

    Args:
        export: the export, loaded by its runtime.
        keras: the weights in Keras, float32, with the same size and thresholds.
        samples: images, at least one.
        limits: limits beyond which a detection counts as apart.
        has_raw: whether the export returns raw predictions.
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
    """Returns the boxes, labels and scores of a batch of one image."""
    count = int(detections["num_detections"][0])
    boxes, labels, scores = (np.asarray(detections[name][0])[:count] for name in ("boxes", "labels", "scores"))
    return boxes, labels, scores


def _pair(
    found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], least: float, limits: Limits
) -> tuple[list[tuple[float, float]], int, int]:
    """Pairs the detections of an image.

    Returns:
        Score and box differences of the pairs within the limits; number of the export's detections that Keras doesn't
        have; number of Keras's detections.
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
    # Detections that Keras doesn't have, with a margin above the threshold so that rounding doesn't count.
    extra = int((~taken & (scores >= least + limits.score)).sum())
    return near, extra, count


def _best_first(iou: np.ndarray) -> list[tuple[int, int]]:
    """Pairs rows and columns, each at most once, in order of decreasing IoU, down to the minimum."""
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
    """Computes `boxes.iou` of all pairs in NumPy: float64[N, M]; adds a pixel per side so that lines have an area."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    shared = np.clip(sides, 0, None).prod(axis=-1)
    areas = [np.prod(box[..., 2:] - box[..., :2] + 1, axis=-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)
