"""How large a model is: parameters, multiply-adds, anchors, the size of its file.

Multiply-adds of one forward pass are counted from the layers as they are called, in two ways. `convolutions`: height x
width of each convolution's output x the numbers of its kernel. `published`: what google/automl's tests state, half of
the operations that TensorFlow's graph profiler found in their network. For n numbers in an output and k inputs it
counts

    convolution             2 x height x width x numbers of the kernel, and n for a bias
    swish                   2 n, x * sigmoid(beta * x) with a sigmoid that costs nothing
    squeeze-and-excitation  the numbers of its input for their mean, n for the product; its convolutions as above
    fusion                  (k - 1) n for the sum; fast_attention 2 k n more, each term times its weight and divided
                            by the sum of the weights, and k - 1 for that sum; attention k n more, and 5 k (softmax)
    max-pooling             n x pixels of the window
    drawing the kernels     their numbers, and 1 for each kernel drawn from a uniform distribution: the profiler saw
                            the whole graph, initialisation included

and nothing for batch normalisation, ReLU6, nearest neighbour and the additions of skips, for which the TensorFlow of
those tests had no formula. A newer one has some, and so finds more in the same graph.
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
    """A forward pass of one image in numbers."""

    convolutions: int
    """Multiplications of all convolutions."""
    published: int
    """As google/automl counts."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """A layer was called once."""

    layer: Any
    inputs: list[tuple[int, ...]]
    """Shape of each input."""
    output: tuple[int, ...]
    """Shape of the output."""


def count_multiply_adds(model: EfficientDet, image_size: tuple[int, int]) -> MultiplyAdds:
    """Counts multiply-adds for one image. Sizes are seen in a symbolic pass; nothing is computed.

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
    """Counts the numbers of feature maps that one forward pass of one image has to read and write.

    The least there can be without fusing convolutions: each convolution reads its input once and writes its output
    once; what comes between (normalisation, activation, squeeze-and-excitation, resampling, fusion, skips) is computed
    while it is read or written.

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
            numbers += read - written  # not written: the layer that follows reads what this one was made of
    return numbers


def _is_convolution(layer: Any) -> bool:
    return isinstance(layer, layers.Conv | layers.DepthwiseConv)


def _count_convolution(call: _Call) -> int:
    """Counts a convolution's multiplications."""
    _, height, width, _ = call.output
    return height * width * math.prod(call.layer.kernel.shape)


def _count_operations(call: _Call) -> int:
    """Counts what the published rules find in a layer itself, without the layers inside it."""
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
    """Counts the pixels of the window with which `layers.Resample` pools; 0 if it does not pool."""
    if size == target_size or any(side < target for side, target in zip(size, target_size, strict=True)):
        return 0
    return math.prod((side - 1) // target + 2 for side, target in zip(size, target_size, strict=True))


def _count_draws(convolution: Any) -> int:
    """Counts what it takes to scale the random numbers a kernel starts with."""
    import keras

    is_depthwise = isinstance(convolution, layers.DepthwiseConv)
    initializer = convolution.depthwise_initializer if is_depthwise else convolution.kernel_initializer
    is_uniform = isinstance(initializer, keras.initializers.GlorotUniform)
    return math.prod(convolution.kernel.shape) + is_uniform


def _activated_layers(model: EfficientDet) -> list[Any]:
    """Lists the layers whose outputs go through an activation, with a normalisation between or not."""
    found = [model.backbone.stem]
    for block in model.backbone.blocks:
        found += [block.depthwise] if block.expand is None else [block.expand, block.depthwise]
        found += [] if block.squeeze is None else [block.squeeze.reduce]
    found += [node.fusion for cell in model.feature_network.cells for node in cell]
    return [*found, *model.class_head.convs, *model.box_head.convs]


@contextlib.contextmanager
def _recorded_calls(model: EfficientDet) -> Iterator[list[_Call]]:
    """Notes each call of a layer that counts while the block runs; batch normalisation, which does not, is left out."""
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
    for layer in skipped:  # a third of the time of the pass
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
    """Writes a large count twice: to read and to compare."""
    return f"{count / 1e9:.3f} billion ({count:,})"
