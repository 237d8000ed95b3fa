"""Converts images to network inputs and boxes back: decode, resample, letterbox.

The letterbox scales an image to fit the network input, keeping its aspect ratio, and pads it with zeros at the bottom
and right. Resampling is bilinear, in float32, rounded to uint8 at the end (google/automl and NVIDIA kept floats). A new
pixel x samples the image at a position and blends the pixels whose centers are near; r = old size / new size:

    half_pixel   at (x + 1/2) r, the two nearest (google/automl since July 2020)
    legacy       at x r + 1/2, the two nearest: the first pixels coincide (NVIDIA, google/automl before July 2020)
    antialiased  at (x + 1/2) r, all within max(r, 1), weighted by a triangle (Pillow, which the PyTorch port uses)

There are two implementations: TensorFlow for the input pipeline, and NumPy for prediction, which does not need
TensorFlow. A test checks that they are equal.
"""

import functools
from typing import Any

import numpy as np

from efficientdet.config import Decode, Resize

SHRINKS = (1, 2, 4, 8)
"""Factors by which JPEG decoding can shrink an image."""


def fitted_size(
    size: tuple[int, int], target_size: tuple[int, int] | tuple[np.float32, np.float32]
) -> tuple[tuple[int, int], float]:
    """Computes the size of an image scaled to fit into `target_size`.

    Computed in float32 and truncated, like the reference implementations, which loses a pixel at some sizes: a long
    side of 427 becomes 511 at 512.

    Args:
        size: height and width, px.
        target_size: height and width to fit into, px.

    Returns:
        Height and width, at least 1; and the scale.
    """
    height, width = (np.float32(side) for side in size)
    scale = min(np.float32(target_size[0]) / height, np.float32(target_size[1]) / width)
    return (max(int(height * scale), 1), max(int(width * scale), 1)), float(scale)


def letterbox(
    image: np.ndarray, image_size: tuple[int, int], method: Resize
) -> tuple[np.ndarray, tuple[int, int], float]:
    """Scales an image to fit and pads it.

    Args:
        image: uint8[h, w, 3].
        image_size: height and width of the network input, px.
        method: resampling method.

    Returns:
        uint8[H, W, 3]; height and width of the image in it; px of the input per px of the image.
    """
    (height, width), scale = fitted_size((image.shape[0], image.shape[1]), image_size)
    padded = np.zeros((*image_size, 3), np.uint8)
    padded[:height, :width] = resize(image, (height, width), method)
    return padded, (height, width), scale


def resize(image: np.ndarray, size: tuple[int, int], method: Resize) -> np.ndarray:
    """Resamples bilinearly.

    Args:
        image: uint8[h, w, 3].
        size: new height and width, px.
        method: resampling method.

    Returns:
        uint8[*size, 3].
    """
    if method == "antialiased":
        return _resize_antialiased(image, size)
    top, bottom, share_y = _neighbours(image.shape[0], size[0], method)
    left, right, share_x = _neighbours(image.shape[1], size[1], method)
    share_y, share_x = share_y[:, None], share_x.repeat(3)
    resized = np.empty((size[0], size[1] * 3), np.uint8)
    # A few rows at a time, which stay in the CPU cache, are eight times as fast as the whole image at once.
    for start in range(0, size[0], 32):
        block = slice(start, start + 32)
        rows = np.unique(np.concatenate([top[block], bottom[block]]))
        wide = image[rows]
        columns = [wide.take(places, axis=1).reshape(len(rows), -1) for places in (left, right)]
        narrow = _mix(columns[0].astype(np.float32), columns[1].astype(np.float32), share_x)
        places = [np.searchsorted(rows, neighbours[block]) for neighbours in (top, bottom)]
        mixed = _mix(narrow.take(places[0], axis=0), narrow.take(places[1], axis=0), share_y[block])
        resized[block] = np.rint(mixed, out=mixed)
    return resized.reshape(*size, 3)


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Computes first * (1 - share) + second * share in place."""
    first *= 1 - share
    second *= share
    first += second
    return first


def _resize_antialiased(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resamples with Pillow in float32, since in uint8 it rounds twice, after the rows and after the columns."""
    from PIL import Image

    planes = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
    resized = [np.asarray(plane.resize((size[1], size[0]), Image.Resampling.BILINEAR)) for plane in planes]
    return np.rint(np.stack(resized, axis=-1)).astype(np.uint8)


