"""The initial weights of a run: random, a pretrained backbone, or a whole pretrained detector; and what is frozen."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import config as configs
from efficientdet.checkpoints import backbones, pretrained
from efficientdet.config import ExperimentConfig, ModelConfig
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.structures import Category

# Settings that weights were trained with; a model that starts from weights must keep them.
_HABITS = ("fusion_relu", "upsampling", "pixel_mean", "pixel_std", "normalize_twice", "resize", "padding")
# Other settings that change the meaning of the same variables; the run may change them, but is told so.
_MEANINGS = ("fusion", "activation", "anchor_scale", "num_octaves", "aspect_ratios")
_BACKBONE = "backbone/"
_PREDICTOR = "class_head/predict/"
_SHOWN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that a run starts from."""

    arrays: Mapping[str, np.ndarray]
    """Path of the variable -> float32 values; other variables keep their random values."""
    model: ModelConfig
    """The run's model, with the settings that the weights were trained with."""
    categories: tuple[Category, ...] = ()
    """Classes of the weights."""
    notes: tuple[str, ...] = ()
    """What was loaded, one sentence each."""


def find_start(config: ExperimentConfig) -> Start:
    """Reads the weights that a run starts from.

    Raises:
        UserError: `weights` and `backbone` are both given, cannot be read, or do not match the model.
    """
    if config.weights and config.backbone:
        raise UserError(
            f"`weights` is {config.weights} and `backbone` is {config.backbone}; set only one of them, since weights "
            "include a backbone."
        )
    if config.weights:
        return _from_weights(config)
    if config.backbone:
        arrays = backbones.read_backbone(config.backbone, config.model)
        note = f"backbone from {config.backbone}, {len(arrays)} variables; the rest is random"
        return Start(arrays=arrays, model=config.model, notes=(note,))
    return Start(arrays={}, model=config.model)


def resumed_start(config: ExperimentConfig, folder: Path) -> Start | None:
    """Returns the start of a resumed run: its checkpoint has all values, its config.json the settings of the weights.

    Args:
        config: config of the run.
        folder: run folder.

    Returns:
        None if the run has no checkpoint.
    """
    if not any((folder / "checkpoints").glob("step-*")) or not (folder / "config.json").is_file():
        return None
    before = configs.load(folder / "config.json").model
    habits = {name: getattr(before, name) for name in _HABITS} if config.weights else {}
    return Start(arrays={}, model=dataclasses.replace(config.model, **habits))


def _from_weights(config: ExperimentConfig) -> Start:
    """Loads weights together with the settings they were trained with."""
    loaded = weights.load(pretrained.find_weights(config.weights, config.model.name.removeprefix("efficientdet-")))
    notes = [f"weights from {config.weights}"]
    habits = {name: getattr(loaded.model, name) for name in _HABITS}
    changed = [name for name, value in habits.items() if getattr(config.model, name) != value]
    if changed:
        notes.append("set to match the weights: " + ", ".join(f"model.{n} {habits[n]}" for n in changed))
    notes += [
        f"the weights were trained with model.{name} {getattr(loaded.model, name)}, but this run uses "
        f"{getattr(config.model, name)}, as configured"
        for name in _MEANINGS
        if getattr(config.model, name) != getattr(loaded.model, name)
    ]
    model = dataclasses.replace(config.model, **habits)
    return Start(arrays=loaded.arrays, model=model, categories=loaded.categories, notes=tuple(notes))


def assign_start(model: Any, start: Start, categories: tuple[Category, ...]) -> tuple[str, ...]:
    """Assigns the initial weights to a model; the class predictor is reinitialized if its classes differ.

    Args:
        model: EfficientDet for `categories`.
        start: the initial weights.
        categories: the classes of the dataset.

    Returns:
        What was loaded and what was not, one sentence each.

    Raises:
        UserError: a variable is missing, is unknown to the model, or has the wrong shape or invalid values.
    """
    if not start.arrays:
        return start.notes
    arrays, notes = start.arrays, start.notes
    variables = {weights.variable_name(variable): variable for variable in model.weights}
    wanted = {name for name in variables if start.categories or name.startswith(_BACKBONE)}
    if set(categories) < set(start.categories):
        arrays = _of_classes(arrays, start.categories, categories)
        notes += (
            f"of the {len(start.categories)} classes in the weights, the {len(categories)} in the dataset are kept",
        )
    elif start.categories and start.categories != categories:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(_PREDICTOR)}
        wanted = {name for name in wanted if not name.startswith(_PREDICTOR)}
        count = len(start.categories)
        notes += (
            f"the weights have other classes ({count}); the class predictor is reinitialized for {len(categories)}",
        )
    problems = [f"`{name}` is not in it" for name in arrays if name not in wanted]
    for name in sorted(wanted):
        if problem := _problem(arrays.get(name), tuple(variables[name].shape)):
            problems.append(f"`{name}` {problem}")
    if problems:
        field = "weights" if start.categories else "backbone"
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"`{field}` does not match {model.config.name}: {', '.join(problems[:_SHOWN])}{more}. "
            "Start from weights of the same model."
        )
    for name, array in arrays.items():
        variables[name].assign(array)
    return notes


def _of_classes(
    arrays: Mapping[str, np.ndarray], theirs: tuple[Category, ...], ours: tuple[Category, ...]
) -> dict[str, np.ndarray]:
    """Selects the outputs of some classes of the class predictor: float32[..., anchors * C], anchor by anchor."""
    places = [theirs.index(category) for category in ours]
    changed = {}
    for name in (f"{_PREDICTOR}pointwise/kernel", f"{_PREDICTOR}pointwise/bias"):
        if name in arrays and arrays[name].shape[-1] % len(theirs) == 0:
            by_anchor = arrays[name].reshape(*arrays[name].shape[:-1], -1, len(theirs))
            changed[name] = by_anchor[..., places].reshape(*arrays[name].shape[:-1], -1)
    return {**arrays, **changed}


def _problem(array: np.ndarray | None, shape: tuple[int, ...]) -> str:
    """Says why an array cannot be assigned to a variable of a shape; empty if it can."""
    if array is None:
        return "is missing"
    if array.shape != shape:
        return f"has the shape {array.shape}; expected {shape}"
    if array.dtype != np.float32:
        return f"has the type {array.dtype}; expected float32"
    return "" if np.isfinite(array).all() else "has values that are not finite"


def freeze(model: Any, frozen: str) -> None:
    """Freezes parts of a model: no gradient, no weight decay, constant batch statistics.

    Args:
        model: EfficientDet.
        frozen: none, backbone, or all_but_heads (backbone and feature network).
    """
    if frozen in ("backbone", "all_but_heads"):
        model.backbone.trainable = False
    if frozen == "all_but_heads":
        model.feature_network.trainable = False
