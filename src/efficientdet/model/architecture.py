"""The structure of the network in numbers, without Keras: the stages of the backbone, the nodes of a BiFPN cell."""

import dataclasses
import math

from efficientdet.config import BackboneConfig

STEM_FILTERS = 32
SQUEEZE_RATIO = 0.25


@dataclasses.dataclass(frozen=True)
class Stage:
    """A row of EfficientNet's table 1: `repeats` blocks; only the first one has the stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    filters: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def round_filters(filters: int, width: float) -> int:
    """Scales channels by `width` and rounds to a multiple of 8, never down by more than a tenth."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def stem_filters(config: BackboneConfig) -> int:
    """Computes the number of output channels of the stem."""
    return STEM_FILTERS if config.fixed_ends else round_filters(STEM_FILTERS, config.width)


def squeezed_filters(filters: int) -> int:
    """Computes the number of channels inside the squeeze-and-excitation of a block with `filters` input channels."""
    return max(1, int(filters * SQUEEZE_RATIO))


def stages(config: BackboneConfig) -> list[Stage]:
    """Scales table 1 by the config's width and depth."""
    scaled = []
    for number, stage in enumerate(STAGES):
        fixed = config.fixed_ends and number in (0, len(STAGES) - 1)
        repeats = stage.repeats if fixed else math.ceil(config.depth * stage.repeats)
        scaled.append(dataclasses.replace(stage, repeats=repeats, filters=round_filters(stage.filters, config.width)))
    return scaled


def feature_filters(config: BackboneConfig) -> list[int]:
    """Returns the channels of P3, P4, P5: those of the last stage of each stride."""
    filters = [stage.filters for stage in stages(config)]
    return [filters[2], filters[4], filters[6]]


def node_inputs(min_level: int, max_level: int) -> list[tuple[int, list[int]]]:
    """Lists the nodes of a cell.

    Ids 0..L-1 are the inputs of the cell from `min_level` up; node i has id L + i. Top-down, a node fuses the latest
    feature of its level with the latest of the level above; bottom-up, all features of its level with the latest of
    the level below.

    Returns:
        (level, ids of the inputs) of each node, in the order of computation. The last node of a level is an output.
    """
    ids = {level: [number] for number, level in enumerate(range(min_level, max_level + 1))}
    nodes = []
    next_id = len(ids)
    for level in range(max_level - 1, min_level - 1, -1):
        nodes.append((level, [ids[level][-1], ids[level + 1][-1]]))
        ids[level].append(next_id)
        next_id += 1
    for level in range(min_level + 1, max_level + 1):
        nodes.append((level, [*ids[level], ids[level - 1][-1]]))
        ids[level].append(next_id)
        next_id += 1
    return nodes
