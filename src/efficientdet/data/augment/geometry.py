"""Changes that move pixels together with boxes (shift, shear, rotation), and changes inside boxes only.

Images are uint8[h, w, 3]; boxes are float32[N, 4], yxyx, fractions of height and width. Images keep their size; areas
from outside are filled with gray. A moved box is the smallest upright box around its four moved corners, clipped to the
image. If it leaves the image, it becomes (0, 0, 0, 0), which `cropping.has_area` drops later; google/automl turns it
into an empty strip. Interpolation is bilinear; google/automl uses nearest neighbor.
"""

import math
from collections.abc import Callable
from typing import Any

GREY = 128
"""Value of pixels from outside the image."""


def shift(image: Any, boxes: Any, down: Any, right: Any) -> tuple[Any, Any]:
    """Shifts the image by `down` and `right` px."""
    return _warp(image, boxes, [[1.0, 0.0], [0.0, 1.0]], [down, right])


def shear(image: Any, boxes: Any, down: Any, right: Any) -> tuple[Any, Any]:
    """Moves columns down by `down` px per px of x, or rows right by `right` px per px of y; one of them must be 0."""
    return _warp(image, boxes, [[1.0, down], [right, 1.0]], [0.0, 0.0])


def rotate(image: Any, boxes: Any, degrees: Any) -> tuple[Any, Any]:
    """Rotates the image clockwise about its center."""
    import tensorflow as tf

    angle = tf.cast(degrees, tf.float32) * (math.pi / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    turn = tf.stack([[cosine, sine], [-sine, cosine]])
    middle = tf.cast(tf.shape(image)[:2], tf.float32) / 2
    return _warp(image, boxes, turn, middle - tf.linalg.matvec(turn, middle))


def _warp(image: Any, boxes: Any, matrix: Any, offset: Any) -> tuple[Any, Any]:
    """Moves each point p to matrix p + offset, where p = (y, x) px from the top left corner of the image."""
    import tensorflow as tf

    matrix, offset = tf.convert_to_tensor(matrix, tf.float32), tf.convert_to_tensor(offset, tf.float32)
    # The operation takes the inverse map, in coordinates of pixel centers, with x before y.
    back = tf.linalg.inv(matrix)
    origin = tf.linalg.matvec(back, 0.5 - offset) - 0.5
    transform = tf.stack([back[1, 1], back[1, 0], origin[1], back[0, 1], back[0, 0], origin[0], 0.0, 0.0])
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],
        transforms=transform[None],
        output_shape=tf.shape(image)[:2],
        fill_value=float(GREY),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
    moved = tf.ensure_shape(tf.saturate_cast(tf.round(moved), tf.uint8), [None, None, 3])
    return moved, _move_boxes(boxes, matrix, offset, tf.cast(tf.shape(image)[:2], tf.float32))


def _move_boxes(boxes: Any, matrix: Any, offset: Any, size: Any) -> Any:
    """Moves boxes like `_warp` moves pixels."""
    import tensorflow as tf

    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    corners = tf.stack([tf.stack(corner, axis=-1) for corner in ((y1, x1), (y1, x2), (y2, x1), (y2, x2))], axis=-2)
    moved = (tf.einsum("ij,nkj->nki", matrix, corners * size) + offset) / size
    hull = tf.concat([tf.reduce_min(moved, axis=1), tf.reduce_max(moved, axis=1)], axis=-1)
    clipped = tf.clip_by_value(hull, 0.0, 1.0)
    # A box without area must not regain one when rotated.
    has_area = tf.reduce_all(clipped[:, 2:] > clipped[:, :2], axis=-1, keepdims=True)
    return tf.where(has_area, clipped, 0.0)


def change_in_boxes(image: Any, boxes: Any, probability: float, seed: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Changes the pixels inside randomly chosen boxes, one after the other.

    Args:
        image: uint8[h, w, 3].
        boxes: float32[N, 4].
        probability: probability for each box.
        seed: int32[2].
        change: (uint8[h', w', 3], the part of the image; seed) -> the same shape.

    Returns:
        uint8[h, w, 3].
    """
    import tensorflow as tf

    size = tf.cast(tf.shape(image)[:2], tf.float32)
    edges = tf.cast(tf.round(boxes * tf.concat([size, size], axis=0)), tf.int32)
    is_chosen = tf.random.stateless_uniform(tf.shape(edges)[:1], seed) < probability
    is_chosen = tf.logical_and(is_chosen, tf.reduce_all(edges[:, 2:] > edges[:, :2], axis=-1))
    edges = tf.boolean_mask(edges, is_chosen)

    def change_one(number: Any, image: Any) -> tuple[Any, Any]:
        y1, x1, y2, x2 = tf.unstack(edges[number])
        rows = image[y1:y2]
        changed = change(rows[:, x1:x2], tf.random.fold_in(seed, number))
        rows = tf.concat([rows[:, :x1], changed, rows[:, x2:]], axis=1)
        return number + 1, tf.concat([image[:y1], rows, image[y2:]], axis=0)

    _, image = tf.while_loop(
        lambda number, _: number < tf.shape(edges)[0],
        change_one,
        (tf.constant(0), image),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None, 3])),
    )
    return image
