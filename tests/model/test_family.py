"""The family in numbers: parameters, variables, multiply-adds and anchors of every published model.

google/automl's tests state the totals of parameters and the published multiply-adds of all but D7x, and its
checkpoints hold the variables of D0..D7x. The split of the parameters and Lite's variables are worked out here from the
layers written out; the convolutions' multiply-adds are our own count, bound by the published one, which contains them.
"""

import dataclasses
import functools
import math
import pathlib
from typing import NamedTuple

import pytest

from efficientdet import presets
from efficientdet.config import ModelConfig
from efficientdet.model import anchors, architecture, complexity, variables, weights
from efficientdet.model.efficientdet import EfficientDet


class Numbers(NamedTuple):
    """A row: numbers of one model."""

    name: str
    parts: tuple[int, int, int, int]
    """Parameters of backbone, feature network with P6, class head, box head."""
    parameters: int
    variables: int
    trainable_variables: int
    convolutions: int
    """Multiply-adds."""
    published: int
    """Multiply-adds as google/automl counts them."""
    anchors: int


_FAMILY = (
    Numbers("d0", (3_595_388, 196_281, 69_354, 19_044), 3_880_067, 709, 493,
            2_492_331_520, 2_550_618_821, 49_104),
    Numbers("d1", (6_101_024, 390_972, 101_394, 32_508), 6_625_898, 912, 640,
            6_003_416_880, 6_133_752_112, 76_725),
    Numbers("d2", (7_202_562, 708_159, 136_890, 49_428), 8_097_039, 987, 699,
            10_832_466_688, 11_045_799_933, 110_484),
    Numbers("d3", (10_103_336, 1_559_474, 247_050, 122_436), 12_032_296, 1165, 823,
            24_568_753_664, 24_982_737_931, 150_381),
    Numbers("d4", (16_742_216, 3_349_829, 402_890, 228_740), 20_723_675, 1354, 960,
            54_583_712_096, 55_346_593_717, 196_416),
    Numbers("d5", (27_288_112, 5_405_893, 591_498, 367_812), 33_653_315, 1482, 1048,
            134_133_865_152, 135_729_505_573, 306_900),
    Numbers("d6", (39_403_992, 10_583_808, 1_090_986, 792_996), 51_871_782, 1565, 1059,
            224_121_477_984, 226_033_623_795, 306_900),
    Numbers("d7", (39_403_992, 10_583_808, 1_090_986, 792_996), 51_871_782, 1565, 1059,
            322_731_636_576, 325_473_789_367, 441_936),
    # No test of google/automl's has D7x; its table says 410 billion.
    Numbers("d7x", (62_143_440, 13_112_064, 1_094_826, 796_836), 77_147_166, 1902, 1286,
            407_628_345_344, 411_024_006_551, 442_260),
    Numbers("lite0", (2_958_848, 196_224, 69_354, 19_044), 3_243_470, 588, 372,
            973_589_696, 977_617_221, 19_206),
    Numbers("lite1", (3_723_520, 390_896, 101_394, 32_508), 4_248_318, 719, 457,
            1_966_649_904, 1_973_728_714, 27_621),
    Numbers("lite2", (4_357_952, 708_064, 136_890, 49_428), 5_252_334, 775, 497,
            3_371_304_384, 3_383_232_590, 37_629),
    Numbers("lite3", (6_422_016, 1_559_360, 247_050, 122_436), 8_350_862, 922, 590,
            7_480_187_904, 7_503_764_515, 49_104),
    Numbers("lite3x", (6_422_016, 2_333_200, 340_610, 185_036), 9_280_862, 922, 590,
            13_978_127_600, 14_019_809_178, 76_725),
    Numbers("lite4", (11_149_568, 3_349_696, 402_890, 228_740), 15_130_894, 1068, 684,
            20_168_084_000, 20_221_443_966, 76_725),
)  # fmt: skip
_README = pathlib.Path(__file__).resolve().parents[2] / "README.md"
_LARGE = {"d3", "d4", "d5", "d6", "d7", "d7x"}

each_model = pytest.mark.parametrize(
    "expected",
    [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.name in _LARGE else []) for row in _FAMILY],
)


def test_the_readme_has_these_numbers():
    lines = _README.read_text(encoding="utf-8").splitlines()
    rows = [line.rsplit(" | ", 1)[0] for line in lines if line.startswith(("| `d", "| `lite"))]
    assert rows == [
        f"| `{row.name}` | {presets.MODELS[row.name].image_size[0]} | {row.parameters:,} | "
        f"{f'{row.published / 1e9:#.3g}'.rstrip('.')} B"
        for row in _FAMILY
    ]


def _count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


@functools.lru_cache(maxsize=2)
def _built(config):
    return EfficientDet(config)


def _network(config):
    """Builds a network, or takes one of the last two where only sizes differ, as between D6 and D7."""
    default = ModelConfig()
    return _built(dataclasses.replace(config, name=default.name, image_size=(64, 64), anchor_scale=1.0))


@pytest.fixture
def d0():
    return _network(presets.MODELS["d0"])


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
    ("name", "image_size", "published"),
    [
        pytest.param("d0", (511, 513), 2_628_615_337, id="odd sides: other windows, other strides"),
        pytest.param("d1", (640, 1280), 12_263_120_287, id="twice as wide"),
    ],
)
def test_other_image_sizes_have_their_published_multiply_adds(name, image_size, published):
    assert complexity.count_multiply_adds(_network(presets.MODELS[name]), image_size).published == published


