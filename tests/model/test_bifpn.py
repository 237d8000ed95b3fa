"""The feature network: what joins what, one level at a time."""

import dataclasses

import keras
import numpy as np
import pytest

from efficientdet.model import bifpn
from efficientdet.model.bifpn import BiFPN


def _network(config, channels=(16, 32, 80)):
    keras.utils.set_random_seed(0)
    network = BiFPN(config)
    network.build([(None, None, None, c) for c in channels])
    return network


def _features(rng, sizes=((8, 12), (4, 6), (2, 3)), channels=(16, 32, 80)):
    return [rng.normal(size=(1, *size, c)).astype(np.float32) for size, c in zip(sizes, channels, strict=True)]


@pytest.mark.parametrize("max_level", [6, 7, 8])
def test_every_node_reads_what_was_built_before_it(max_level):
    nodes = bifpn.node_inputs(3, max_level)
    levels = max_level - 2
    assert len(nodes) == 2 * (levels - 1)
    for number, (_, inputs) in enumerate(nodes):
        assert max(inputs) < levels + number


@pytest.mark.parametrize("max_level", [6, 7, 8])
def test_every_node_and_every_input_is_used(max_level):
    nodes = bifpn.node_inputs(3, max_level)
    last_of_level = {level: max_level - 2 + number for number, (level, _) in enumerate(nodes)}
    read = {i for _, inputs in nodes for i in inputs}
    assert read | set(last_of_level.values()) == set(range(max_level - 2 + len(nodes)))


def test_the_last_node_of_each_level_is_the_cell_s_output(tiny, rng):
    # Zero scale and a known shift in the last normalisation of a node: its output is that number everywhere.
    network = _network(tiny)
    outputs = {level: number for number, (level, _) in enumerate(network.nodes)}
    for level, number in outputs.items():
        norm = network.cells[-1][number].norm
        norm.gamma.assign(np.zeros(norm.gamma.shape))
        norm.beta.assign(np.full(norm.beta.shape, float(level)))
    values = [np.unique(np.array(x)).tolist() for x in network(_features(rng))]
    assert values == [[3.0], [4.0], [5.0], [6.0], [7.0]]


def test_projections_are_separate_for_the_way_down_and_up(tiny):
    network = _network(tiny)
    projected = [
        (number, place)
        for number, node in enumerate(network.cells[0])
        for place, resample in enumerate(node.resamples)
        if resample.conv is not None
    ]
    # P5 and P4 on the way down, P3, then P4 and P5 again on the way up; P6 and P7 have the channels already.
    assert projected == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]


def test_later_cells_project_nothing(tiny):
    network = _network(dataclasses.replace(tiny, num_cells=2))
    assert all(resample.conv is None for node in network.cells[1] for resample in node.resamples)


def test_no_projection_where_the_backbone_has_the_channels_already(tiny):
    network = _network(tiny, channels=(8, 8, 8))
    assert all(resample.conv is None for node in network.cells[0] for resample in node.resamples)
    assert network.coarser[0].conv is None


def test_p6_is_projected_and_p7_is_only_pooled(tiny):
    p6, p7 = _network(tiny).coarser
    assert len(p6.weights) == 6
    assert len(p7.weights) == 0


def test_a_sum_has_no_fusion_weights(tiny):
    def weights(fusion):
        network = _network(dataclasses.replace(tiny, fusion=fusion))
        return [v for v in network.trainable_variables if "fusion" in v.path]

    assert len(weights("sum")) == 0
    # A cell of 8 nodes: 5 with two inputs, 3 with three.
    assert len(weights("fast_attention")) == len(weights("attention")) == 19


@pytest.mark.parametrize("source", [0, 1, 2])
def test_information_reaches_every_level_from_each_feature(tiny, rng, source):
    network = _network(tiny)
    features = _features(rng)
    before = [np.array(x) for x in network(features)]
    features[source] = 10 * features[source]
    after = [np.array(x) for x in network(features)]
    assert all(np.any(a != b) for a, b in zip(after, before, strict=True))


def test_levels_3_to_8_make_six_features(tiny, rng):
    network = _network(dataclasses.replace(tiny, max_level=8))
    shapes = [tuple(x.shape) for x in network(_features(rng))]
    assert shapes == [(1, *size, 8) for size in ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1), (1, 1))]
