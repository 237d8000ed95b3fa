"""Random weights for a network of PyTorch's effdet, which NumPy alone makes again from names and shapes.

Each tensor has a generator of its own, seeded by a number and the CRC-32 of the tensor's name, so that neither the
order of the tensors nor PyTorch's version matters. Drawn in float64, rounded to float32:

    fusion weights         normal, mean 0.5, deviation 0.7: a quarter is negative, so their ReLU is seen
    kernels                normal, variance 1 / (numbers that make one output): the signal neither grows nor dies
    biases and shifts      normal, deviation 0.1
    scales of batch norms  uniform in 0.5..1.5

Statistics of batch normalisation are not drawn: they are calibrated by a forward pass (see reference.py).
"""

import math
import zlib

import numpy as np

_STATISTICS = ("running_mean", "running_var")
_COUNTERS = ("num_batches_tracked",)


def is_statistic(name):
    """Tells whether a tensor is a mean or a variance that batch normalisation has measured."""
    return name.endswith(_STATISTICS)


def is_counter(name):
    """Tells whether a tensor is PyTorch's count of the batches that a statistic has seen."""
    return name.endswith(_COUNTERS)


def _generator(name, seed):
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def draw_tensor(name, shape, seed=0):
    """Draws the weights called `name`.

    Args:
        name: what effdet's state dictionary calls them, such as `backbone.conv_stem.weight`.
        shape: in PyTorch's layout, (out, in, h, w) for kernels.
        seed: of all weights.

    Returns:
        float32[shape].
    """
    assert not is_statistic(name), name
    assert not is_counter(name), name
    generator = _generator(name, seed)
    if name.endswith("edge_weights"):
        values = generator.normal(0.5, 0.7, shape)
    elif len(shape) > 1:
        values = generator.normal(0.0, math.sqrt(1 / math.prod(shape[1:])), shape)
    elif name.endswith("bias"):
        values = generator.normal(0.0, 0.1, shape)
    else:
        values = generator.uniform(0.5, 1.5, shape)
    return values.astype(np.float32)


def draw_images(purpose, count, image_size, seed=0):
    """Draws images as a network sees them, already normalised: every number is normal, mean 0, deviation 1.

    Args:
        purpose: names the images, as a tensor's name names its values.
        count: of images.
        image_size: height and width, px.
        seed: of all images.

    Returns:
        float32[count, 3, H, W].
    """
    return _generator(purpose, seed).normal(size=(count, 3, *image_size)).astype(np.float32)
