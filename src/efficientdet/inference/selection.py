"""Which of the network's detections are shown: thresholds, classes, one box an object, a limit.

In this order: a score below the threshold of its class is out, then classes that are not wanted; with `class_agnostic`,
of two boxes that share half of their union or more, whatever their classes, the better one stays (greedily, best
first); and of what is left the best `max_detections` stay. The network's own suppression, per class, came before.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from efficientdet.errors import UserError
from efficientdet.structures import Category

_SAME_OBJECT = 0.5  # intersection over union from which on two boxes are taken for one object


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What is shown of what a network finds. Made by `choose`."""

    thresholds: np.ndarray
    """float32[C], least score of each class; above 1 for a class that is not wanted."""
    class_agnostic: bool
    max_detections: int | None

    def rows(self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Finds the detections of one image that are shown.

        Args:
            boxes: float32[N, 4], yxyx px.
            labels: int[N].
            scores: float32[N].

        Returns:
            int[K], rows, best first.
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
    """Checks what is wanted of a network's detections.

    Args:
        categories: of the network.
        score_threshold: least score, in [0, 1].
        class_thresholds: names or ids of classes that have a threshold of their own.
        classes: names or ids of the classes that are wanted; none: all.
        class_agnostic: one box an object, whatever its class.
        max_detections: most detections an image; none: as many as the network gives.

    Raises:
        UserError: a number is out of range, or the network has no such class.
    """
    check_threshold(score_threshold, "score_threshold")
    if max_detections is not None and max_detections < 1:
        raise UserError(f"`max_detections` is {max_detections}; it must be at least 1.")
    thresholds = np.full(len(categories), score_threshold, np.float32)  # as the scores: 0.9 is 0.9
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
    """Raises a UserError for a score that cannot be."""
    if not 0 <= threshold <= 1:
        raise UserError(f"`{name}` is {threshold}; it must be in [0, 1].")


def _labels(classes: Sequence[str | int], categories: Sequence[Category], name: str) -> list[int]:
    """Finds the labels of classes by their names or ids; a number is an id unless a class is called so."""
    labels: dict[str, list[int]] = {}
    for label, category in enumerate(categories):
        labels.setdefault(category.name, []).append(label)
    for label, category in enumerate(categories):
        labels.setdefault(str(category.id), [label])
    unknown = [each for each in classes if str(each) not in labels]
    if unknown:
        known = ", ".join(f"{category.name} ({category.id})" for category in categories)
        raise UserError(f"`{name}` has {unknown[0]!r}; these weights know {known}.")
    return [label for each in classes for label in labels[str(each)]]


def _distinct(boxes: np.ndarray) -> np.ndarray:
    """Leaves the first of boxes (float[N, 4], best first) that show the same object.

    Returns:
        int[K], rows.
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
