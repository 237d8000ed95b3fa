"""Selects which of the network's detections to show.

In this order: drops scores below the threshold of their class and unwanted classes; with `class_agnostic`, of two boxes
with an IoU of at least 0.5, whatever their classes, keeps the better one (greedily, best first); then keeps the best
`max_detections`. The network's own per-class suppression comes before all this.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from efficientdet.errors import UserError
from efficientdet.structures import Category

_SAME_OBJECT = 0.5  # minimum IoU at which two boxes count as one object


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Which of a network's detections to show. Made by `choose`."""

    thresholds: np.ndarray
    """float32[C], minimum score of each class; above 1 for an unwanted class."""
    class_agnostic: bool
    max_detections: int | None

    def rows(self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Selects the detections of one image to show.

        Args:
            boxes: float32[N, 4], yxyx px.
            labels: int[N].
            scores: float32[N].

        Returns:
            int[K], row indices, best first.
        """
        found = np.flatnonzero(scores >= self.thresholds[labels])
        found = found[np.argsort(-scores[found], kind="stable")]
        if self.class_agnostic:
            found = found[_distinct(boxes[found])]
        return found[: self.max_detections]


def choose(
    categories: Sequence[Category],
    *,
    score_threshold: float,
    class_thresholds: Mapping[str, float] | Mapping[int, float] | None = None,
    classes: Sequence[str | int] | None = None,
    class_agnostic: bool = False,
    max_detections: int | None = None,
) -> Choice:
    """Checks the options and makes a `Choice`.

    Args:
        categories: classes of the network.
        score_threshold: minimum score, in [0, 1].
        class_thresholds: score thresholds for individual classes, by name or id.
        classes: names or ids of the classes to keep; None keeps all.
        class_agnostic: keep one box per object, whatever its class.
        max_detections: maximum number of detections per image; None keeps all that the network returns.

    Raises:
        UserError: a number is out of range, or the network has no such class.
    """
    check_threshold(score_threshold, "score_threshold")
    if max_detections is not None and max_detections < 1:
        raise UserError(f"`max_detections` is {max_detections}; it must be at least 1.")
    thresholds = np.full(len(categories), score_threshold, np.float32)  # same dtype as the scores, so 0.9 equals 0.9
    for each, threshold in dict(class_thresholds or {}).items():
        check_threshold(threshold, f"class_thresholds[{each!r}]")
        thresholds[_labels([each], categories, "class_thresholds")] = threshold
    if classes is not None:
        if isinstance(classes, str) or not len(classes):
            raise UserError(f"`classes` is {classes!r}; expected a list of one or more names or ids.")
        is_wanted = np.zeros(len(categories), bool)
        is_wanted[_labels(classes, categories, "classes")] = True
        thresholds[~is_wanted] = np.inf
    return Choice(thresholds=thresholds, class_agnostic=class_agnostic, max_detections=max_detections)


def check_threshold(threshold: float, name: str) -> None:
    """Raises a UserError if a threshold is out of range."""
    if not 0 <= threshold <= 1:
        raise UserError(f"`{name}` is {threshold}; it must be in [0, 1].")


def _labels(classes: Sequence[str | int], categories: Sequence[Category], name: str) -> list[int]:
    """Finds the labels of classes by name or id; a number is an id unless a class has that name."""
    labels: dict[str, list[int]] = {}
    for label, category in enumerate(categories):
        labels.setdefault(category.name, []).append(label)
    for label, category in enumerate(categories):
        labels.setdefault(str(category.id), [label])
    unknown = [each for each in classes if str(each) not in labels]
    if unknown:
        known = ", ".join(f"{category.name} ({category.id})" for category in categories)
        raise UserError(f"`{name}` has the unknown class {unknown[0]!r}; choose from {known}.")
    return [label for each in classes for label in labels[str(each)]]


def _distinct(boxes: np.ndarray) -> np.ndarray:
    """Keeps the first of the boxes (float[N, 4], best first) that show the same object.

    Returns:
        int[K], row indices.
    """
    boxes = boxes.astype(np.float64)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    rows, kept = np.arange(len(boxes)), []
    while len(rows):
        first, rows = rows[0], rows[1:]
        kept.append(first)
        sides = np.minimum(boxes[rows, 2:], boxes[first, 2:]) - np.maximum(boxes[rows, :2], boxes[first, :2])
        shared = np.prod(np.maximum(sides, 0), axis=-1)
        rows = rows[shared < _SAME_OBJECT * (areas[rows] + areas[first] - shared)]
    return np.array(kept, int)
