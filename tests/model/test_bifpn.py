"""The feature network: what joins what, one level at a time."""

import dataclasses

import keras
import numpy as np
import pytest

from efficientdet.model import architecture
from efficientdet.model.bifpn import BiFPN


def _network(config, channels=(16, 32, 80)):
    keras.utils.set_random_seed(0)
    network = BiFPN(config)
    network.build([(None, None, None, c) for c in channels])
    return network


def _features(rng, sizes=((8, 12), (4, 6), (2, 3)), channels=(16, 32, 80)):
    return [rng.normal(size=(1, *size, c)).astype(np.float32) for size, c in zip(sizes, channels, strict=True)]


@pytest.mark.parametrize("max_level", [5, 6, 7, 8])
def test_every_node_reads_what_was_built_before_it(max_level):
    nodes = architecture.node_inputs(3, max_level)
    levels = max_level - 2
    assert len(nodes) == 2 * (levels - 1)
    for number, (_, inputs) in enumerate(nodes):
        assert max(inputs) < levels + number


@pytest.mark.parametrize("max_level", [5, 6, 7, 8])
def test_every_node_and_every_input_is_used(max_level):
    nodes = architecture.node_inputs(3, max_level)
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


# What follows is the cell once more, in NumPy and float64, as NVIDIA's network has it: no ReLU on fusion weights, and
# features enlarged from centres. Nodes as in EfficientDet, figure 3: level, and ids of the inputs.
_NODES = [
    (6, (3, 4)),
    (5, (2, 5)),
    (4, (1, 6)),
    (3, (0, 7)),
    (4, (1, 7, 8)),
    (5, (2, 6, 9)),
    (6, (3, 5, 10)),
    (7, (4, 11)),
]


def _normalized(x, values, name):
    gamma, beta, mean, variance = (
        values[f"{name}/{leaf}"] for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def _shifted(x, fill):
    """Gives the nine neighbours of every pixel; `fill` lies around the image."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=fill)
    return [[padded[dy : dy + x.shape[0], dx : dx + x.shape[1]] for dx in range(3)] for dy in range(3)]


def _halved(x):
    """Pools with windows of 3 and strides of 2; the odd pixel of padding is at the bottom and right."""
    largest = np.max([neighbour for row in _shifted(x, -np.inf) for neighbour in row], axis=0)
    return largest[(x.shape[0] + 1) % 2 :: 2, (x.shape[1] + 1) % 2 :: 2]


def _resampled(x, size):
    if x.shape[0] > size[0]:
        return _halved(x)
    rows, columns = (
        [(2 * i + 1) * old // (2 * new) for i in range(new)] for old, new in zip(x.shape, size, strict=False)
    )
    return x[rows][:, columns]


def _node(values, name, inputs, size):
    fused = total = 0
    for place, x in enumerate(inputs):
        if f"{name}/resample_{place}/conv/kernel" in values:
            x = x @ values[f"{name}/resample_{place}/conv/kernel"][0, 0] + values[f"{name}/resample_{place}/conv/bias"]
            x = _normalized(x, values, f"{name}/resample_{place}/norm")
        weight = values[f"{name}/fusion/weight_{place}"]
        fused, total = fused + weight * _resampled(x, size), total + weight
    fused = fused / (total + 1e-4)
    active = fused / (1 + np.exp(-fused))
    kernel, neighbours = values[f"{name}/conv/depthwise/kernel"], _shifted(active, 0.0)
    deep = sum(neighbours[dy][dx] * kernel[dy, dx, :, 0] for dy in range(3) for dx in range(3))
    wide = deep @ values[f"{name}/conv/pointwise/kernel"][0, 0] + values[f"{name}/conv/pointwise/bias"]
    return _normalized(wide, values, f"{name}/norm")


def _cell_in_numpy(values, features):
    p6 = features[-1] @ values["resample_p6/conv/kernel"][0, 0] + values["resample_p6/conv/bias"]
    built = [*features, _halved(_normalized(p6, values, "resample_p6/norm"))]
    built.append(_halved(built[-1]))
    sizes, last = [x.shape[:2] for x in built], {}
    for number, (level, ids) in enumerate(_NODES):
        built.append(_node(values, f"cell_0_node_{number}", [built[i] for i in ids], sizes[level - 3]))
        last[level] = built[-1]
    return [last[level] for level in range(3, 8)]


def _draw(path, shape, rng):
    if "weight_" in path:
        return -0.3 if path.endswith("weight_0") else rng.uniform(0.5, 1.5)
    return rng.uniform(0.5, 1.5, shape) if "norm" in path else rng.normal(0.0, 0.3, shape)


def test_with_nvidia_s_habits_a_cell_is_the_one_written_out_in_numpy(tiny, rng):
    """At 200 x 328 px no level but the last is half of the one before, so pixels in the middle are there once."""
    network = _network(dataclasses.replace(tiny, upsampling="half_pixel", fusion_relu=False))
    for variable in network.weights:
        variable.assign(_draw(variable.path, variable.shape, rng))
    values = {variable.path.split("/", 1)[1]: variable.numpy().astype(np.float64) for variable in network.weights}
    features = _features(rng, sizes=((25, 41), (13, 21), (7, 11)))
    expected = _cell_in_numpy(values, [x[0].astype(np.float64) for x in features])
    assert [x.shape[:2] for x in expected] == [(25, 41), (13, 21), (7, 11), (4, 6), (2, 3)]
    for found, exact in zip(network(features), expected, strict=True):
        np.testing.assert_allclose(np.array(found)[0], exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    corners = _network(dataclasses.replace(tiny, upsampling="legacy", fusion_relu=False))
    for variable in corners.weights:
        variable.assign(values[variable.path.split("/", 1)[1]])
    difference = np.abs(np.array(corners(features)[0])[0] - expected[0]).max()
    assert difference > 0.1 * expected[0].std(), "from corners it is another network"
