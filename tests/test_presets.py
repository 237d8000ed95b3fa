"""The family: values of every preset, as published; `model/test_family.py` counts what they make."""

import pytest

from efficientdet import presets
from efficientdet.errors import UserError
from efficientdet.model import architecture


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
    stages = architecture.stages(presets.MODELS[name].backbone)
    # P3 ends before the stage of stride 16, P4 before that of stride 32, P5 is the last.
    assert [stages[i].filters for i in (2, 4, 6)] == channels
    assert sum(stage.repeats for stage in stages) == blocks


def test_lite_backbones_keep_stem_and_ends():
    stages = architecture.stages(presets.MODELS["lite4"].backbone)
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
    assert architecture.node_inputs(3, max_level) == nodes


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
    with pytest.raises(UserError, match=r"`d8` is not a preset; choose from d0, d1"):
        presets.find_preset("d8")