def _neighbours(size: int, new_size: int, method: Resize) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes, for each new pixel, the two old pixels around its sampling position, and the weight of the second."""
    shift = np.float32(0.0 if method == "legacy" else 0.5)
    centers = (np.arange(new_size, dtype=np.float32) + shift) * np.float32(size / new_size) - shift
    floor = np.floor(centers)
    first = np.clip(floor, 0, size - 1).astype(np.int64)
    second = np.clip(np.ceil(centers), 0, size - 1).astype(np.int64)
    return first, second, (centers - floor).astype(np.float32)


def undo_letterbox(boxes: np.ndarray, scale: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Maps boxes from the network input back to the image, and clips them to it.

    The reference implementations do not clip, but a box beyond the border is useless, and clipping can only increase
    its overlap with the ground truth.

    Args:
        boxes: float32[..., K, 4], yxyx px of the network input.
        scale: float32[...], px of the input per px of the image.
        size: int32[..., 2], height and width of the image, px.

    Returns:
        float32[..., K, 4], yxyx px of the image.
    """
    boxes = boxes / np.asarray(scale, np.float32)[..., None, None]
    limits = np.concatenate([size, size], axis=-1)[..., None, :].astype(np.float32)
    return np.clip(boxes, 0, limits)


def decode_tf(encoded: Any) -> Any:
    """Decodes an image in TensorFlow: string[] -> uint8[h, w, 3].

    JPEGs are decoded with the accurate inverse DCT, so that pixels equal Pillow's.
    """
    import tensorflow as tf

    def jpeg() -> Any:
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")

    def other() -> Any:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    image.set_shape([None, None, 3])
    return image


def image_size_tf(encoded: Any) -> Any:
    """Reads height and width of an image in TensorFlow: string[] -> int32[2], px. JPEGs are not decoded for it."""
    import tensorflow as tf

    def header() -> Any:
        return tf.io.extract_jpeg_shape(encoded)[:2]

    return tf.cond(tf.io.is_jpeg(encoded), header, lambda: tf.shape(decode_tf(encoded))[:2])


