"""The variables of a network and their shapes, computed from its config without building a network.

A file may claim to contain a network of any size. The claim is compared with the tensors in the file before anything of
that size is allocated. A test checks that this module agrees with the networks.
"""

from collections.abc import Iterator

from efficientdet.config import BackboneConfig, ModelConfig
from efficientdet.model import anchors, architecture

_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def variable_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Lists the variables of a network.

    Returns:
        Path of the variable, as returned by `weights.variable_name`, -> its shape.
    """
    return {**backbone_shapes(config.backbone), **dict(_feature_network(config)), **dict(_heads(config))}


def backbone_shapes(config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Lists the variables of a backbone, `backbone/stem/kernel` and so on, with their shapes."""
    return dict(_backbone(config))


def _backbone(config: BackboneConfig) -> _Shapes:
    filters = architecture.stem_filters(config)
    yield from _conv("backbone/stem", 3, 3, filters)
    yield from _norm("backbone/stem_norm", filters)
    number = 0
    for stage in architecture.stages(config):
        for _ in range(stage.repeats):
            yield from _block(f"backbone/block_{number}", stage, filters, config.squeeze_excite)
            filters, number = stage.filters, number + 1


def _block(path: str, stage: architecture.Stage, filters: int, squeeze_excite: bool) -> _Shapes:
    inner = filters * stage.expand
    if stage.expand != 1:
        yield from _conv(f"{path}/expand", 1, filters, inner)
        yield from _norm(f"{path}/expand_norm", inner)
    yield f"{path}/depthwise/kernel", (stage.kernel, stage.kernel, inner, 1)
    yield from _norm(f"{path}/depthwise_norm", inner)
    if squeeze_excite:
        squeezed = architecture.squeezed_filters(filters)
        yield from _conv(f"{path}/squeeze_excite/reduce", 1, inner, squeezed, has_bias=True)
        yield from _conv(f"{path}/squeeze_excite/expand", 1, squeezed, inner, has_bias=True)
    yield from _conv(f"{path}/project", 1, inner, stage.filters)
    yield from _norm(f"{path}/project_norm", stage.filters)


def _feature_network(config: ModelConfig) -> _Shapes:
    of_backbone = architecture.feature_filters(config.backbone)
    channels = config.feature_channels
    if config.max_level > 5:
        yield from _projection("feature_network/resample_p6", of_backbone[-1], channels)
    for cell in range(config.num_cells):
        for number, (_, inputs) in enumerate(architecture.node_inputs(config.min_level, config.max_level)):
            path = f"feature_network/cell_{cell}_node_{number}"
            for place, source in enumerate(inputs):
                if cell == 0 and source < len(of_backbone):
                    yield from _projection(f"{path}/resample_{place}", of_backbone[source], channels)
                if config.fusion != "sum":
                    yield f"{path}/fusion/weight_{place}", ()
            yield from _separable(f"{path}/conv", channels, channels)
            yield from _norm(f"{path}/norm", channels)


def _heads(config: ModelConfig) -> _Shapes:
    channels = config.feature_channels
    for head, outputs in (("class_head", config.num_classes), ("box_head", 4)):
        for repeat in range(config.head_repeats):
            yield from _separable(f"{head}/conv_{repeat}", channels, channels)
            for level in range(config.min_level, config.max_level + 1):
                yield from _norm(f"{head}/norm_{repeat}_p{level}", channels)
        yield from _separable(f"{head}/predict", channels, anchors.anchors_per_cell(config) * outputs)


def _projection(path: str, inputs: int, outputs: int) -> _Shapes:
    """Lists the variables of a resampling layer, which has some only if the channels differ."""
    if inputs != outputs:
        yield from _conv(f"{path}/conv", 1, inputs, outputs, has_bias=True)
        yield from _norm(f"{path}/norm", outputs)


def _separable(path: str, inputs: int, outputs: int) -> _Shapes:
    yield f"{path}/depthwise/kernel", (3, 3, inputs, 1)
    yield from _conv(f"{path}/pointwise", 1, inputs, outputs, has_bias=True)


def _conv(path: str, kernel: int, inputs: int, outputs: int, *, has_bias: bool = False) -> _Shapes:
    yield f"{path}/kernel", (kernel, kernel, inputs, outputs)
    if has_bias:
        yield f"{path}/bias", (outputs,)


def _norm(path: str, channels: int) -> _Shapes:
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        yield f"{path}/{name}", (channels,)
