"""What happens to a training picture: mirrored, scaled at random, cut or padded (EfficientDet, section 5.1).

Every decision is drawn first (`draw_decisions`), from a seed of the example's own; then pixels and boxes move alike.
Before that, and only if it is switched on, the raw picture is changed as google/automl does: a grid mask, a policy; and
then, which it has not, colour jitter.
"""

import functools
from typing import Any

from efficientdet.config import AugmentationConfig, Resize
from efficientdet.data import autoaugment, holes, preprocess, tones

_CHANGES = 0  # what a seed of the picture's own is for; `combinations` has other purposes


def fill(
    raw: tuple[Any, Any, Any],
    seed: Any,
    image_size: Any,
    resize: Resize,
    config: AugmentationConfig,
    covers: bool = False,
) -> tuple[Any, Any, Any, Any]:
    """Makes an example of one picture.

    Args:
        raw: uint8[h, w, 3]; float32[N, 4], yxyx, fractions of the picture's height and width; int32[N], labels.
        seed: int32[2].
        image_size: height and width of the network input (or of a part of it, then int32[2]), px.
        resize: how the picture is resampled.
        config: what happens to it.
        covers: the picture is at least so large that nothing is padded.

    Returns:
        uint8[H, W, 3]; int32[2], height and width of the picture inside; float32[M, 4], yxyx px, the boxes of which
        something is left; int32[M].
    """
    import tensorflow as tf

    image, boxes, labels = raw
    if changes_pictures(config):
        image, boxes = _traced_change(config)(image, boxes, seed)
    is_mirrored, new_size, offset = draw_decisions(seed, tf.shape(image)[:2], image_size, config, covers)
    pixels, valid_size = preprocess.resample_tf(mirror_image(image, is_mirrored), new_size, offset, image_size, resize)
    boxes = move_boxes(boxes, new_size, offset, image_size, is_mirrored)
    kept = has_area(boxes)
    return pixels, valid_size, tf.boolean_mask(boxes, kept), tf.boolean_mask(labels, kept)


def changes_pictures(config: AugmentationConfig) -> bool:
    """Tells whether anything that `change_picture` applies is switched on."""
    strengths = (config.brightness, config.contrast, config.saturation, config.hue, config.grid_mask)
    return config.policy != "none" or any(strengths)


@functools.cache
def _traced_change(config: AugmentationConfig) -> Any:
    """Makes a graph of `change_picture` once: policies are large, and a mosaic with mixup has them eight times."""
    import tensorflow as tf

    signature = [
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([None, 4], tf.float32),
        tf.TensorSpec([2], tf.int32),
    ]
    return tf.function(
        functools.partial(change_picture, config=config),
        input_signature=signature,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def change_picture(image: Any, boxes: Any, seed: Any, config: AugmentationConfig) -> tuple[Any, Any]:
    """Applies grid mask, policy and colour jitter, each if it is switched on.

    Args:
        image: uint8[h, w, 3].
        boxes: float32[N, 4], yxyx, fractions of the picture's height and width.
        seed: int32[2].
        config: which of them.

    Returns:
        uint8[h, w, 3] and float32[N, 4]; boxes that have left the picture have no area.
    """
    import tensorflow as tf

    drawing, masking, changing, jittering = tf.unstack(tf.random.split(tf.random.fold_in(seed, _CHANGES), 4))
    if config.grid_mask:
        is_masked = tf.random.stateless_uniform([], drawing) < config.grid_mask
        image = tf.cond(is_masked, lambda: holes.grid_mask(image, masking), lambda: image)
    image, boxes = autoaugment.apply_policy(
        config.policy,
        image,
        boxes,
        changing,
        num_layers=config.randaugment_layers,
        magnitude=config.randaugment_magnitude,
    )
    image = tones.jitter(
        image,
        jittering,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        hue=config.hue,
    )
    return image, boxes


def draw_decisions(
    seed: Any, size: Any, image_size: Any, config: AugmentationConfig, covers: bool = False
) -> tuple[Any, Any, Any]:
    """Draws the decisions for one picture (google/automl's order and rounding).

    f ~ U(scale_min, scale_max); the picture is scaled to fit into f * image_size; where it is larger than the network
    input, the cut begins anywhere.

    Args:
        seed: int32[2].
        size: int32[2], height and width of the picture, px.
        image_size: height and width of the network input (or of a part of it, then int32[2]), px.
        config: ranges.
        covers: where the scaled picture would be smaller than the network input, it just covers it instead.

    Returns:
        is_mirrored: bool[]; new_size: int32[2]; offset: int32[2], y and x, px.
    """
    import tensorflow as tf

    mirror, scale, place_y, place_x = tf.unstack(tf.random.stateless_uniform([4], seed))
    factor = config.scale_min + (config.scale_max - config.scale_min) * scale
    target_size = tf.cast(factor * tf.cast(image_size, tf.float32), tf.int32)
    new_size, _ = preprocess.fitted_size_tf(size, tf.maximum(target_size, 1))
    if covers:
        is_small = tf.reduce_any(new_size < image_size)
        new_size = tf.where(is_small, preprocess.covering_size_tf(size, image_size), new_size)
    surplus = tf.cast(tf.maximum(new_size - image_size, 0), tf.float32)
    offset = tf.cast(surplus * tf.stack([place_y, place_x]), tf.int32)
    is_mirrored = tf.logical_and(mirror < 0.5, config.horizontal_flip)
    return is_mirrored, new_size, offset


def move_boxes(boxes: Any, new_size: Any, offset: Any, image_size: Any, is_mirrored: Any) -> Any:
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
    last_y, last_x = tf.unstack(tf.cast(image_size, tf.float32) - 1.0)
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
