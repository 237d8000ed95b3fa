"""The family: sizes of every published model, from the reference implementations' own tests."""

import math

import pytest

from efficientdet import presets
from efficientdet.errors import UserError
from efficientdet.model import bifpn, efficientnet
from efficientdet.model.efficientdet import EfficientDet


def _count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def d0():
    return EfficientDet(presets.MODELS["d0"])


def test_the_parts_of_d0_have_their_published_parameters(d0):
    parts = (d0.backbone, d0.feature_network, d0.class_head, d0.box_head)
    assert [_count(part.trainable_variables) for part in parts] == [3_595_388, 196_281, 69_354, 19_044]


def test_d0_with_91_classes_has_nine_more_predictions(d0):
    per_output = d0.class_head.predict.pointwise.kernel.shape[2] + 1
    assert _count(d0.trainable_variables) + 9 * per_output == 3_880_652


def test_d0_has_150_kernels_under_weight_decay(d0):
    kernels = [v for v in d0.trainable_variables if v.path.endswith("kernel")]
    assert (len(kernels), _count(kernels)) == (150, 3_820_384)


def test_d0_has_3927203_values_with_the_batch_statistics(d0):
    assert _count(d0.weights) == 3_927_203


def test_variables_have_names_of_their_own(d0):
    paths = [variable.path for variable in d0.weights]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("name", "parameters", "variables", "trainable"),
    [
        ("d0", 3_880_067, 709, 493),
        ("d1", 6_625_898, 912, 640),
        _slow("d2", 8_097_039, 987, 699),
        _slow("d3", 12_032_296, 1165, 823),
        _slow("d4", 20_723_675, 1354, 960),
    ],
)
def test_a_model_has_its_published_parameters(name, parameters, variables, trainable):
    model = EfficientDet(presets.MODELS[name])
    assert _count(model.trainable_variables) == parameters
    # A generator of stochastic depth keeps its state in a variable that no checkpoint has.
    assert len([v for v in model.weights if "float" in v.dtype]) == variables
    assert len(model.trainable_variables) == trainable


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lite0", 3_243_470),
        _slow("lite1", 4_248_318),
        _slow("lite2", 5_252_334),
        _slow("lite3", 8_350_862),
        _slow("lite3x", 9_280_862),
        _slow("lite4", 15_130_894),
    ],
)
def test_a_lite_model_has_its_published_parameters(name, parameters):
    assert _count(EfficientDet(presets.MODELS[name]).trainable_variables) == parameters


@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        ("d0", [40, 112, 320], 16),
        ("d1", [40, 112, 320], 23),
        ("d2", [48, 120, 352], 23),
        ("d3", [48, 136, 384], 26),
        ("d4", [56, 160, 448], 32),
        ("d5", [64, 176, 512], 39),
        ("d6", [72, 200, 576], 45),
        ("d7", [72, 200, 576], 45),
        ("d7x", [80, 224, 640], 55),
    ],
)
def test_the_backbone_of(name, channels, blocks):
    stages = efficientnet.stages(presets.MODELS[name].backbone)
    # P3 ends before the stage of stride 16, P4 before that of stride 32, P5 is the last.
    assert [stages[i].filters for i in (2, 4, 6)] == channels
    assert sum(stage.repeats for stage in stages) == blocks


def test_lite_backbones_keep_stem_and_ends():
    stages = efficientnet.stages(presets.MODELS["lite4"].backbone)
    assert [stage.repeats for stage in stages] == [1, 4, 4, 6, 6, 8, 1]


@pytest.mark.parametrize(
    ("max_level", "nodes"),
    [
        (7, [(6, [3, 4]), (5, [2, 5]), (4, [1, 6]), (3, [0, 7]), (4, [1, 7, 8]), (5, [2, 6, 9]), (6, [3, 5, 10]),
             (7, [4, 11])]),
        (8, [(7, [4, 5]), (6, [3, 6]), (5, [2, 7]), (4, [1, 8]), (3, [0, 9]), (4, [1, 9, 10]), (5, [2, 8, 11]),
             (6, [3, 7, 12]), (7, [4, 6, 13]), (8, [5, 14])]),
    ],
)  # fmt: skip
def test_a_bifpn_cell_has_the_published_nodes(max_level, nodes):
    assert bifpn.node_inputs(3, max_level) == nodes


@pytest.mark.parametrize(
    ("name", "size", "channels", "cells", "repeats", "fusion", "scale", "max_level"),
    [
        ("d0", 512, 64, 3, 3, "fast_attention", 4, 7),
        ("d1", 640, 88, 4, 3, "fast_attention", 4, 7),
        ("d2", 768, 112, 5, 3, "fast_attention", 4, 7),
        ("d3", 896, 160, 6, 4, "fast_attention", 4, 7),
        ("d4", 1024, 224, 7, 4, "fast_attention", 4, 7),
        ("d5", 1280, 288, 7, 4, "fast_attention", 4, 7),
        ("d6", 1280, 384, 8, 5, "sum", 4, 7),
        ("d7", 1536, 384, 8, 5, "sum", 5, 7),
        ("d7x", 1536, 384, 8, 5, "sum", 4, 8),
        ("lite0", 320, 64, 3, 3, "sum", 3, 7),
        ("lite1", 384, 88, 4, 3, "sum", 3, 7),
        ("lite2", 448, 112, 5, 3, "sum", 3, 7),
        ("lite3", 512, 160, 6, 4, "sum", 4, 7),
        ("lite3x", 640, 200, 6, 4, "sum", 3, 7),
        ("lite4", 640, 224, 7, 4, "sum", 4, 7),
    ],
)
def test_the_preset(name, size, channels, cells, repeats, fusion, scale, max_level):
    model = presets.MODELS[name]
    assert model.image_size == (size, size)
    assert (model.feature_channels, model.num_cells, model.head_repeats) == (channels, cells, repeats)
    assert (model.fusion, model.anchor_scale, model.max_level) == (fusion, scale, max_level)
    assert model.activation == ("relu6" if name.startswith("lite") else "swish")
    assert presets.PRESETS[name].model == model


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"`d8` is no preset; there are d0, d1"):
        presets.find_preset("d8")
