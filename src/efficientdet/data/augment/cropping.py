"""Augments a training image: mirrors it, scales it randomly, and crops or pads it (EfficientDet, section 5.1).

All decisions are drawn first (`draw_decisions`), from the example's own seed and the image's size; then only the needed
pixels are decoded, and pixels and boxes are moved alike. Before that, if enabled, the raw image is changed as in
google/automl, by a grid mask and a policy, and then by color jitter, which google/automl does not have.

google/automl scales the image and crops it to the network input. Here a window of whole pixels is cropped and scaled,
which is the same except for rounding: if an image is cropped, height and width of the window are off by up to half a
pixel, so that scales differ from the drawn one by a thousandth or two.
"""

import functools
from typing import Any

from efficientdet.config import AugmentationConfig, Decode, Resize
from efficientdet.data import preprocess
from efficientdet.data.augment import color, holes, policies

_CHANGES = 0  # purpose of a seed derived from the example's; `combinations` defines others


def fill(
    raw: tuple[Any, Any, Any],
    seed: Any,
    image_size: Any,
    resize: Resize,
    config: AugmentationConfig,
    decode: Decode,
    covers: bool = False,
) -> tuple[Any, Any, Any, Any]:
    """Makes an example of one image.

    Args:
        raw: string[], the image file; float32[N, 4], yxyx, fractions of its height and width; int32[N], labels.
        seed: int32[2].
        image_size: height and width of the network input (or of a part of it, then int32[2]), px.
        resize: resampling method.
        config: augmentation settings.
        decode: how the file is decoded.
        covers: scale the image at least so large that there is no padding.

    Returns:
        uint8[H, W, 3]; int32[2], height and width of the image in it; float32[M, 4], yxyx px, the boxes that still
        have an area; int32[M].
    """
    import tensorflow as tf

    encoded, boxes, labels = raw
    if changes_images(config):
        image, boxes = _traced_change(config)(preprocess.decode_tf(encoded), boxes, seed)
        size = tf.shape(image)[:2]
        is_mirrored, window, shrink, valid_size = draw_decisions(seed, size, image_size, config, resize, covers)
        part = preprocess.cut_out(image, window)
    else:
        size = preprocess.image_size_tf(encoded)
        is_mirrored, window, shrink, valid_size = draw_decisions(seed, size, image_size, config, resize, covers)
        part = preprocess.decode_window_tf(encoded, window, shrink, decode)
    pixels = preprocess.resample_tf(mirror_image(part, is_mirrored), valid_size, image_size, resize)
    boxes = move_boxes(boxes, size, window, valid_size, image_size, is_mirrored)
    kept = has_area(boxes)
    return pixels, valid_size, tf.boolean_mask(boxes, kept), tf.boolean_mask(labels, kept)


def changes_images(config: AugmentationConfig) -> bool:
    """Returns whether any of the changes in `change_image` is enabled."""
    strengths = (config.brightness, config.contrast, config.saturation, config.hue, config.grid_mask)
    return config.policy != "none" or any(strengths)


