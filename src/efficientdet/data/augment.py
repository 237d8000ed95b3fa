"""What happens to a training picture: mirrored, scaled at random, cut or padded (EfficientDet, section 5.1).

Every decision is drawn first (`draw_decisions`), from a seed of the example's own; then pixels and boxes move alike.
"""

from typing import Any

from efficientdet.config import AugmentationConfig
from efficientdet.data import preprocess


def draw_decisions(
    seed: Any, size: Any, image_size: tuple[int, int], config: AugmentationConfig
) -> tuple[Any, Any, Any]:
    """Draws the decisions for one picture (google/automl's order and rounding).

    f ~ U(scale_min, scale_max); the picture is scaled to fit into f * image_size; where it is larger than the network
    input, the cut begins anywhere.

    Args:
        seed: int32[2].
        size: int32[2], height and width of the picture, px.
        image_size: height and width of the network input, px.
        config: ranges.

    Returns:
        is_mirrored: bool[]; new_size: int32[2]; offset: int32[2], y and x, px.
    """
    import tensorflow as tf

    mirror, scale, place_y, place_x = tf.unstack(tf.random.stateless_uniform([4], seed))
    factor = config.scale_min + (config.scale_max - config.scale_min) * scale
    target_size = tf.cast(factor * tf.constant(image_size, tf.float32), tf.int32)
    new_size, _ = preprocess.fitted_size_tf(size, tf.maximum(target_size, 1))
    surplus = tf.cast(tf.maximum(new_size - image_size, 0), tf.float32)
    offset = tf.cast(surplus * tf.stack([place_y, place_x]), tf.int32)
    is_mirrored = tf.logical_and(mirror < 0.5, config.horizontal_flip)
    return is_mirrored, new_size, offset


def move_boxes(boxes: Any, new_size: Any, offset: Any, image_size: tuple[int, int], is_mirrored: Any) -> Any:
    """Moves boxes as the picture was mirrored, scaled and cut; what lies outside is clipped.

    Clipped to [0, H - 1] and [0, W - 1] as in google/automl; boxes without area afterwards are to be dropped, see
    `has_area`.

    Args:
        boxes: float32[N, 4], yxyx, fractions of the picture's height and width.
        new_size: int32[2], height and width after scaling, px.
        offset: int32[2], y and x of the cut, px.
        image_size: height and width of the network input, px.
        is_mirrored: bool[].

    Returns:
        float32[N, 4], yxyx px of the network input.
    """
    import tensorflow as tf

    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    x1, x2 = tf.where(is_mirrored, 1.0 - x2, x1), tf.where(is_mirrored, 1.0 - x1, x2)
    height, width = tf.unstack(tf.cast(new_size, tf.float32))
    top, left = tf.unstack(tf.cast(offset, tf.float32))
    last_y, last_x = image_size[0] - 1.0, image_size[1] - 1.0
    return tf.stack(
        [
            tf.clip_by_value(y1 * height - top, 0.0, last_y),
            tf.clip_by_value(x1 * width - left, 0.0, last_x),
            tf.clip_by_value(y2 * height - top, 0.0, last_y),
            tf.clip_by_value(x2 * width - left, 0.0, last_x),
        ],
        axis=-1,
    )


def has_area(boxes: Any) -> Any:
    """Tells which boxes have an area: float32[N, 4] -> bool[N]."""
    import tensorflow as tf

    return tf.logical_and(boxes[:, 2] > boxes[:, 0], boxes[:, 3] > boxes[:, 1])


def mirror_image(image: Any, is_mirrored: Any) -> Any:
    """Mirrors a picture left to right if `is_mirrored`: uint8[h, w, 3] -> the same."""
    import tensorflow as tf

    return tf.cond(is_mirrored, lambda: image[:, ::-1], lambda: image)
