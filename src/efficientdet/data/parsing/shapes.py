"""Computes upright boxes around shapes: rotated boxes, polygons, circles and ellipses.

Coordinates are px or fractions, with x to the right and y down; angles are degrees, clockwise on the screen. The box of
a shape with a coordinate that is not finite is NaN.
"""

import math
from collections.abc import Sequence

ROTATED = "rotated boxes replaced by the upright boxes around them"
OUTLINES = "polygons, ellipses and other outlines replaced by the boxes around them"
WITHOUT_AREA = "points, tags and other annotations that are not boxes skipped"


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
        width: width before the rotation.
        height: height before the rotation.
        degrees: rotation, clockwise.
        pivot: center (x, y) of the rotation.
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
        degrees: rotation about its center, clockwise.
    """
    if not all(map(math.isfinite, (*center, *radii, degrees))):
        return [math.nan] * 4
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width = math.hypot(radii[0] * cosine, radii[1] * sine)
    half_height = math.hypot(radii[0] * sine, radii[1] * cosine)
    x, y = center
    return [y - half_height, x - half_width, y + half_height, x + half_width]
