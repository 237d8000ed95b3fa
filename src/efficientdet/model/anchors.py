"""The anchor boxes of an image size (RetinaNet, section 4; EfficientDet's sizes and shapes).

An anchor of level l, octave o and shape r is centered in its cell and has
height = anchor_scale * stride_y(l) * 2^(o / num_octaves) * r_height, and width likewise.
Order: level, y, x, octave, shape; the channels of the heads have the same order.
"""

import numpy as np

from efficientdet.config import ModelConfig


def feature_sizes(image_size: tuple[int, int], max_level: int) -> list[tuple[int, int]]:
    """Computes height and width of the features of levels 0..max_level.

    Each level is half the previous one, rounded up as in convolutions with SAME padding, so any image size works.

    Args:
        image_size: height and width, px.
        max_level: last level.

    Returns:
        (height, width) of each level; level 0 is the image.
    """
    sizes = [image_size]
    for _ in range(max_level):
        height, width = sizes[-1]
        sizes.append(((height - 1) // 2 + 1, (width - 1) // 2 + 1))
    return sizes


def anchor_boxes(config: ModelConfig, image_size: tuple[int, int] | None = None) -> np.ndarray:
    """Computes the anchors of an image size.

    Strides are image size / feature size for each axis and may not be whole; anchors may extend beyond the image.
    Computed in float64 as in google/automl, then cast.

    Args:
        config: levels, scale, octaves and shapes.
        image_size: height and width, px; None: the model's own.

    Returns:
        float32[A, 4], yxyx px.
    """
    image_size = image_size or config.image_size
    sizes = feature_sizes(image_size, config.max_level)
    levels = range(config.min_level, config.max_level + 1)
    return np.concatenate([_level(config, image_size, sizes[level]) for level in levels]).astype(np.float32)


def anchors_per_cell(config: ModelConfig) -> int:
    """Counts the anchors per cell of a feature map."""
    return config.num_octaves * len(config.aspect_ratios)


def _level(config: ModelConfig, image_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Computes the anchors of one level: float64[h * w * anchors_per_cell, 4]."""
    stride_y, stride_x = image_size[0] / size[0], image_size[1] / size[1]
    scales = [config.anchor_scale * 2 ** (octave / config.num_octaves) for octave in range(config.num_octaves)]
    half_sizes = np.array(
        [
            (scale * stride_y * height / 2, scale * stride_x * width / 2)
            for scale in scales
            for width, height in config.aspect_ratios
        ]
    )
    y = (np.arange(size[0]) + 0.5) * stride_y
    x = (np.arange(size[1]) + 0.5) * stride_x
    centers = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)[:, :, None]
    return np.concatenate([centers - half_sizes, centers + half_sizes], axis=-1).reshape(-1, 4)
