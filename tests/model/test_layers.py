"""Every layer of the network in one harness, then what the shared layers compute, on numbers worked out by hand."""

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from efficientdet.config import BackboneConfig, ModelConfig
from efficientdet.kernels import choice
from efficientdet.kernels import normalization as kernel_normalization
from efficientdet.model import layers, normalization
from efficientdet.model.architecture import Stage
from efficientdet.model.bifpn import BiFPN, Node
from efficientdet.model.efficientdet import EfficientDet, Normalize
from efficientdet.model.efficientnet import Block, EfficientNet, SqueezeExcite
from efficientdet.model.heads import Head
from efficientdet.training.distributed import engine

_MODEL = ModelConfig(
    num_classes=3,
    backbone=BackboneConfig(width=0.25, depth=0.25),
    feature_channels=8,
    num_cells=1,
    head_repeats=1,
    batch_norm_momentum=0.99,
)
_PYRAMID = [(2, 8, 9, 8), (2, 4, 5, 8), (2, 2, 3, 8), (2, 1, 2, 8), (2, 1, 1, 8)]


@dataclasses.dataclass
class _Case:
    """A layer, the shapes of its input and of its output (None: the same), and what its call takes besides."""

    make: Any
    inputs: Any
    outputs: Any = None
    arguments: dict = dataclasses.field(default_factory=dict)
    dtype: str | None = None  # of the output; None: the compute dtype


def _block(expand, stride, filters, squeeze_excite=True, activation="swish", survival=1.0):
    return lambda dtype: Block(
        Stage(1, 3, stride, expand, filters),
        stride,
        8,
        squeeze_excite=squeeze_excite,
        activation=activation,
        survival=survival,
        momentum=0.99,
        dtype=dtype,
    )


def _fusion(method):
    return lambda dtype: layers.Fusion(method, dtype=dtype)


_CASES = {
    "separable convolution": _Case(
        lambda dtype: layers.SeparableConv(5, dtype=dtype), (2, 7, 6, 8), (2, 7, 6, 5)
    ),
    "convolution": _Case(lambda dtype: layers.Conv(5, 3, strides=2, dtype=dtype), (2, 7, 6, 8), (2, 4, 3, 5)),
    "depthwise convolution": _Case(
        lambda dtype: layers.DepthwiseConv(3, strides=2, dtype=dtype), (2, 7, 6, 8), (2, 4, 3, 8)
    ),
    "batch normalisation": _Case(lambda dtype: normalization.batch_norm("norm", 0.9, dtype), (2, 5, 6, 8)),
    "fast attention": _Case(_fusion("fast_attention"), [(2, 3, 4, 8)] * 3, (2, 3, 4, 8)),
    "attention": _Case(_fusion("attention"), [(2, 3, 4, 8)] * 3, (2, 3, 4, 8)),
    "sum": _Case(_fusion("sum"), [(2, 3, 4, 8)] * 3, (2, 3, 4, 8)),
    "resample down, other channels": _Case(
        lambda dtype: layers.Resample(5, momentum=0.9, dtype=dtype),
        (2, 7, 6, 8), (2, 4, 3, 5), {"target_size": (4, 3)},
    ),
    "resample up": _Case(
        lambda dtype: layers.Resample(8, momentum=0.9, dtype=dtype),
        (2, 4, 3, 8), (2, 7, 6, 8), {"target_size": (7, 6)},
    ),
    "resample up from centres": _Case(
        lambda dtype: layers.Resample(5, momentum=0.9, upsampling="half_pixel", dtype=dtype),
        (2, 4, 3, 8), (2, 7, 6, 5), {"target_size": (7, 6)},
    ),
    "stochastic depth": _Case(lambda dtype: layers.StochasticDepth(0.5, dtype=dtype), (4, 3, 3, 8)),
    "squeeze-and-excitation": _Case(lambda dtype: SqueezeExcite(8, 2, "swish", dtype=dtype), (2, 5, 6, 8)),
    "block with a skip": _Case(_block(6, 1, 8), (2, 5, 6, 8)),
    "block with stochastic depth": _Case(_block(6, 1, 8, survival=0.8), (2, 5, 6, 8)),
    "block without expansion": _Case(_block(1, 1, 16), (2, 5, 6, 8), (2, 5, 6, 16)),
    "block of stride 2": _Case(_block(6, 2, 16), (2, 5, 6, 8), (2, 3, 3, 16)),
    "block of Lite": _Case(_block(6, 1, 8, False, "relu6"), (2, 5, 6, 8)),
    "backbone": _Case(
        lambda dtype: EfficientNet(_MODEL.backbone, activation="swish", momentum=0.99, dtype=dtype),
        (2, 33, 47, 3), [(2, 5, 6, 16), (2, 3, 3, 32), (2, 2, 2, 80)],
    ),
    "node": _Case(
        lambda dtype: Node(_MODEL, 3, dtype=dtype),
        [(2, 5, 6, 7), (2, 5, 6, 8), (2, 9, 12, 8)], (2, 5, 6, 8), {"target_size": (5, 6)},
    ),
    "feature network": _Case(
        lambda dtype: BiFPN(_MODEL, dtype=dtype), [(2, 8, 9, 16), (2, 4, 5, 32), (2, 2, 3, 80)], _PYRAMID
    ),
    "class head": _Case(
        lambda dtype: Head(_MODEL, 9, 3, -4.6, dtype=dtype), _PYRAMID, (2, 9 * 101, 3), dtype="float32"
    ),
    "box head": _Case(lambda dtype: Head(_MODEL, 9, 4, 0.0, dtype=dtype), _PYRAMID, (2, 9 * 101, 4), dtype="float32"),
}  # fmt: skip


