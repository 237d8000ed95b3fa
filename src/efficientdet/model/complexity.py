"""How large a model is: parameters, multiply-adds, anchors, the size of its file."""

import dataclasses
import math
from typing import Any

from rich.table import Table

from efficientdet import config as configs
from efficientdet import limits, presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """A model in numbers."""

    name: str
    image_size: tuple[int, int]
    num_classes: int
    parameters: int
    """Trainable numbers."""
    parameters_per_part: dict[str, int]
    variables: int
    """Arrays of a weights file."""
    trainable_variables: int
    """Those that an optimiser moves."""
    multiply_adds: int
    """Of the convolutions in one forward pass of one image."""
    published_multiply_adds: int
    """The same pass as google/automl counts it, with biases, swish, fusion, pooling and more; see `operations`."""
    anchors: int
    weights_bytes: int
    """Of a weights file, with batch statistics."""
    config: dict[str, Any]
    """The preset."""

    def to_dict(self) -> dict[str, Any]:
        """Turns the description into plain JSON values."""
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """Arranges the description for a terminal."""
        table = Table(title=self.name, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        height, width = self.image_size
        table.add_row("image size", f"{height} x {width} px")
        table.add_row("classes", f"{self.num_classes}")
        table.add_row("parameters", f"{self.parameters:,}")
        for part, count in self.parameters_per_part.items():
            table.add_row(f"  {part.replace('_', ' ')}", f"{count:,}", style="dim")
        table.add_row("variables", f"{self.variables:,}, {self.trainable_variables:,} of them trained")
        table.add_row("multiply-adds of convolutions", _billions(self.multiply_adds))
        table.add_row("  as google/automl counts", _billions(self.published_multiply_adds), style="dim")
        table.add_row("anchors", f"{self.anchors:,}")
        table.add_row("weights file", f"{self.weights_bytes / 1e6:.1f} MB")
        return table


def describe(
    preset: str, /, *, image_size: tuple[int, int] | None = None, num_classes: int | None = None
) -> Description:
    """Describes a model: parameters, multiply-adds, anchors, size of its file.

    Args:
        preset: d0 to d7, d7x, lite0 to lite4, lite3x, demo.
        image_size: height and width of the network input, px; the preset's own if not given.
        num_classes: classes; the preset's own (90, as the published checkpoints) if not given.

    Raises:
        UserError: there is no such preset, or the size is too small.
    """
    experiment = presets.find_preset(preset)
    model = dataclasses.replace(
        experiment.model,
        image_size=image_size or experiment.model.image_size,
        num_classes=experiment.model.num_classes if num_classes is None else num_classes,
    )
    experiment = dataclasses.replace(experiment, model=model)
    limits.check(experiment)
    from efficientdet.model import anchors, operations
    from efficientdet.model.efficientdet import EfficientDet

    network = EfficientDet(model)
    parts = {
        part.name: sum(math.prod(variable.shape) for variable in part.trainable_variables)
        for part in (network.backbone, network.feature_network, network.class_head, network.box_head)
    }
    multiply_adds = operations.count_multiply_adds(network, model.image_size)
    return Description(
        name=model.name,
        image_size=model.image_size,
        num_classes=model.num_classes,
        parameters=sum(parts.values()),
        parameters_per_part=parts,
        variables=len(network.weights),
        trainable_variables=len(network.trainable_variables),
        multiply_adds=multiply_adds.convolutions,
        published_multiply_adds=multiply_adds.published,
        anchors=len(anchors.anchor_boxes(model)),
        weights_bytes=sum(4 * math.prod(variable.shape) for variable in network.weights),
        config=configs.to_dict(experiment),
    )


def _billions(count: int) -> str:
    """Writes a large count twice: to read and to compare."""
    return f"{count / 1e9:.3f} billion ({count:,})"
