"""The size of a model: parameters, multiply-adds, anchors, file size.

Multiply-adds of one forward pass are counted from the layers as they are called, in two ways. `convolutions`: height x
width of each convolution's output x the size of its kernel. `published`: as stated in google/automl's tests, half the
operations that TensorFlow's graph profiler found in their network. For an output of size n and k inputs it counts

    convolution             2 x height x width x size of the kernel, and n for a bias
    swish                   2 n, for x * sigmoid(beta * x) with a free sigmoid
    squeeze-and-excitation  the size of its input for the mean, n for the product; its convolutions as above
    fusion                  (k - 1) n for the sum; fast_attention 2 k n more, each term times its weight and divided
                            by the sum of the weights, and k - 1 for that sum; attention k n more, and 5 k (softmax)
    max-pooling             n x pixels of the window
    drawing the kernels     their size, and 1 for each kernel drawn from a uniform distribution: the profiler saw
                            the whole graph, including initialization

and nothing for batch normalization, ReLU6, nearest neighbor and the additions of skip connections, for which the
TensorFlow of those tests had no formula. Newer versions have some, and so find more in the same graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

from efficientdet import config as configs
from efficientdet import knobs, presets
from efficientdet.model import efficientnet, layers
from efficientdet.result import Result

if TYPE_CHECKING:
    from efficientdet.model.efficientdet import EfficientDet


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiplyAdds:
    """Multiply-adds of one forward pass of one image."""

    convolutions: int
    """Of all convolutions."""
    published: int
    """As counted by google/automl."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a layer."""

    layer: Any
    inputs: list[tuple[int, ...]]
    """Shape of each input."""
    output: tuple[int, ...]
    """Shape of the output."""


