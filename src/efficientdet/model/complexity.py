"""How large a model is: parameters, multiply-adds, anchors, the size of its file."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from efficientdet import config as configs
from efficientdet import presets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """A model in numbers."""

    name: str
    image_size: tuple[int, int]
    num_classes: int
    parameters: int
    """Trainable numbers."""
    parameters_per_part: dict[str, int]
    multiply_adds: int
    """Of the convolutions in one forward pass of one picture."""
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
        table.add_row("multiply-adds", f"{self.multiply_adds / 1e9:.3f} billion ({self.multiply_adds:,})")
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
    configs.check(experiment)
    from efficientdet.model import anchors
    from efficientdet.model.efficientdet import EfficientDet

    network = EfficientDet(model)
    parts = {
        part.name: sum(math.prod(variable.shape) for variable in part.trainable_variables)
        for part in (network.backbone, network.feature_network, network.class_head, network.box_head)
    }
    return Description(
        name=model.name,
        image_size=model.image_size,
        num_classes=model.num_classes,
        parameters=sum(parts.values()),
        parameters_per_part=parts,
        multiply_adds=count_multiply_adds(network, model.image_size),
        anchors=len(anchors.anchor_boxes(model)),
        weights_bytes=sum(4 * math.prod(variable.shape) for variable in network.weights),
        config=configs.to_dict(experiment),
    )


def count_multiply_adds(model: Any, image_size: tuple[int, int]) -> int:
    """Counts the multiplications of all convolutions, for one picture.

    A convolution costs height x width of its output x the numbers of its kernel. Sizes are seen in a symbolic pass;
    nothing is computed.

    Args:
        model: EfficientDet.
        image_size: height and width, px.
    """
    import keras

    with _counted(model) as costs:
        model({"images": keras.Input((*image_size, 3), batch_size=1, dtype="uint8")})
    return sum(costs)


@contextlib.contextmanager
def _counted(model: Any) -> Iterator[list[int]]:
    """Notes the cost of each convolution that is called while the block runs."""
    import keras

    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    convolutions = [layer for layer in _layers_below(model) if isinstance(layer, kinds)]
    costs: list[int] = []

    def counting(layer: Any, call: Any) -> Any:
        def counted_call(x: Any) -> Any:
            output = call(x)
            _, height, width, _ = output.shape
            costs.append(height * width * math.prod(layer.kernel.shape))
            return output

        return counted_call

    originals = [layer.call for layer in convolutions]
    for layer, call in zip(convolutions, originals, strict=True):
        object.__setattr__(layer, "call", counting(layer, call))
    try:
        yield costs
    finally:
        for layer in convolutions:
            object.__delattr__(layer, "call")


def _layers_below(layer: Any) -> list[Any]:
    """Lists all layers inside a layer, at any depth, each once."""
    found: dict[int, Any] = {}
    pending = [layer]
    while pending:
        current = pending.pop()
        for child in current._layers:
            if id(child) not in found:
                found[id(child)] = child
                pending.append(child)
    return list(found.values())