def decode_window_tf(encoded: Any, window: Any, shrink: Any, decode: Decode) -> Any:
    """Decodes a part of an image in TensorFlow, shrunk if that saves work.

    A JPEG is decoded only inside the window, and at a fraction of its size: its blocks of 8 x 8 px are inverted to
    blocks of 4, 2 or 1, with each pixel the mean of those it replaces. The cropping is exact except for the color of
    the first and last column and row, which is interpolated without the neighbors outside; the shrinking is smoother
    than resampling. The fast inverse DCT would darken by up to one gray level and save no measurable time.

    Args:
        encoded: string[].
        window: int32[4], top, left, height and width, px; multiples of `shrink`.
        shrink: int32[], 1, 2, 4 or 8.
        decode: exact: the whole image is decoded like in `decode_tf`, then cropped, and not shrunk.

    Returns:
        uint8[h, w, 3]; the window's height and width over `shrink`, or over 1.
    """
    import tensorflow as tf

    def part_of_jpeg(shrink: int) -> Any:
        options = {"channels": 3, "ratio": shrink, "dct_method": "INTEGER_ACCURATE"}
        return tf.io.decode_and_crop_jpeg(encoded, window // shrink, **options)

    def part() -> Any:
        return cut_out(decode_tf(encoded), window)

    if decode == "exact":
        return part()
    branches = [part, *(functools.partial(part_of_jpeg, shrink) for shrink in SHRINKS)]
    which = tf.searchsorted(SHRINKS, shrink[None])[0] + 1
    image = tf.switch_case(tf.where(tf.io.is_jpeg(encoded), which, 0), branches)
    image.set_shape([None, None, 3])
    return image


def cut_out(image: Any, window: Any) -> Any:
    """Crops uint8[h, w, 3] to a window, int32[4] (top, left, height, width)."""
    import tensorflow as tf

    return tf.slice(image, tf.concat([window[:2], [0]], axis=0), tf.concat([window[2:], [3]], axis=0))


def resample_tf(image: Any, size: Any, image_size: Any, method: Resize) -> Any:
    """Scales an image to `size` and pads it at the bottom and right.

    Args:
        image: uint8[h, w, 3].
        size: int32[2], height and width after scaling, px; at most `image_size`.
        image_size: height and width of the result, px; int32[2] if not known in advance.
        method: resampling method.

    Returns:
        uint8[H, W, 3].
    """
    import tensorflow as tf

    image = image[None]
    if method == "antialiased":
        scale = tf.cast(size, tf.float32) / tf.cast(tf.shape(image)[1:3], tf.float32)
        resampled = tf.raw_ops.ScaleAndTranslate(
            images=image, size=size, scale=scale, translation=tf.zeros([2]), kernel_type="triangle", antialias=True
        )
    else:
        half_pixel = method == "half_pixel"

        def bilinear(images: Any) -> Any:
            return tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=half_pixel)

        # The operation is twice as fast on floats, but converting a much larger image costs more than that: each new
        # pixel reads only four of it.
        is_large = tf.size(image) > 8 * 3 * tf.reduce_prod(size)
        resampled = tf.cond(is_large, lambda: bilinear(image), lambda: bilinear(tf.cast(image, tf.float32)))
    # Rounds and converts to integers at once (the scale is 1), in half the time of tf.round and tf.cast.
    whole, _, _ = tf.raw_ops.QuantizeV2(
        input=resampled[0], min_range=0.0, max_range=255.0, T=tf.quint8, mode="SCALED", round_mode="HALF_TO_EVEN"
    )
    pixels = tf.bitcast(whole, tf.uint8)
    height, width = tf.unstack(size)
    # Concatenates slices of a constant: tf.pad takes three times as long, and tf.zeros as long as the concatenation.
    black = tf.zeros([image_size[0] * image_size[1] * 3], tf.uint8)
    right, bottom = [height, image_size[1] - width, 3], [image_size[0] - height, image_size[1], 3]
    for shape, axis in ((right, 1), (bottom, 0)):
        pixels = tf.concat([pixels, tf.reshape(black[: tf.reduce_prod(shape)], shape)], axis)
    known_size = [None, None] if tf.is_tensor(image_size) else image_size
    return tf.ensure_shape(pixels, [*known_size, 3])


def fitted_size_tf(size: Any, target_size: Any) -> tuple[Any, Any]:
    """Computes `fitted_size` in TensorFlow.

    Args:
        size: int32[2], height and width, px.
        target_size: int32[2].

    Returns:
        int32[2], and float32[], the scale.
    """
    import tensorflow as tf

    sides = tf.cast(size, tf.float32)
    scale = tf.reduce_min(tf.cast(target_size, tf.float32) / sides)
    return tf.maximum(tf.cast(sides * scale, tf.int32), 1), scale


def covering_size_tf(size: Any, target_size: Any) -> Any:
    """Computes, in TensorFlow, the size of an image scaled to just cover `target_size`.

    Args:
        size: int32[2], height and width, px.
        target_size: int32[2].

    Returns:
        int32[2].
    """
    import tensorflow as tf

    sides = tf.cast(size, tf.float32)
    scale = tf.reduce_max(tf.cast(target_size, tf.float32) / sides)
    return tf.maximum(tf.cast(tf.round(sides * scale), tf.int32), target_size)
