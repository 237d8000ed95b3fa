"""The backbone: equal to Keras's own EfficientNet on the same weights, padded as the published checkpoints were."""

import keras
import numpy as np
import pytest

from efficientdet import presets
from efficientdet.checkpoints import applications
from efficientdet.config import BackboneConfig
from efficientdet.model import architecture, efficientnet
from efficientdet.model.efficientnet import EfficientNet


def _backbone(config):
    keras.utils.set_random_seed(0)
    backbone = EfficientNet(config, activation="swish", momentum=0.99, name="backbone")
    backbone.build((None, None, None, 3))
    return backbone


@pytest.fixture(scope="module")
def small():
    return _backbone(BackboneConfig(width=0.25, depth=0.25))


@pytest.fixture(scope="module")
def b0():
    return _backbone(BackboneConfig())


def _fill_at_random(layer, rng):
    """Gives every weight a value that matters: no zero bias, no batch statistics of 0 and 1."""
    for variable in layer.weights:
        noise = rng.normal(size=variable.shape)
        is_scale = variable.path.endswith(("gamma", "moving_variance"))
        is_kernel = variable.path.endswith("kernel")
        fan_in = np.prod(variable.shape[:2]) if "dw" in layer.name else np.prod(variable.shape[:-1])
        variable.assign(np.exp(0.2 * noise) if is_scale else noise / np.sqrt(fan_in) if is_kernel else 0.1 * noise)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        pytest.param("b0", (64, 96), id="b0: even sides on every level but the last"),
        pytest.param("b0", (95, 67), id="b0: odd sides on most levels"),
        *(pytest.param(f"b{number}", (64, 67), marks=pytest.mark.slow, id=f"b{number}") for number in range(1, 8)),
    ],
)
def test_features_equal_those_of_keras_applications(name, image_size, rng):
    config = {model.backbone.name: model.backbone for model in presets.MODELS.values()}[f"efficientnet-{name}"]
    ours = _backbone(config)
    make_theirs = {
        "b0": keras.applications.EfficientNetB0,
        "b1": keras.applications.EfficientNetB1,
        "b2": keras.applications.EfficientNetB2,
        "b3": keras.applications.EfficientNetB3,
        "b4": keras.applications.EfficientNetB4,
        "b5": keras.applications.EfficientNetB5,
        "b6": keras.applications.EfficientNetB6,
        "b7": keras.applications.EfficientNetB7,
    }[name]
    # Their padding depends on the size they are made for.
    theirs = make_theirs(weights=None, include_top=False, input_shape=(*image_size, 3))
    for layer in theirs.layers:
        if not isinstance(layer, keras.layers.Normalization):
            _fill_at_random(layer, rng)
    arrays = applications.read_network(theirs, config)
    for variable in ours.weights:
        variable.assign(arrays.pop(variable.path))
    assert not arrays

    stages = [(position, architecture.stages(config)[position - 1].repeats) for position in (3, 5, 7)]
    # The last block of P3, P4 and P5; with one repeat there is no skip to add.
    ends = [
        f"block{n}{'abcdefghijklmnop'[repeats - 1]}_{'add' if repeats > 1 else 'project_bn'}" for n, repeats in stages
    ]
    expected = keras.Model(theirs.input, [theirs.get_layer(end).output for end in ends])
    x = rng.normal(size=(2, *image_size, 3)).astype(np.float32)
    # Theirs divides by 255 first; its normalisation has mean 0 and variance 1 without pretrained weights.
    for our, their in zip(ours(x), expected(255 * x), strict=True):
        assert np.std(np.array(their)) > 0.1
        # Measured: at most 4e-7 of the largest value, float32 rounding.
        np.testing.assert_allclose(our, their, atol=1e-5 * np.abs(np.array(their)).max())