def _is_shape(value):
    return isinstance(value, tuple)


def _inputs(case, seed=0):
    rng = np.random.default_rng(seed)
    if _is_shape(case.inputs):
        return rng.normal(size=case.inputs).astype(np.float32)
    return [rng.normal(size=shape).astype(np.float32) for shape in case.inputs]


def _made(case, dtype="float32", seed=0):
    """Makes and builds the layer with the same weights for a seed, whatever the dtype."""
    keras.utils.set_random_seed(seed)
    layer = case.make(dtype)
    layer.build(case.inputs)
    return layer


def _called(case, layer):
    """Calls the layer; always a list."""
    outputs = layer(_inputs(case), **case.arguments)
    return outputs if isinstance(outputs, list) else [outputs]


def _wanted_shapes(case):
    wanted = case.inputs if case.outputs is None else case.outputs
    return [wanted] if _is_shape(wanted) else wanted


@pytest.fixture(params=_CASES)
def case(request):
    return _CASES[request.param]


def test_a_layer_gives_its_shape(case):
    outputs = _called(case, _made(case))
    assert [tuple(x.shape) for x in outputs] == _wanted_shapes(case)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_a_layer_keeps_to_its_precision(case, precision):
    layer = _made(case, precision)
    outputs = _called(case, layer)
    wanted = case.dtype or precision.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(x.dtype) for x in outputs} == {wanted}
    assert {v.dtype for v in layer.trainable_variables} <= {"float32"}
    # Half precision keeps 11 (8) bits; a few layers in a row lose a few of them.
    tolerance = 0.02 if precision == "mixed_float16" else 0.15
    for half, full in zip(outputs, _called(case, _made(case)), strict=True):
        half, full = np.array(ops.cast(half, "float32")), np.array(full)
        assert np.abs(half - full).max() < tolerance * max(1.0, np.abs(full).max())


@pytest.mark.parametrize("name", [name for name in _CASES if name not in ("sum", "resample up", "stochastic depth")])
def test_every_variable_of_a_layer_gets_a_gradient(name):
    case = _CASES[name]
    layer = _made(case)
    assert layer.trainable_variables
    non_trainable = [v.numpy() for v in layer.non_trainable_variables]
    directions = [np.random.default_rng(1).normal(size=s).astype(np.float32) for s in _wanted_shapes(case)]

    def value(trainable):
        outputs, _ = layer.stateless_call(trainable, non_trainable, _inputs(case), **case.arguments)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return sum(ops.sum(x * d) for x, d in zip(outputs, directions, strict=True)), ()

    # Inference mode: in training a bias before batch normalisation has no effect, and so no gradient.
    _, _, gradients = engine.value_and_gradients(
        value, engine.to_device([v.numpy() for v in layer.trainable_variables])
    )
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        gradient = np.array(gradient)
        assert np.isfinite(gradient).all(), variable.path
        assert np.abs(gradient).max() > 0, variable.path


