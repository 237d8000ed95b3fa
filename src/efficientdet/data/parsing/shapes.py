"""Boxes around shapes: what a rotated box, a polygon, a circle or an ellipse encloses, as an upright box.

Coordinates are px or fractions, x to the right and y down; angles are degrees, clockwise as one sees them. A shape with
a coordinate that is not finite has a box of NaN.
"""

import math
from collections.abc import Sequence

ROTATED = "rotated boxes read as the upright boxes around them"
OUTLINES = "polygons, ellipses and other outlines read as the boxes around them"
WITHOUT_AREA = "points, tags and other annotations that are not boxes left out"


def around(points: Sequence[tuple[float, float]]) -> list[float]:
    """Returns the box around points (x, y): yxyx."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if not all(map(math.isfinite, (*xs, *ys))):
        return [math.nan] * 4
    return [min(ys), min(xs), max(ys), max(xs)]


def around_rotated(
    corner: tuple[float, float], width: float, height: float, degrees: float, *, pivot: tuple[float, float]
) -> list[float]:
    """Returns the box around a rotated box: yxyx.

    Args:
        corner: its top left corner (x, y) before the rotation.
        width: before the rotation.
        height: before the rotation.
        degrees: how far it is turned, clockwise.
        pivot: point (x, y) that it is turned about.
    """
    x, y = corner
    corners = [(x, y), (x + width, y), (x, y + height), (x + width, y + height)]
    if not all(map(math.isfinite, (x, y, width, height, degrees))):
        return [math.nan] * 4
    if degrees % 360 == 0:
        return [y, x, y + height, x + width]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved = [(a - pivot[0], b - pivot[1]) for a, b in corners]
    return around([(pivot[0] + a * cosine - b * sine, pivot[1] + a * sine + b * cosine) for a, b in moved])


def around_ellipse(center: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> list[float]:
    """Returns the box around an ellipse: yxyx.

    Args:
        center: (x, y).
        radii: (horizontal, vertical) before the rotation.
        degrees: how far it is turned about its centre, clockwise.
    """
    if not all(map(math.isfinite, (*center, *radii, degrees))):
        return [math.nan] * 4
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width = math.hypot(radii[0] * cosine, radii[1] * sine)
    half_height = math.hypot(radii[0] * sine, radii[1] * cosine)
    x, y = center
    return [y - half_height, x - half_width, y + half_height, x + half_width]
