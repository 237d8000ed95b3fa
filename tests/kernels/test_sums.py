"""What else the network adds up, beside convolutions, is added in float32 whatever the type: compared with float64."""

import math

import float64
import keras
import numpy as np
import pytest

from efficientdet.config import LossConfig
from efficientdet.kernels import chains
from efficientdet.model import efficientnet, layers, normalization
from efficientdet.training import losses

_LARGE = (2, 65, 66, 33)  # worth a kernel
_SMALL = (2, 17, 18, 24)

each_type = pytest.mark.parametrize("dtype", list(float64.POLICIES))
each_size = pytest.mark.parametrize("shape", [_LARGE, _SMALL], ids=["large", "small"])


@each_type
@each_size
@pytest.mark.parametrize("activation", [None, "swish"])
def test_batch_normalisation(rng, activation, shape, dtype):
    """By the batch's own mean and variance (Ioffe and Szegedy 2015, section 3)."""
    x, upstream = 3 * float64.draw(rng, shape, dtype) + 1, float64.draw(rng, shape, dtype)
    x = float64.rounded(x, dtype)
    gamma, beta = 1 + 0.1 * float64.draw(rng, shape[-1:], "float32"), float64.draw(rng, shape[-1:], "float32")
    layer = normalization.batch_norm("norm", 0.9, float64.POLICIES[dtype], activation)
    found = float64.run(layer, x, upstream, dtype, [gamma, beta], training=True)
    axes, count = (0, 1, 2), math.prod(shape[:3])
    factor = 1 / np.sqrt(x.var(axes) + normalization.BATCH_NORM_EPSILON)
    z = (x - x.mean(axes)) * factor
    y = z * gamma + beta
    sigmoid = 1 / (1 + np.exp(-y))
    slope = 1.0 if activation is None else sigmoid * (1 + y * (1 - sigmoid))
    by_y = upstream * slope
    by_x = gamma * factor * (by_y - by_y.mean(axes) - z * (by_y * z).mean(axes))
    sizes = np.abs(gamma * factor) * (np.abs(by_y) + np.abs(by_y).mean(axes) + np.abs(z) * np.abs(by_y * z).mean(axes))
    # Where Keras normalises, the activation and its gradient follow in the type itself, in a few operations.
    steps = 4 if activation is not None and dtype != "float32" and not _is_compiled(x) else 0
    extra = {"before": steps}
    absolute = float64.ROUNDING[dtype] * steps
    exact = y if activation is None else y * sigmoid
    float64.compare(found[0], exact, (np.abs(y) + 1) * (1 + absolute / 2.0**-24), 1 if steps else count, dtype)
    float64.compare(found[1], by_x, sizes * (1 + absolute / 2.0**-24), 1 if steps else count, dtype)
    float64.compare(found[2], (by_y * z).sum(axes), np.abs(by_y * z).sum(axes), count, "float32", **_in(dtype, extra))
    float64.compare(found[3], by_y.sum(axes), np.abs(by_y).sum(axes), count, "float32", **_in(dtype, extra))


def _in(dtype, extra):
    """Counts roundings of 16 bits in those of float32."""
    return {name: number * float64.ROUNDING[dtype] / 2.0**-24 for name, number in extra.items()}


def _is_compiled(x):
    return keras.backend.backend() == "jax" or chains.pays(x)


@each_type
@each_size
@pytest.mark.parametrize("method", ["fast_attention", "attention", "sum"])
def test_fusion(rng, method, shape, dtype):
    maps = [float64.draw(rng, shape, dtype) for _ in range(3)]
    weights = np.array([] if method == "sum" else [0.5, 1.5, -0.2])
    upstream = float64.draw(rng, shape, dtype)
    options = {"method": method, "relu": True, "activation": "swish"}

    def compute(*arrays):
        return chains.compute(layers.fuse, *arrays, **options)

    arrays = [keras.ops.cast(x, dtype) for x in maps] + [keras.ops.cast(w, "float32") for w in weights]
    found = float64.differentiate(compute, arrays, keras.ops.cast(upstream, dtype))
    if method == "attention":
        shares = np.exp(weights) / np.exp(weights).sum()
        by_weights = [[shares[i] * ((i == j) - shares[j]) for i in range(3)] for j in range(3)]  # [j][i]: share i by j
    elif method == "fast_attention":
        positive = np.maximum(weights, 0)
        total = positive.sum() + layers.FUSION_EPSILON
        shares = positive / total
        by_weights = [[(w > 0) * ((i == j) - shares[i]) / total for i in range(3)] for j, w in enumerate(weights)]
    else:
        shares, by_weights = np.ones(3), []
    y = sum(x * share for x, share in zip(maps, shares, strict=True))
    sizes = sum(np.abs(x * share) for x, share in zip(maps, shares, strict=True))
    sigmoid = 1 / (1 + np.exp(-y))
    by_y = upstream * sigmoid * (1 + y * (1 - sigmoid))
    float64.compare(found[0], y * sigmoid, sizes, 3, dtype)
    for gradient, share in zip(found[1:4], shares, strict=True):
        float64.compare(gradient, by_y * share, np.abs(upstream * share), 3, dtype)
    for gradient, row in zip(found[4:], by_weights, strict=True):
        exact = sum((by_y * x).sum() * slope for x, slope in zip(maps, row, strict=True))
        terms = sum(np.abs(by_y * x).sum() * abs(slope) for x, slope in zip(maps, row, strict=True))
        float64.compare(gradient, np.array(exact), np.array(terms), by_y.size, "float32")