def test_a_layer_with_the_same_weights_answers_the_same(case):
    first, second = _made(case, seed=0), _made(case, seed=1)
    assert len(first.weights) == len(second.weights)
    for ours, theirs in zip(first.weights, second.weights, strict=True):
        theirs.assign(ours.numpy())
    for a, b in zip(_called(case, first), _called(case, second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_harness_covers_every_layer():
    covered = {type(case.make("float32")) for case in _CASES.values()}
    ours = [layers, normalization, *(__import__(c.__module__, fromlist=["x"]) for c in (BiFPN, EfficientNet, Head))]
    there = {
        c for module in ours for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__
    }
    assert {c for c in there if issubclass(c, keras.layers.Layer)} == covered
    assert {Normalize, EfficientDet}.isdisjoint(covered)  # test_efficientdet has them


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        pytest.param("swish", [-2 / (1 + np.e**2), 0, 1 / (1 + 1 / np.e), 8 / (1 + np.e**-8)], id="x sigmoid(x)"),
        pytest.param("relu6", [0, 0, 1, 6], id="between 0 and 6"),
    ],
)
def test_the_activation(activation, expected):
    x = np.array([-2, 0, 1, 8], np.float32)
    np.testing.assert_allclose(kernel_normalization.activate(x, activation), expected, rtol=1e-6)


def _fuse(method, values, weights, dtype="float32", relu=True):
    """Fuses arrays of one number each."""
    layer = layers.Fusion(method, relu=relu, dtype=dtype)
    layer.build([(1, 1, 1, 1)] * len(values))
    for variable, weight in zip(layer.trainable_variables, weights, strict=True):
        variable.assign(weight)
    return float(layer([np.full((1, 1, 1, 1), value, np.float32) for value in values])[0, 0, 0, 0])


def test_fast_attention_gives_the_golden_value():
    # google/automl's test: two inputs [1, 3], weights 1; each is multiplied by 2 / 2.0001.
    layer = layers.Fusion("fast_attention")
    x = np.array([1.0, 3.0], np.float32)
    np.testing.assert_allclose(layer([x, x]), [0.99995, 2.99985], rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "values", "weights", "expected"),
    [
        pytest.param("fast_attention", [1, 3], [3, 1], (3 + 3) / 4.0001, id="shares of the weights"),
        pytest.param("fast_attention", [1, 3], [-5, 2], 6 / 2.0001, id="a negative weight counts as 0"),
        pytest.param("fast_attention", [1, 3], [-5, -2], 0, id="no weight left: 0, not infinity"),
        pytest.param("attention", [1, 3], [0, np.log(3)], 0.25 * 1 + 0.75 * 3, id="softmax"),
        pytest.param("attention", [5, 5, 5], [-3, 0.5, 2], 5, id="softmax sums to one"),
        pytest.param("attention", [1, 3], [1000, 1000], 2, id="softmax of large weights"),
        pytest.param("sum", [1, 3], [], 4, id="plain sum has no weights"),
    ],
)
def test_fusion(method, values, weights, expected):
    assert _fuse(method, values, weights) == pytest.approx(expected, rel=1e-6)


def test_without_relu_a_negative_weight_counts_as_it_is():
    assert _fuse("fast_attention", [1, 3], [-5, 2], relu=False) == pytest.approx((-5 + 6) / -2.9999, rel=1e-6)


def test_fusion_divides_before_it_adds_so_that_float16_does_not_overflow():
    assert np.isfinite(_fuse("fast_attention", [40000, 40000], [1, 1], "mixed_float16"))


def _resample(x, target_size, filters=1, **options):
    x = np.asarray(x, np.float32)
    layer = layers.Resample(filters, momentum=0.9, **options)
    layer.build(x.shape)
    return np.array(layer(x, target_size=target_size))


def _row(*values):
    return np.array(values, np.float32).reshape(1, 1, -1, 1)


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        pytest.param([1, 2, 3, 4, 5], 10, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5], id="5 to 10: twice"),
        pytest.param([1, 2, 3, 4, 5], 9, [1, 1, 2, 2, 3, 3, 4, 4, 5], id="5 to 9: the surplus goes"),
        pytest.param([7], 1, [7], id="1 to 1: untouched"),
        pytest.param([7], 2, [7, 7], id="1 to 2"),
        pytest.param([1, 9, 2, 3, 4, 5], 3, [9, 4, 5], id="6 to 3: window 3, padded at the end"),
        pytest.param([9, 1, 2, 3, 8], 3, [9, 3, 8], id="5 to 3: padded at both ends"),
        pytest.param([-5, -3, -4, -2], 2, [-3, -2], id="negative values stay negative: padding is not 0"),
        pytest.param([-5], 1, [-5], id="1 to 1, negative"),
    ],
)
def test_resampling_a_row(values, width, expected):
    np.testing.assert_array_equal(_resample(_row(*values), (1, width)).ravel(), expected)
    as_column = _resample(_row(*values).transpose(0, 2, 1, 3), (width, 1))
    np.testing.assert_array_equal(as_column.ravel(), expected)