def count_multiply_adds(model: EfficientDet, image_size: tuple[int, int]) -> MultiplyAdds:
    """Counts multiply-adds for one image. Sizes come from a symbolic pass; nothing is computed.

    Args:
        model: the network.
        image_size: height and width, px.
    """
    import keras

    with _recorded_calls(model) as calls:
        model({"images": keras.Input((*image_size, 3), batch_size=1, dtype="uint8")})
    operations = sum(_count_operations(call) for call in calls)
    if model.config.activation == "swish":
        activated = {id(layer) for layer in _activated_layers(model)}
        operations += sum(2 * math.prod(call.output) for call in calls if id(call.layer) in activated)
    operations += sum(_count_draws(layer) for layer in _layers_below(model) if _is_convolution(layer))
    convolutions = sum(_count_convolution(call) for call in calls if _is_convolution(call.layer))
    return MultiplyAdds(convolutions=convolutions, published=operations // 2)


def count_traffic(model: EfficientDet, image_size: tuple[int, int]) -> int:
    """Counts the feature map elements that one forward pass of one image must read and write.

    This is the minimum without fusing convolutions: each convolution reads its input once and writes its output once;
    everything in between (normalization, activation, squeeze-and-excitation, resampling, fusion, skip connections) is
    computed while reading or writing.

    Args:
        model: the network.
        image_size: height and width, px.
    """
    import keras

    with _recorded_calls(model) as calls:
        model({"images": keras.Input((*image_size, 3), batch_size=1, dtype="uint8")})
    numbers = 0
    for call in calls:
        read, written = sum(map(math.prod, call.inputs)), math.prod(call.output)
        if _is_convolution(call.layer):
            numbers += read + written
        elif isinstance(call.layer, layers.Fusion | layers.Resample):
            numbers += read - written  # the output is not written: the next layer reads this layer's inputs instead
    return numbers


def _is_convolution(layer: Any) -> bool:
    return isinstance(layer, layers.Conv | layers.DepthwiseConv)


def _count_convolution(call: _Call) -> int:
    """Counts the multiplications of a convolution."""
    _, height, width, _ = call.output
    return height * width * math.prod(call.layer.kernel.shape)


def _count_operations(call: _Call) -> int:
    """Counts the operations of a layer by the published rules, without the layers inside it."""
    layer, numbers, terms = call.layer, math.prod(call.output), len(call.inputs)
    if _is_convolution(layer):
        return 2 * _count_convolution(call) + layer.use_bias * numbers
    if isinstance(layer, efficientnet.SqueezeExcite):
        return math.prod(call.inputs[0]) + numbers
    if isinstance(layer, layers.Fusion):
        weighing = {
            "fast_attention": 2 * terms * numbers + terms - 1,
            "attention": terms * numbers + 5 * terms,
            "sum": 0,
        }
        return (terms - 1) * numbers + weighing[layer.method]
    if isinstance(layer, layers.Resample):
        return numbers * _count_window(call.inputs[0][1:3], call.output[1:3])
    return 0


def _count_window(size: tuple[int, ...], target_size: tuple[int, ...]) -> int:
    """Counts the pixels of the pooling window of `layers.Resample`; 0 if it does not pool."""
    if size == target_size or any(side < target for side, target in zip(size, target_size, strict=True)):
        return 0
    return math.prod((side - 1) // target + 2 for side, target in zip(size, target_size, strict=True))


def _count_draws(convolution: Any) -> int:
    """Counts the operations for scaling the random initial values of a kernel."""
    import keras

    is_depthwise = isinstance(convolution, layers.DepthwiseConv)
    initializer = convolution.depthwise_initializer if is_depthwise else convolution.kernel_initializer
    is_uniform = isinstance(initializer, keras.initializers.GlorotUniform)
    return math.prod(convolution.kernel.shape) + is_uniform


def _activated_layers(model: EfficientDet) -> list[Any]:
    """Lists the layers whose outputs go through an activation, with or without a normalization in between."""
    found = [model.backbone.stem]
    for block in model.backbone.blocks:
        found += [block.depthwise] if block.expand is None else [block.expand, block.depthwise]
        found += [] if block.squeeze is None else [block.squeeze.reduce]
    found += [node.fusion for cell in model.feature_network.cells for node in cell]
    return [*found, *model.class_head.convs, *model.box_head.convs]


@contextlib.contextmanager
def _recorded_calls(model: EfficientDet) -> Iterator[list[_Call]]:
    """Records each call of a counted layer during the block; skips batch normalization, which is not counted."""
    import keras

    kinds = (
        layers.Conv,
        layers.DepthwiseConv,
        layers.SeparableConv,
        layers.Fusion,
        layers.Resample,
        efficientnet.SqueezeExcite,
    )
    inside = _layers_below(model)
    watched = [layer for layer in inside if isinstance(layer, kinds)]
    skipped = [layer for layer in inside if isinstance(layer, keras.layers.BatchNormalization)]
    calls: list[_Call] = []

    def recording(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded_call(inputs: Any, **options: Any) -> Any:
            output = call(inputs, **options)
            calls.append(_Call(layer, [tuple(x.shape) for x in keras.tree.flatten(inputs)], tuple(output.shape)))
            return output

        return recorded_call

    for layer in watched:
        object.__setattr__(layer, "call", recording(layer, layer.call))
    for layer in skipped:  # they would take a third of the time of the pass
        object.__setattr__(layer, "call", lambda x, **_: x)
    try:
        yield calls
    finally:
        for layer in (*watched, *skipped):
            object.__delattr__(layer, "call")


def _layers_below(layer: Any) -> Iterable[Any]:
    """Lists all layers inside a layer, at any depth, each once."""
    found: dict[int, Any] = {}
    pending = [layer]
    while pending:
        for child in pending.pop()._layers:
            if id(child) not in found:
                found[id(child)] = child
                pending.append(child)
    return found.values()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description(Result):
    """A model in numbers."""

    name: str
    image_size: tuple[int, int]
    num_classes: int
    parameters: int
    """Number of trainable parameters."""
    parameters_per_part: dict[str, int]
    variables: int
    """Number of arrays in a weights file."""
    trainable_variables: int
    """Number of arrays updated by an optimizer."""
    multiply_adds: int
    """Of the convolutions in one forward pass of one image."""
    published_multiply_adds: int
    """The same pass as counted by google/automl, with biases, swish, fusion, pooling and more (see the module)."""
    anchors: int
    weights_bytes: int
    """Size of the arrays in a weights file, with batch statistics."""
    config: dict[str, Any]
    """The preset."""

    def table(self) -> Table:
        """Formats the description for a terminal."""
        table = Table(title=self.name, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        height, width = self.image_size
        table.add_row("image size", f"{height} x {width} px")
        table.add_row("classes", f"{self.num_classes}")
        table.add_row("parameters", f"{self.parameters:,}")
        for part, count in self.parameters_per_part.items():
            table.add_row(f"  {part.replace('_', ' ')}", f"{count:,}", style="dim")
        table.add_row("variables", f"{self.variables:,} ({self.trainable_variables:,} trainable)")
        table.add_row("multiply-adds of convolutions", _billions(self.multiply_adds))
        table.add_row("  as counted by google/automl", _billions(self.published_multiply_adds), style="dim")
        table.add_row("anchors", f"{self.anchors:,}")
        table.add_row("weights file", f"{self.weights_bytes / 1e6:.1f} MB")
        return table


def describe(
    preset: str, /, *, image_size: tuple[int, int] | None = None, num_classes: int | None = None
) -> Description:
    """Describes a model: parameters, multiply-adds, anchors, file size.

    Args:
        preset: d0 to d7, d7x, lite0 to lite4, lite3x, demo.
        image_size: height and width of the network input, px; default: the preset's own.
        num_classes: number of classes; default: the preset's own (90, as in the published checkpoints).

    Raises:
        UserError: the preset is unknown, or the image size is too small.
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
    multiply_adds = count_multiply_adds(network, model.image_size)
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
        config=knobs.to_dict(experiment),
    )


def _billions(count: int) -> str:
    """Formats a large count in billions and exactly."""
    return f"{count / 1e9:.3f} billion ({count:,})"
