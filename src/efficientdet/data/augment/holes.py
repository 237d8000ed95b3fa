"""Changes that cover parts of an image with gray and keep the boxes: cutout, cutout inside a box, grid mask.

Images are uint8[h, w, 3]; boxes are float32[N, 4], yxyx, fractions of height and width.
"""

import math
from typing import Any

from efficientdet.data.augment import geometry

_KEPT = 0.6  # fraction of a grid period in each direction: 84 % of the image remain visible (GridMask's r)
_PERIODS = (0.3, 0.5)  # shortest and longest period, fractions of the shorter side
_TILT = 10.0  # largest tilt, degrees


def cut_out(image: Any, half_side: Any, seed: Any) -> Any:
    """Hides a square around a random pixel, half_side px in each direction, clipped to the image (Cutout, sec. 3)."""
    import tensorflow as tf

    size = tf.cast(tf.shape(image)[:2], tf.float32)
    middle = tf.floor(tf.random.stateless_uniform([2], seed) * size)
    return _hide(image, middle - half_side, middle + half_side)


def cut_out_in_box(image: Any, boxes: Any, share: float, seed: Any) -> Any:
    """Hides a part of one random box: `share` of its height and width, at a random position; nothing without boxes."""
    import tensorflow as tf

    def hide() -> Any:
        number = tf.random.stateless_uniform([], seed, 0, tf.shape(boxes)[0], tf.int32)
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        top_left, bottom_right = boxes[number, :2] * size, boxes[number, 2:] * size
        place = tf.random.stateless_uniform([2], tf.random.fold_in(seed, 1))
        middle = top_left + place * (bottom_right - top_left)
        half = share * (bottom_right - top_left) / 2
        return _hide(image, tf.maximum(middle - half, top_left), tf.minimum(middle + half, bottom_right))

    return tf.cond(tf.shape(boxes)[0] > 0, hide, lambda: image)


def _hide(image: Any, top_left: Any, bottom_right: Any) -> Any:
    """Hides the pixels whose centers are between two corners, float32[2], yx px."""
    import tensorflow as tf

    y, x = _centres(image)
    rows = tf.logical_and(y > top_left[0], y < bottom_right[0])
    columns = tf.logical_and(x > top_left[1], x < bottom_right[1])
    return _fill(image, tf.logical_and(rows, columns))


def grid_mask(image: Any, seed: Any) -> Any:
    """Hides the squares of a grid with a random offset and a small tilt (GridMask, Chen et al. 2020, section 3.2).

    In google/automl, the grid is upright, its holes are black, and its period depends on height and width.

    Args:
        image: uint8[h, w, 3].
        seed: int32[2].

    Returns:
        uint8[h, w, 3].
    """
    import tensorflow as tf

    draws = tf.unstack(tf.random.stateless_uniform([4], seed))
    shorter = tf.cast(tf.reduce_min(tf.shape(image)[:2]), tf.float32)
    period = tf.maximum(shorter * (_PERIODS[0] + (_PERIODS[1] - _PERIODS[0]) * draws[0]), 2.0)
    tilt = (2.0 * draws[1] - 1.0) * (_TILT * math.pi / 180)
    y, x = _centres(image)
    down = (tf.cos(tilt) * y + tf.sin(tilt) * x) / period + draws[2]
    right = (tf.cos(tilt) * x - tf.sin(tilt) * y) / period + draws[3]
    is_hidden = tf.logical_and(down - tf.floor(down) >= _KEPT, right - tf.floor(right) >= _KEPT)
    return _fill(image, is_hidden)


def _centres(image: Any) -> tuple[Any, Any]:
    """Returns the coordinates of the pixel centers: float32[h, 1], y, and float32[1, w], x, px."""
    import tensorflow as tf

    height, width = tf.unstack(tf.shape(image)[:2])
    y, x = tf.cast(tf.range(height), tf.float32), tf.cast(tf.range(width), tf.float32)
    return y[:, None] + 0.5, x[None, :] + 0.5


def _fill(image: Any, is_hidden: Any) -> Any:
    """Fills the hidden pixels (bool[h, w]) with gray."""
    import tensorflow as tf

    return tf.where(is_hidden[..., None], tf.constant(geometry.GREY, tf.uint8), image)