def test_upsampling_is_automl_s_nearest_neighbour(rng):
    x = rng.normal(size=(1, 5, 6, 1)).astype(np.float32)
    rows, columns = np.arange(9) * 5 // 9, np.arange(11) * 6 // 11
    np.testing.assert_array_equal(_resample(x, (9, 11)), x[:, rows][:, :, columns])


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        pytest.param([1, 2, 3, 4, 5], 10, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5], id="5 to 10: twice"),
        pytest.param([1, 2, 3, 4, 5], 9, [1, 1, 2, 2, 3, 4, 4, 5, 5], id="5 to 9: the one in the middle once"),
        pytest.param([1, 2, 3, 4], 7, [1, 1, 2, 3, 3, 4, 4], id="4 to 7: a centre on a border goes on"),
        pytest.param([1, 2], 3, [1, 2, 2], id="2 to 3"),
        pytest.param([7], 1, [7], id="1 to 1: untouched"),
    ],
)
def test_enlarging_a_row_from_centres(values, width, expected):
    x = _row(*values)
    np.testing.assert_array_equal(_resample(x, (1, width), upsampling="half_pixel").ravel(), expected)
    as_column = _resample(x.transpose(0, 2, 1, 3), (width, 1), upsampling="half_pixel")
    np.testing.assert_array_equal(as_column.ravel(), expected)


def test_enlarging_from_centres_is_tensorflow_s_nearest_neighbour():
    """NVIDIA's network calls this operation; whether a centre on a border goes on is a matter of its rounding."""
    for size in range(1, 200):
        for target in (2 * size - 1, 2 * size):
            row = np.arange(size, dtype=np.float32).reshape(1, 1, size, 1)
            expected = tf.image.resize(row, (1, target), method="nearest")
            np.testing.assert_array_equal(layers.nearest_pixels(size, target), np.ravel(expected))


def test_enlarging_from_centres_and_from_corners_differ_in_both_axes(rng):
    x = rng.normal(size=(1, 5, 6, 2)).astype(np.float32)
    rows, columns = [0, 0, 1, 1, 2, 3, 3, 4, 4], [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5]
    found = _resample(x, (9, 11), filters=2, upsampling="half_pixel")
    np.testing.assert_array_equal(found, x[:, rows][:, :, columns])
    assert (found != _resample(x, (9, 11), filters=2)).any()


def test_resampling_can_shrink_one_axis_and_keep_the_other():
    x = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(_resample(x, (2, 1)).ravel(), [2, 3])


def test_resampling_projects_only_where_channels_differ():
    same, other = layers.Resample(8, momentum=0.9), layers.Resample(8, momentum=0.9)
    same.build((None, None, None, 8))
    other.build((None, None, None, 7))
    assert len(same.weights) == 0
    assert len(other.weights) == 6  # kernel, bias, four of the normalisation


def test_resampling_projects_before_it_pools():
    layer = layers.Resample(2, momentum=0.9)
    layer.build((None, None, None, 1))
    layer.conv.kernel.assign(np.array([-1.0, 1.0]).reshape(1, 1, 1, 2))
    pooled = np.array(layer(_row(1, 2, 3, 4), target_size=(1, 2)))
    # The maximum of -x is the minimum of x.
    np.testing.assert_allclose(pooled.reshape(2, 2), np.array([[-1, 3], [-3, 4]]) / np.sqrt(1 + 1e-3), rtol=1e-6)


def test_stochastic_depth_keeps_the_mean_and_drops_whole_images():
    layer = layers.StochasticDepth(0.8)
    x = np.ones((4000, 2, 2, 1), np.float32)
    y = np.array(layer(x, training=True))
    per_image = y.reshape(len(y), -1)
    np.testing.assert_array_equal(per_image.min(axis=1), per_image.max(axis=1))
    assert {round(float(v), 4) for v in np.unique(y)} == {0.0, 1.25}
    # 4000 draws: the mean is off by 0.008 in one standard deviation.
    assert y.mean() == pytest.approx(1, abs=0.04)


def test_stochastic_depth_does_nothing_at_inference(rng):
    x = rng.normal(size=(4, 2, 2, 1)).astype(np.float32)
    np.testing.assert_array_equal(layers.StochasticDepth(0.5)(x), x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(7, 8), (8, 5), (1, 2)])
def test_shifts_added_are_the_depthwise_convolution(rng, stride, kernel, size):
    x = keras.ops.convert_to_tensor(rng.normal(size=(2, *size, 6)), "float32")
    layer = layers.DepthwiseConv(kernel, strides=stride)
    expected = layer(x)
    with choice.used(choice.choose("shifts")):
        shifting = layers.DepthwiseConv(kernel, strides=stride)
    shifting.build(x.shape)
    shifting.set_weights(layer.get_weights())
    found = shifting(x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)
