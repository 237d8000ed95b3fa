"""The variables of a network, worked out without building it, are those that it has when it is built.

Those of the published networks, which take long to build, are compared in test_family.py.
"""

import dataclasses

import pytest

from efficientdet import presets
from efficientdet.config import BackboneConfig
from efficientdet.model import architecture, efficientnet, variables, weights
from efficientdet.model.efficientdet import EfficientDet

# By what they change in the smallest network, so that every branch is taken.
_CHANGES = {
    "as it is": {},
    "levels to 8": {"max_level": 8},
    "levels to 6": {"max_level": 6},
    "levels to 5": {"max_level": 5},
    "plain sums": {"fusion": "sum"},
    "softmax": {"fusion": "attention"},
    "several cells": {"num_cells": 3},
    "other anchors": {"num_octaves": 2, "aspect_ratios": ((1.0, 1.0),)},
    "deeper heads": {"head_repeats": 2},
    "no convolution before the prediction": {"head_repeats": 0},
    "the channels of P3": {"feature_channels": 16},
    "the channels of P5": {"feature_channels": 80},
    "Lite": {
        "backbone": BackboneConfig(width=0.3, depth=0.6, squeeze_excite=False, fixed_ends=True),
        "activation": "relu6",
    },
    "stochastic depth": {"backbone": BackboneConfig(width=0.5, depth=1.1, survival=0.8)},
}


def _built(config):
    return {weights.variable_name(variable): tuple(variable.shape) for variable in EfficientDet(config).weights}


@pytest.mark.parametrize("change", _CHANGES)
def test_they_are_those_of_a_small_network(change, tiny):
    config = dataclasses.replace(tiny, **_CHANGES[change])
    assert variables.variable_shapes(config) == _built(config)


def test_those_of_a_backbone_are_those_that_begin_with_its_name(tiny):
    shapes = variables.variable_shapes(tiny)
    expected = {name: shape for name, shape in shapes.items() if name.startswith("backbone/")}
    assert variables.backbone_shapes(tiny.backbone) == expected


@pytest.mark.parametrize("name", ["d0", "d7x", "lite4"])
def test_the_features_have_the_channels_of_the_last_block_of_their_stride(name):
    config = presets.MODELS[name].backbone
    network = efficientnet.EfficientNet(config, activation="swish", momentum=0.99)
    assert architecture.feature_filters(config) == network.feature_filters