@pytest.mark.parametrize(
    ("size", "kernel", "before", "after", "output"),
    [
        pytest.param(512, 3, 0, 1, 256, id="even, 3: one pixel after"),
        pytest.param(511, 3, 1, 1, 256, id="odd, 3: both sides"),
        pytest.param(512, 5, 1, 2, 256, id="even, 5"),
        pytest.param(511, 5, 2, 2, 256, id="odd, 5"),
        pytest.param(32, 3, 0, 1, 16, id="even, small"),
    ],
)
def test_a_strided_convolution_pads_as_tensorflow(size, kernel, before, after, output):
    stage = architecture.Stage(1, kernel, 2, 1, 8)
    block = efficientnet.Block(stage, 2, 1, squeeze_excite=False, activation="swish", survival=1.0, momentum=0.9)
    block.build((None, None, None, 1))
    conv = block.depthwise
    conv.kernel.assign(np.ones(conv.kernel.shape))
    # The sum over an image of ones counts the kernel's pixels inside it: first and last column, in a middle row.
    row = np.array(conv(np.ones((1, size, size, 1), np.float32)))[0, output // 2, :, 0] / kernel
    assert len(row) == output
    assert (row[0], row[-1]) == (kernel - before, kernel - after)


def test_the_stem_pads_as_tensorflow(small):
    assert small.stem.padding == "same"
    assert small.stem.strides == (2, 2)


@pytest.mark.parametrize(
    ("filters", "width", "expected"),
    [
        pytest.param(32, 1.0, 32, id="unchanged"),
        pytest.param(16, 1.1, 16, id="17.6 goes down"),
        pytest.param(24, 1.2, 32, id="28.8 would lose more than a tenth at 24"),
        pytest.param(40, 1.2, 48, id="exactly 48"),
        pytest.param(112, 1.1, 120, id="123.2"),
        pytest.param(32, 0.25, 8, id="8 at least"),
        pytest.param(16, 0.25, 8, id="8 at least, also from 4"),
    ],
)
def test_filters_are_multiples_of_8(filters, width, expected):
    assert architecture.round_filters(filters, width) == expected


def test_squeezed_channels_come_from_the_block_s_input(b0):
    expected = [8, 4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48]
    assert [block.squeeze.reduce.filters for block in b0.blocks] == expected


def test_only_blocks_with_a_skip_are_dropped_and_the_last_ones_most():
    backbone = EfficientNet(BackboneConfig(depth=1.1, survival=0.8), activation="swish", momentum=0.99)
    total = len(backbone.blocks)
    for number, block in enumerate(backbone.blocks):
        assert (block.drop is not None) == (block.has_skip and number > 0)
        if block.drop is not None:
            assert block.drop.survival == pytest.approx(1 - 0.2 * number / total)


def test_b0_has_no_stochastic_depth(b0):
    assert all(block.drop is None for block in b0.blocks)


def test_kernels_start_with_a_variance_of_2_over_fan_out(b0):
    block = b0.blocks[12]
    # 5 x 5 depthwise: fan out 25; 1 x 1 expand to 1152: fan out 1152. Tens of thousands of draws.
    assert np.std(block.depthwise.kernel.numpy()) == pytest.approx(np.sqrt(2 / 25), rel=0.05)
    assert np.std(block.expand.kernel.numpy()) == pytest.approx(np.sqrt(2 / 1152), rel=0.02)


def test_convolutions_have_no_bias_but_squeeze_and_excitation(b0):
    with_bias = {v.path.split("/")[-2] for v in b0.trainable_variables if v.path.endswith("bias")}
    assert with_bias == {"reduce", "expand"}
    assert len([v for v in b0.trainable_variables if v.path.endswith("bias")]) == 2 * len(b0.blocks)


def test_channels_of_the_features_are_announced(small, rng):
    x = rng.normal(size=(1, 40, 56, 3)).astype(np.float32)
    assert [feature.shape[-1] for feature in small(x)] == small.feature_filters


@pytest.mark.parametrize("training", [False, True])
def test_training_moves_the_batch_statistics_and_inference_does_not(training, rng):
    backbone = _backbone(BackboneConfig(width=0.25, depth=0.25))
    backbone(rng.normal(size=(2, 32, 32, 3)).astype(np.float32), training=training)
    has_moved = [
        bool(np.any(norm.moving_mean.numpy())) for norm in (backbone.stem_norm, backbone.blocks[-1].project_norm)
    ]
    assert has_moved == [training, training]
