"""Training examples, including those made of several images: mosaic and mixup.

A mosaic (YOLOv4, section 3.4) splits the network input at a random point into four tiles, each filled like a small
network input of its own: the image is mirrored, scaled and cropped as usual, but at least as large as its tile.
google/automl's code for mosaics is not connected to its input, and stretches the images. Mixup (Zhang et al. 2018)
blends two examples. The boxes of all images count fully.

Everything is drawn from the example's seed, including the other images. A raw image is (encoded, boxes, labels):
string[], the file; float32[N, 4], yxyx, fractions; int32[N]. An example is (pixels, valid_size, boxes, labels):
uint8[H, W, 3]; int32[2], px; float32[M, 4], yxyx px of the network input; int32[M].
"""

from collections.abc import Callable
from typing import Any

from efficientdet.config import AugmentationConfig, Decode, Resize
from efficientdet.data.augment import cropping, geometry

_LEAST_SHARE = 0.25  # minimum height and width of a tile, fractions of the network input's
_MOSAIC, _MIXUP = 1, 2  # purposes of seeds derived from the example's seed

_Raw = tuple[Any, Any, Any]
_Example = tuple[Any, Any, Any, Any]


def num_images(config: AugmentationConfig) -> int:
    """Returns the largest number of images in one example."""
    return (4 if config.mosaic else 1) * (2 if config.mixup else 1)


def make_example(
    raw: _Raw,
    draw_other: Callable[[Any], _Raw],
    seed: Any,
    *,
    image_size: tuple[int, int],
    resize: Resize,
    config: AugmentationConfig,
    decode: Decode,
) -> _Example:
    """Makes a training example from an image, and from others if the config says so.

    Args:
        raw: the image.
        draw_other: returns a random raw image for a seed, int32[2].
        seed: int32[2].
        image_size: H and W, px.
        resize: resampling method.
        config: augmentation settings.
        decode: how files are decoded.

    Returns:
        pixels, valid_size, boxes, labels.
    """
    import tensorflow as tf

    example = _make_unmixed(raw, draw_other, seed, image_size, resize, config, decode)
    if not config.mixup:
        return example
    drawing, weighing, choosing, own = _seeds(seed, _MIXUP, 4)

    def mixed() -> _Example:
        other = _make_unmixed(draw_other(choosing), draw_other, own, image_size, resize, config, decode)
        return mix(example, other, _draw_share(weighing, config.mixup_alpha))

    is_mixed = tf.random.stateless_uniform([], drawing) < config.mixup
    return tf.cond(is_mixed, mixed, lambda: example)


def _make_unmixed(
    raw: _Raw,
    draw_other: Callable[[Any], _Raw],
    seed: Any,
    image_size: tuple[int, int],
    resize: Resize,
    config: AugmentationConfig,
    decode: Decode,
) -> _Example:
    """Makes a mosaic with the config's probability, or else an example of one image."""
    import tensorflow as tf

    def single() -> _Example:
        return cropping.fill(raw, seed, image_size, resize, config, decode)

    if not config.mosaic:
        return single()
    drawing, parting, *others = _seeds(seed, _MOSAIC, 8)

    def mosaic() -> _Example:
        heights, widths = draw_tiles(parting, image_size)
        tiles = []
        for number, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            image, own = (draw_other(others[number - 1]), others[number + 2]) if number else (raw, seed)
            size = tf.stack([heights[row], widths[column]])
            tiles.append(cropping.fill(image, own, size, resize, config, decode, covers=True))
        return join(tiles, image_size)

    is_mosaic = tf.random.stateless_uniform([], drawing) < config.mosaic
    return tf.cond(is_mosaic, mosaic, single)


def draw_tiles(seed: Any, image_size: tuple[int, int]) -> tuple[Any, Any]:
    """Draws the heights of the upper and the lower tiles, and the widths of the left and the right ones.

    Args:
        seed: int32[2].
        image_size: H and W, px.

    Returns:
        Two int32[2], px.
    """
    import tensorflow as tf

    share = tf.random.stateless_uniform([2], seed, _LEAST_SHARE, 1.0 - _LEAST_SHARE)
    middle = tf.cast(tf.round(share * tf.cast(image_size, tf.float32)), tf.int32)
    rest = tf.constant(image_size) - middle
    return tf.stack([middle[0], rest[0]]), tf.stack([middle[1], rest[1]])


def join(tiles: list[_Example], image_size: tuple[int, int]) -> _Example:
    """Joins four filled tiles: upper left, upper right, lower left, lower right."""
    import tensorflow as tf

    upper, lower = (tf.concat([left[0], right[0]], axis=1) for left, right in (tiles[:2], tiles[2:]))
    pixels = tf.ensure_shape(tf.concat([upper, lower], axis=0), [*image_size, 3])
    height, width = tf.unstack(tf.cast(tf.shape(tiles[0][0])[:2], tf.float32))
    corners = ((0.0, 0.0), (0.0, width), (height, 0.0), (height, width))
    moved = [tile[2] + tf.stack([y, x, y, x]) for tile, (y, x) in zip(tiles, corners, strict=True)]
    labels = tf.concat([tile[3] for tile in tiles], axis=0)
    return pixels, tf.constant(image_size), tf.concat(moved, axis=0), labels


def mix(first: _Example, second: _Example, share: Any) -> _Example:
    """Blends two examples.

    Where only one of them has an image, its pixels are unchanged; where neither has, the result is gray, since only the
    area right of and below all pixels counts as padding.

    Args:
        first: an example.
        second: another example.
        share: float32[], weight of the first one's pixels; that of the second is 1 - share.

    Returns:
        An example with the boxes of both.
    """
    import tensorflow as tf

    weights = [_cover(example) * weight for example, weight in ((first, share), (second, 1.0 - share))]
    weighted = [
        tf.cast(example[0], tf.float32) * weight for example, weight in zip((first, second), weights, strict=True)
    ]
    total = weights[0] + weights[1]
    pixels = tf.where(total > 0, tf.math.divide_no_nan(weighted[0] + weighted[1], total), float(geometry.GREY))
    valid_size = tf.maximum(first[1], second[1])
    is_valid = _cover((first[0], valid_size, None, None)) > 0
    pixels = tf.where(is_valid, tf.saturate_cast(tf.round(pixels), tf.uint8), tf.constant(0, tf.uint8))
    return pixels, valid_size, tf.concat([first[2], second[2]], axis=0), tf.concat([first[3], second[3]], axis=0)


def _cover(example: _Example) -> Any:
    """Marks the pixels of the image inside an example: float32[H, W, 1], 1 or 0."""
    import tensorflow as tf

    height, width, _ = example[0].shape
    rows = tf.sequence_mask(example[1][0], height, tf.float32)
    return (rows[:, None] * tf.sequence_mask(example[1][1], width, tf.float32)[None])[..., None]


def _draw_share(seed: Any, alpha: float) -> Any:
    """Draws from Beta(alpha, alpha): float32[]; mostly about 1/2 if alpha is large, 0 or 1 if it is small."""
    import tensorflow as tf

    first, second = tf.unstack(tf.random.stateless_gamma([2], seed, alpha))
    return tf.math.divide_no_nan(first, first + second)


def _seeds(seed: Any, purpose: int, count: int) -> list[Any]:
    """Derives seeds that no other purpose uses."""
    import tensorflow as tf

    return tf.unstack(tf.random.split(tf.random.fold_in(seed, purpose), count))