@each_type
@each_size
def test_the_gate_of_squeeze_and_excitation(rng, shape, dtype):
    x, gate = float64.draw(rng, shape, dtype), float64.draw(rng, (shape[0], 1, 1, shape[-1]), dtype)
    upstream = float64.draw(rng, shape, dtype)

    def compute(x, gate):
        return chains.compute(efficientnet.scale_channels, x, gate)

    arrays = [keras.ops.cast(array, dtype) for array in (x, gate)]
    found = float64.differentiate(compute, arrays, keras.ops.cast(upstream, dtype))
    sigmoid = 1 / (1 + np.exp(-gate))
    by_gate = upstream * x * sigmoid * (1 - sigmoid)
    float64.compare(found[0], x * sigmoid, np.abs(x), 1, dtype)
    float64.compare(found[1], upstream * sigmoid, np.abs(upstream), 1, dtype)
    sums = (array.sum((1, 2), keepdims=True) for array in (by_gate, np.abs(by_gate)))
    float64.compare(found[2], *sums, math.prod(shape[1:3]), dtype)


@each_type
def test_the_means_of_squeeze_and_excitation(rng, dtype):
    """With kernels of one number and the mean far from 0, where float16's own sums would be furthest off."""
    x = float64.rounded(2 + float64.draw(rng, (2, 64, 64, 1), dtype), dtype)
    layer = efficientnet.SqueezeExcite(1, 1, "relu6", dtype=float64.POLICIES[dtype])
    values = [np.ones((1, 1, 1, 1)), np.zeros(1), np.ones((1, 1, 1, 1)), np.zeros(1)]
    found = float64.run(layer, x, np.zeros_like(x), dtype, values, training=True)[0]
    mean = x.mean((1, 2), keepdims=True)
    slope = mean * np.exp(-mean) / (1 + np.exp(-mean))  # by how much more an error of the mean changes the answer
    exact = x / (1 + np.exp(-mean))
    float64.compare(found, exact, np.abs(exact) * slope, 64**2, dtype, roundings=2 + 3 * slope.max())


@each_type
@pytest.mark.parametrize("target", [(9, 9), (33, 36)], ids=["pooled", "doubled"])
def test_a_pixel_of_another_level_adds_at_most_four_gradients(rng, target, dtype):
    """The one sum that stays in 16 bits: of so few terms that it is rounded three times at most."""
    x = float64.draw(rng, _SMALL, dtype)
    layer = layers.Resample(_SMALL[-1], momentum=0.9, dtype=float64.POLICIES[dtype])
    upstream = float64.draw(rng, (2, *target, _SMALL[-1]), dtype)
    found = float64.run(layer, x, upstream, dtype, [], target_size=target, training=True)
    exact, terms = (
        float64.run(layers.Resample(_SMALL[-1], momentum=0.9), x, up, "float32", [], target_size=target, training=True)
        for up in (upstream, np.abs(upstream))
    )
    np.testing.assert_array_equal(found[0], exact[0])
    terms = terms[1]
    assert (np.abs(found[1] - exact[1]) <= 3 * 1.01 * float64.ROUNDING[dtype] * terms + float64.LEAST[dtype]).all()


def _focal_terms(logits, is_positive, config):
    """Computes the focal loss of each logit in float64 (RetinaNet, eq. 5)."""
    signed = np.where(is_positive, -logits, logits)
    smoothed = is_positive * (1 - config.label_smoothing) + 0.5 * config.label_smoothing
    cross_entropy = np.logaddexp(0, logits) - smoothed * logits
    weight = np.where(is_positive, config.focal_alpha, 1 - config.focal_alpha)
    return weight * (1 / (1 + np.exp(-signed))) ** config.focal_gamma * cross_entropy


def test_the_class_loss_and_its_gradient(rng):
    """Terms are positive, so that errors are relative to the sum; powers and logarithms are right to some 2e-7 each."""
    config = LossConfig()
    logits, labels = 3 * float64.draw(rng, (2, 5000, 90), "float32"), rng.integers(-2, 90, (2, 5000))
    logits = float64.rounded(logits, "float32")

    def compute(logits):
        return losses.class_loss_sum(logits, keras.ops.convert_to_tensor(labels, "int32"), config)

    found, gradient = float64.differentiate(compute, [keras.ops.cast(logits, "float32")], keras.ops.ones(()))
    is_positive, counts = labels[..., None] == np.arange(90), (labels != -2)[..., None]
    below, here, above = (_focal_terms(logits + step, is_positive, config) * counts for step in (-1e-5, 0, 1e-5))
    assert found == pytest.approx(here.sum(), rel=1e-6 + float64.SUM_FACTOR * 2.0**-24 * math.sqrt(here.size))
    np.testing.assert_allclose(gradient, (above - below) / 2e-5, rtol=1e-5, atol=1e-6)


def test_the_box_loss(rng):
    deltas, targets = (float64.draw(rng, (2, 5000, 4), "float32") for _ in range(2))
    found = losses.box_loss_sum(keras.ops.cast(deltas, "float32"), keras.ops.cast(targets, "float32"), 0.1)
    size = np.abs(deltas - targets)
    exact = np.where(size <= 0.1, size**2 / 2, 0.1 * (size - 0.05)).sum()
    assert float(found) == pytest.approx(exact, rel=1e-6 + float64.SUM_FACTOR * 2.0**-24 * math.sqrt(size.size))