@functools.cache
def _traced_change(config: AugmentationConfig) -> Any:
    """Traces `change_image` once, since policies are large graphs, and a mosaic with mixup uses them eight times."""
    import tensorflow as tf

    signature = [
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([None, 4], tf.float32),
        tf.TensorSpec([2], tf.int32),
    ]
    return tf.function(
        functools.partial(change_image, config=config),
        input_signature=signature,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def change_image(image: Any, boxes: Any, seed: Any, config: AugmentationConfig) -> tuple[Any, Any]:
    """Applies grid mask, policy and color jitter, as far as they are enabled.

    Args:
        image: uint8[h, w, 3].
        boxes: float32[N, 4], yxyx, fractions of the image's height and width.
        seed: int32[2].
        config: augmentation settings.

    Returns:
        uint8[h, w, 3] and float32[N, 4]; boxes moved out of the image have no area.
    """
    import tensorflow as tf

    drawing, masking, changing, jittering = tf.unstack(tf.random.split(tf.random.fold_in(seed, _CHANGES), 4))
    if config.grid_mask:
        is_masked = tf.random.stateless_uniform([], drawing) < config.grid_mask
        image = tf.cond(is_masked, lambda: holes.grid_mask(image, masking), lambda: image)
    image, boxes = policies.apply_policy(
        config.policy,
        image,
        boxes,
        changing,
        num_layers=config.randaugment_layers,
        magnitude=config.randaugment_magnitude,
    )
    image = color.jitter(
        image,
        jittering,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        hue=config.hue,
    )
    return image, boxes


def draw_decisions(
    seed: Any, size: Any, image_size: Any, config: AugmentationConfig, resize: Resize, covers: bool = False
) -> tuple[Any, Any, Any, Any]:
    """Draws the decisions for one image (in google/automl's order).

    f ~ U(scale_min, scale_max); the image is scaled to fit into f * image_size; if that is larger than the network
    input, the crop starts at a random position.

    An image that is needed at half its size or less may be shrunk while it is decoded. With antialiasing, it is shrunk
    as far as possible. The other methods skip pixels when they shrink, in evaluation too, and a network should train on
    what it will see; so only the additional shrinking by f is done this way. The window then lies on the block grid of
    a shrunk JPEG, and up to `shrink` - 1 px after the last whole block are dropped.

    Args:
        seed: int32[2].
        size: int32[2], height and width of the image, px.
        image_size: height and width of the network input (or of a part of it, then int32[2]), px.
        config: augmentation settings.
        resize: resampling method.
        covers: if the scaled image would be smaller than the network input, scale it to just cover it instead.

    Returns:
        is_mirrored: bool[]. window: int32[4], top, left, height and width of the visible part, px of the image.
        shrink: int32[], 1, 2, 4 or 8: how many times smaller the window may be decoded and still be large enough.
        valid_size: int32[2], height and width of the window in the network input, px.
    """
    import tensorflow as tf

    mirror, scale, place_y, place_x = tf.unstack(tf.random.stateless_uniform([4], seed))
    factor = config.scale_min + (config.scale_max - config.scale_min) * scale
    target_size = tf.cast(factor * tf.cast(image_size, tf.float32), tf.int32)
    new_size, _ = preprocess.fitted_size_tf(size, tf.maximum(target_size, 1))
    if covers:
        is_small = tf.reduce_any(new_size < image_size)
        new_size = tf.where(is_small, preprocess.covering_size_tf(size, image_size), new_size)
    valid_size = tf.minimum(new_size, image_size)
    fitted_size, _ = preprocess.fitted_size_tf(size, image_size)
    largest = size if resize == "antialiased" else tf.minimum(size, fitted_size)
    most = tf.reduce_min(largest // new_size)
    shrink = tf.reduce_max(tf.where(most >= preprocess.SHRINKS, preprocess.SHRINKS, 1))
    # From here on in steps of `shrink` px.
    num_steps = size // shrink
    share = tf.cast(valid_size, tf.float32) / tf.cast(new_size, tf.float32)
    seen_steps = tf.cast(tf.round(tf.cast(size, tf.float32) * share / tf.cast(shrink, tf.float32)), tf.int32)
    seen_steps = tf.clip_by_value(seen_steps, 1, num_steps)
    surplus = num_steps - seen_steps
    place = tf.cast(tf.cast(surplus + 1, tf.float32) * tf.stack([place_y, place_x]), tf.int32)
    window = tf.concat([tf.minimum(place, surplus), seen_steps], axis=0) * shrink
    is_mirrored = tf.logical_and(mirror < 0.5, config.horizontal_flip)
    return is_mirrored, window, shrink, valid_size


def move_boxes(boxes: Any, size: Any, window: Any, valid_size: Any, image_size: Any, is_mirrored: Any) -> Any:
    """Moves boxes like the image was cropped, scaled and mirrored, and clips them.

    They are clipped to [0, H - 1] and [0, W - 1] as in google/automl; drop those without area afterwards with
    `has_area`.

    Args:
        boxes: float32[N, 4], yxyx, fractions of the image's height and width.
        size: int32[2], height and width of the image, px.
        window: int32[4], top, left, height and width of the visible part, px of the image.
        valid_size: int32[2], height and width of the window in the network input, px.
        image_size: height and width of the network input, px.
        is_mirrored: bool[].

    Returns:
        float32[N, 4], yxyx px of the network input.
    """
    import tensorflow as tf

    size, corner, extent, valid = (tf.cast(v, tf.float32) for v in (size, window[:2], window[2:], valid_size))
    scale = valid / extent
    corners = (tf.reshape(boxes, [-1, 2, 2]) * size - corner) * scale
    top_left, bottom_right = corners[:, 0], corners[:, 1]
    # Mirroring maps x of one side to width - x of the other.
    width = valid[1]
    mirrored = [top_left[:, 0], width - bottom_right[:, 1], bottom_right[:, 0], width - top_left[:, 1]]
    moved = tf.where(is_mirrored, tf.stack(mirrored, axis=-1), tf.reshape(corners, [-1, 4]))
    last = tf.cast(image_size, tf.float32) - 1.0
    return tf.clip_by_value(moved, 0.0, tf.concat([last, last], axis=0))


def has_area(boxes: Any) -> Any:
    """Returns which boxes have an area: float32[N, 4] -> bool[N]."""
    import tensorflow as tf

    return tf.logical_and(boxes[:, 2] > boxes[:, 0], boxes[:, 3] > boxes[:, 1])


def mirror_image(image: Any, is_mirrored: Any) -> Any:
    """Mirrors an image left to right if `is_mirrored`: uint8[h, w, 3] -> the same."""
    import tensorflow as tf

    # A possibly empty list of axes instead of a branch; a slice with step -1 would take twenty times as long.
    return tf.reverse(image, tf.ones(tf.cast(is_mirrored, tf.int32)[None], tf.int32))