@each_model
def test_a_model_has_its_published_numbers(expected):
    config = presets.MODELS[expected.name]
    network = _network(config)
    parts = (network.backbone, network.feature_network, network.class_head, network.box_head)
    multiply_adds = complexity.count_multiply_adds(network, config.image_size)
    found = Numbers(
        name=expected.name,
        parts=tuple(_count(part.trainable_variables) for part in parts),
        parameters=_count(network.trainable_variables),
        variables=len(network.weights),
        trainable_variables=len(network.trainable_variables),
        convolutions=multiply_adds.convolutions,
        published=multiply_adds.published,
        anchors=len(anchors.anchor_boxes(config)),
    )
    assert found == expected
    # Beside the numbers, since building takes long: what is worked out without building is what has been built.
    built = {weights.variable_name(variable): tuple(variable.shape) for variable in network.weights}
    assert variables.variable_shapes(config) == built


def test_feature_maps_of_d0_are_as_large_as_the_known_limit_of_an_a100():
    """858 images/s, 8 % of what its memory allows, are known; 2,039 GB/s in 16 bits."""
    numbers = complexity.count_traffic(_network(presets.MODELS["d0"]), (512, 512))
    assert 2039e9 / (2 * numbers) == pytest.approx(858 / 0.08, rel=0.05)


@pytest.mark.parametrize("expected", _FAMILY, ids=lambda row: row.name)
def test_the_parts_follow_from_their_layers(expected):
    config = presets.MODELS[expected.name]
    width, levels = config.feature_channels, config.max_level - config.min_level + 1

    def separable(outputs):
        return 9 * width + width * outputs + outputs

    def head(outputs):
        return config.head_repeats * (separable(width) + levels * 2 * width) + separable(9 * outputs)

    nodes = architecture.node_inputs(config.min_level, config.max_level)
    channels = [architecture.stages(config.backbone)[stage].filters for stage in (2, 4, 6)]
    # P5 for P6, and in the first cell each use of P3, P4, P5: projection with bias, gamma and beta.
    projected = [channels[2], *(channels[i] for _, inputs in nodes for i in inputs if i < 3)]
    projections = sum(width * (c + 3) for c in projected if c != width)
    scalars = sum(len(inputs) for _, inputs in nodes) if config.fusion == "fast_attention" else 0
    cell = len(nodes) * (separable(width) + 2 * width) + scalars
    assert expected.parts[1:] == (projections + config.num_cells * cell, head(90), head(4))
    assert expected.parameters == sum(expected.parts)


@pytest.mark.parametrize("expected", _FAMILY, ids=lambda row: row.name)
def test_the_variables_follow_from_their_layers(expected):
    config = presets.MODELS[expected.name]
    stages = architecture.stages(config.backbone)
    nodes = architecture.node_inputs(config.min_level, config.max_level)
    inputs = [i for _, ids in nodes for i in ids]
    blocks, without_expand = sum(stage.repeats for stage in stages), stages[0].repeats
    norms = 1 + 3 * blocks - without_expand  # of the backbone, each with one kernel
    kernels = norms + (4 * blocks if config.backbone.squeeze_excite else 0)
    projections = 1 + sum(i < 3 for i in inputs)
    norms += projections
    kernels += 2 * projections
    norms += config.num_cells * len(nodes)
    kernels += config.num_cells * (3 * len(nodes) + (len(inputs) if config.fusion == "fast_attention" else 0))
    norms += 2 * config.head_repeats * (config.max_level - config.min_level + 1)
    kernels += 2 * 3 * (config.head_repeats + 1)
    assert (expected.variables, expected.trainable_variables) == (kernels + 4 * norms, kernels + 2 * norms)


def test_a_softmax_fusion_costs_a_product_a_term_and_the_softmax(tiny):
    counts = {}
    for fusion in ("sum", "attention"):
        network = EfficientDet(dataclasses.replace(tiny, fusion=fusion))
        counts[fusion] = complexity.count_multiply_adds(network, (64, 96))
    terms = {3: 2, 4: 2 + 3, 5: 2 + 3, 6: 2 + 3, 7: 2}  # a level's inputs, going down and up
    cells = {3: 8 * 12, 4: 4 * 6, 5: 2 * 3, 6: 1 * 2, 7: 1 * 1}
    extra = sum(terms[level] * (cells[level] * tiny.feature_channels + 5) for level in terms)
    assert counts["attention"].convolutions == counts["sum"].convolutions
    assert counts["attention"].published - counts["sum"].published == pytest.approx(extra / 2, abs=1)


def test_counting_leaves_the_network_as_it_was(tiny, rng):
    network = EfficientDet(tiny)
    images = rng.integers(0, 256, (1, 64, 96, 3), "uint8")
    before = network({"images": images})["box_deltas"].numpy()
    complexity.count_multiply_adds(network, (64, 96))
    assert (network({"images": images})["box_deltas"].numpy() == before).all()
    assert not [layer.name for layer in network._flatten_layers() if "call" in vars(layer)]
