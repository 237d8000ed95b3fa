"""Changes to pixel values only: blends, thresholds, histograms, color jitter.

Images are uint8[h, w, 3], RGB, before and after; results are rounded, not truncated as in google/automl. `blend` with
the factor 1 returns the image unchanged, bit for bit.
"""

from typing import Any


def jitter(image: Any, seed: Any, *, brightness: float, contrast: float, saturation: float, hue: float) -> Any:
    """Changes brightness, contrast, saturation and hue randomly, in this order; a strength of 0 costs nothing.

    Args:
        image: uint8[h, w, 3].
        seed: int32[2].
        brightness: b; the image is multiplied by U(1 - b, 1 + b).
        contrast: the same for the difference of each pixel from the mean gray.
        saturation: the same for the difference of each pixel from its own gray.
        hue: h; hues are shifted by U(-h, h) of a full turn.

    Returns:
        uint8[h, w, 3].
    """
    import tensorflow as tf

    draws = tf.unstack(tf.random.stateless_uniform([4], seed, -1.0, 1.0))
    if brightness:
        image = change_brightness(image, 1.0 + brightness * draws[0])
    if contrast:
        image = change_contrast(image, 1.0 + contrast * draws[1])
    if saturation:
        image = change_saturation(image, 1.0 + saturation * draws[2])
    if hue:
        image = _to_pixels(255.0 * tf.image.adjust_hue(tf.cast(image, tf.float32) / 255.0, hue * draws[3]))
    return image


def blend(ground: Any, image: Any, factor: Any) -> Any:
    """Computes ground + factor * (image - ground): 0 returns the ground, 1 the image, more exaggerates.

    Args:
        ground: float32, broadcastable to the image.
        image: uint8[h, w, 3].
        factor: float32[].

    Returns:
        uint8[h, w, 3].
    """
    import tensorflow as tf

    return _to_pixels(ground + factor * (tf.cast(image, tf.float32) - ground))


def change_brightness(image: Any, factor: Any) -> Any:
    """Blends with black."""
    return blend(0.0, image, factor)


def change_contrast(image: Any, factor: Any) -> Any:
    """Blends with the mean gray.

    google/automl intends this too, but sums a histogram instead of averaging the grays, which is white for images of
    more than 255 x 256 pixels.
    """
    import tensorflow as tf

    return blend(tf.reduce_mean(_grey(image)), image, factor)


def change_saturation(image: Any, factor: Any) -> Any:
    """Blends with the gray image."""
    return blend(_grey(image), image, factor)


def sharpen(image: Any, factor: Any) -> Any:
    """Blends with the smoothed image: 3 x 3 pixels, with a weight of 5/13 for the center."""
    import tensorflow as tf

    kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13.0
    padded = tf.pad(tf.cast(image, tf.float32), [[1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    filters = tf.tile(kernel[:, :, None, None], [1, 1, 3, 1])
    smooth = tf.nn.depthwise_conv2d(padded[None], filters, [1, 1, 1, 1], "VALID")[0]
    return blend(smooth, image, factor)


def posterize(image: Any, num_bits: int) -> Any:
    """Keeps the highest 1 to 8 bits of each value."""
    import tensorflow as tf

    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2 ** (8 - num_bits), tf.uint8))


def solarize(image: Any, threshold: int) -> Any:
    """Inverts the values that are at least `threshold`; nothing if it is 256 or more."""
    import tensorflow as tf

    return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


def solarize_add(image: Any, addition: int) -> Any:
    """Adds `addition` to the values below 128, up to 255."""
    import tensorflow as tf

    values = tf.cast(image, tf.int32)
    return tf.where(values < 128, tf.cast(tf.minimum(values + addition, 255), tf.uint8), image)


def auto_contrast(image: Any) -> Any:
    """Stretches each channel to 0..255; a constant channel is unchanged."""
    import tensorflow as tf

    values = tf.cast(image, tf.float32)
    low, high = tf.reduce_min(values, axis=(0, 1)), tf.reduce_max(values, axis=(0, 1))
    stretched = (values - low) * (255.0 / tf.maximum(high - low, 1.0))
    return _to_pixels(tf.where(high > low, stretched, values))


def equalize(image: Any) -> Any:
    """Equalizes the histogram of each channel, like Pillow."""
    import tensorflow as tf

    return tf.stack([_equalize_channel(channel) for channel in tf.unstack(image, axis=-1)], axis=-1)


def _equalize_channel(channel: Any) -> Any:
    """Maps each value by the cumulative histogram: uint8[h, w] -> the same."""
    import tensorflow as tf

    values = tf.cast(channel, tf.int32)
    histogram = tf.math.bincount(tf.reshape(values, [-1]), minlength=256, maxlength=256)
    step = (tf.size(values) - histogram[tf.reduce_max(values)]) // 255
    table = (tf.cumsum(histogram, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    return tf.cast(tf.gather(table, values), tf.uint8)


def _grey(image: Any) -> Any:
    """Computes luma (ITU-R BT.601): uint8[h, w, 3] -> float32[h, w, 1]."""
    import tensorflow as tf

    return tf.reduce_sum(tf.cast(image, tf.float32) * [0.299, 0.587, 0.114], axis=-1, keepdims=True)


def _to_pixels(values: Any) -> Any:
    """Rounds float32 to uint8; values outside 0..255 saturate."""
    import tensorflow as tf

    return tf.saturate_cast(tf.round(values), tf.uint8)
