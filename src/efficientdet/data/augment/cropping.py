"""What happens to a training image: mirrored, scaled at random, cut or padded (EfficientDet, section 5.1).

Every decision is drawn first (`draw_decisions`), from a seed of the example's own and the image's size; then the
pixels that are needed are decoded, and pixels and boxes move alike. Before that, and only if it is switched on, the raw
image is changed as google/automl does: a grid mask, a policy; and then, which it has not, colour jitter.

google/automl scales the image and cuts the network input out of it. Here a window of whole pixels is cut out and
scaled, which is the same but for rounding: where an image is cut, height and width of the window are off by up to half
a pixel, so that scales differ from the drawn one by a thousandth or two.
"""

import functools
from typing import Any

from efficientdet.config import AugmentationConfig, Decode, Resize
from efficientdet.data import preprocess
from efficientdet.data.augment import color, holes, policies

_CHANGES = 0  # what a seed of the image's own is for; `combinations` has other purposes


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
        resize: how the image is resampled.
        config: what happens to it.
        decode: how the file becomes pixels.
        covers: the image is at least so large that nothing is padded.

    Returns:
        uint8[H, W, 3]; int32[2], height and width of the image inside; float32[M, 4], yxyx px, the boxes of which
        something is left; int32[M].
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
    """Tells whether anything that `change_image` applies is switched on."""
    strengths = (config.brightness, config.contrast, config.saturation, config.hue, config.grid_mask)
    return config.policy != "none" or any(strengths)


@functools.cache
def _traced_change(config: AugmentationConfig) -> Any:
    """Makes a graph of `change_image` once: policies are large, and a mosaic with mixup has them eight times."""
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
    """Applies grid mask, policy and colour jitter, each if it is switched on.

    Args:
        image: uint8[h, w, 3].
        boxes: float32[N, 4], yxyx, fractions of the image's height and width.
        seed: int32[2].
        config: which of them.

    Returns:
        uint8[h, w, 3] and float32[N, 4]; boxes that have left the image have no area.
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
    """Draws the decisions for one image (google/automl's order).

    f ~ U(scale_min, scale_max); the image is scaled to fit into f * image_size; where it is larger than the network
    input, the cut begins anywhere.

    An image that is needed at half its size or less may be shrunk when it is decoded. Antialiased, it is as far as it
    can be. The other methods skip pixels where they shrink, in evaluation too, and a network should be trained on what
    it is to see; there only what f adds is shrunk so. The window then lies on the grid of the blocks that a shrunk JPEG
    has, and up to `shrink` - 1 px beyond the last whole one are left away.

    Args:
        seed: int32[2].
        size: int32[2], height and width of the image, px.
        image_size: height and width of the network input (or of a part of it, then int32[2]), px.
        config: ranges.
        resize: how the image is resampled.
        covers: where the scaled image would be smaller than the network input, it just covers it instead.

    Returns:
        is_mirrored: bool[]. window: int32[4], top, left, height and width of the part that is seen, px of the image.
        shrink: int32[], 1, 2, 4 or 8: how many times smaller the window may be decoded; it is still as large as it is
        seen.
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
    # In steps of `shrink` px from here on.
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
    """Moves boxes as the image was cut, scaled and mirrored; what lies outside is clipped.

    Clipped to [0, H - 1] and [0, W - 1] as in google/automl; boxes without area afterwards are to be dropped, see
    `has_area`.

    Args:
        boxes: float32[N, 4], yxyx, fractions of the image's height and width.
        size: int32[2], height and width of the image, px.
        window: int32[4], top, left, height and width of the part that is seen, px of the image.
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
    # Mirrored: x of one side becomes width - x of the other.
    width = valid[1]
    mirrored = [top_left[:, 0], width - bottom_right[:, 1], bottom_right[:, 0], width - top_left[:, 1]]
    moved = tf.where(is_mirrored, tf.stack(mirrored, axis=-1), tf.reshape(corners, [-1, 4]))
    last = tf.cast(image_size, tf.float32) - 1.0
    return tf.clip_by_value(moved, 0.0, tf.concat([last, last], axis=0))


def has_area(boxes: Any) -> Any:
    """Tells which boxes have an area: float32[N, 4] -> bool[N]."""
    import tensorflow as tf

    return tf.logical_and(boxes[:, 2] > boxes[:, 0], boxes[:, 3] > boxes[:, 1])


def mirror_image(image: Any, is_mirrored: Any) -> Any:
    """Mirrors an image left to right if `is_mirrored`: uint8[h, w, 3] -> the same."""
    import tensorflow as tf

    # A list of axes that may be empty, instead of a branch. A slice of step -1 would take twenty times as long.
    return tf.reverse(image, tf.ones(tf.cast(is_mirrored, tf.int32)[None], tf.int32))
