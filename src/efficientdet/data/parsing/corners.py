"""Decides whether the numbers of a `bbox` are x, y, width, height, as COCO defines, or corners, as some scripts write.

The box alone does not settle it: [40, 30, 100, 80] could be either. Its polygon does, and so does its `area`, which is
the area of the box in all datasets without masks. If most annotations with a polygon or an area match it only as
corners (x1, y1, x2, y2), and none matches it only as x, y, width, height, all boxes of the file are corners. A single
match among the areas of masks is chance. A width below x, or a height below y, cannot be a corner.

Without areas and polygons there is only a hint: many boxes extend beyond their image, but all would fit as corners.
Then boxes are read as the format defines, and a warning says that they may be corners.
"""

import math
from collections.abc import Iterable
from typing import Any

from efficientdet.data.parsing import segmentation, values
from efficientdet.errors import UserError

TOLD = "files whose boxes are read as corners x1, y1, x2, y2, since only that matches their areas and polygons"

MAY_BE = "boxes that may be corners x1, y1, x2, y2: many extend beyond their image, but none would if read as corners"

_FRACTION = 0.01  # areas are rounded
_SLACK_PX = 2.0  # so are corners
_SLACK = 0.02  # fraction of the image
_SHARE = 0.5


def are_told(entries: Iterable[dict[str, Any]]) -> bool:
    """Checks whether the annotations of a file show that their boxes are corners.

    Args:
        entries: annotations with `bbox`, and possibly `segmentation` or `area`; faulty ones are ignored.
    """
    num_corners = num_neither = 0
    for entry in entries:
        as_corners, as_extent = _matches(entry)
        if as_extent and not as_corners:  # in COCO's own files, this happens within the first few
            return False
        num_corners += as_corners and not as_extent
        num_neither += not as_corners and not as_extent
    return num_corners > num_neither


class Suspicion:
    """Counts the boxes that extend beyond their image, as long as all of them would fit as corners.

    Attributes:
        num_boxes: boxes seen so far.
    """

    def __init__(self) -> None:
        self.num_boxes = 0
        self._num_leaving = 0
        self._all_fit = True

    def add(self, numbers: list[float], box: list[float]) -> None:
        """Adds a box.

        Args:
            numbers: the four numbers of the annotation, divided by the image's width and height.
            box: the same box as it is read: yxyx, fractions.
        """
        x1, y1, x2, y2 = numbers
        self.num_boxes += 1
        self._all_fit &= x1 < x2 <= 1 + _SLACK and y1 < y2 <= 1 + _SLACK
        self._num_leaving += min(box[:2]) < -_SLACK or max(box[2:]) > 1 + _SLACK

    def is_grave(self) -> bool:
        """Returns whether the boxes may be corners."""
        return self._all_fit and self._num_leaving > 0 and self._num_leaving >= _SHARE * self.num_boxes


def _matches(entry: dict[str, Any]) -> tuple[bool, bool]:
    """Checks whether a box matches its outline or area as corners, and whether as x, y, width, height.

    Both are true if there is no evidence.
    """
    try:
        x1, y1, x2, y2 = (values.number(value, "") for value in entry["bbox"])
        area = values.number(entry.get("area"), "") if entry.get("area") else 0.0
        shape = entry.get("segmentation")
        outline = segmentation.box(shape, "") if shape else None
    except (UserError, KeyError, TypeError, ValueError):
        return True, True
    if x2 < x1 or y2 < y1:
        return False, True
    if outline is None and area <= 0:
        return True, True
    if outline is not None:
        top, left, bottom, right = outline
        as_corners = math.dist((left, top, right, bottom), (x1, y1, x2, y2)) <= _SLACK_PX
        as_extent = math.dist((left, top, right, bottom), (x1, y1, x1 + x2, y1 + y2)) <= _SLACK_PX
    else:
        as_corners = math.isclose(area, (x2 - x1) * (y2 - y1), rel_tol=_FRACTION)
        as_extent = math.isclose(area, x2 * y2, rel_tol=_FRACTION)
    return as_corners, as_extent
