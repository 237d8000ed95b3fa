"""Which values a knob may have."""

import math
from typing import Any

from efficientdet.config import LEAST_SIDE, ExperimentConfig
from efficientdet.errors import UserError

_MANY = 2**31 - 1
_RANGES: dict[str, tuple[float, float]] = {
    "overfit": (0, _MANY),
    "model.num_classes": (1, _MANY),
    "model.feature_channels": (1, _MANY),
    "model.num_cells": (1, 100),
    "model.head_repeats": (0, 100),
    "model.num_octaves": (1, 100),
    "model.pixel_mean": (0, 1),
    "data.synthetic_examples": (1, _MANY),
    "data.synthetic_classes": (1, _MANY),
    "augmentation.randaugment_layers": (1, 10),
    "augmentation.randaugment_magnitude": (0, 30),
    "augmentation.grid_mask": (0, 1),
    "augmentation.brightness": (0, 1),
    "augmentation.contrast": (0, 1),
    "augmentation.saturation": (0, 1),
    "augmentation.hue": (0, 0.5),
    "augmentation.mosaic": (0, 1),
    "augmentation.mixup": (0, 1),
    "loss.match_iou": (0, 1),
    "loss.focal_alpha": (0, 1),
    "loss.focal_gamma": (0, 100),
    "loss.label_smoothing": (0, 1),
    "loss.box_weight": (0, 1e6),
    "optimizer.warmup_learning_rate": (0, 1e6),
    "optimizer.warmup_epochs": (0, 1e6),
    "optimizer.schedule_epochs": (0, 1e6),
    "optimizer.clip_norm": (0, 1e6),
    "optimizer.weight_decay": (0, 1),
    "training.batch_size": (1, _MANY),
    "training.accumulate_steps": (1, 1024),
    "training.epochs": (0, 1e6),
    "training.devices": (0, _MANY),
    "training.seed": (0, _MANY),
    "training.evaluate_every": (0, 1e6),
    "training.evaluate_from": (0, 1e6),
    "training.patience": (0, _MANY),
    "training.log_every": (1, _MANY),
    "training.checkpoint_every": (1, _MANY),
    "training.keep_checkpoints": (1, _MANY),
    "training.max_bad_steps": (1, _MANY),
    "postprocess.max_candidates": (1, _MANY),
    "postprocess.max_detections": (1, _MANY),
    "postprocess.score_threshold": (0, 1),
    "evaluation.batch_size": (1, _MANY),
    "evaluation.max_images": (0, _MANY),
}
_POSITIVE = (
    "model.anchor_scale",
    "model.pixel_std",
    "model.backbone.width",
    "model.backbone.depth",
    "model.backbone.survival",
    "loss.huber_delta",
    "training.epochs",
    "optimizer.learning_rate",
    "augmentation.scale_min",
    "augmentation.mixup_alpha",
    "postprocess.nms_sigma",
)
_BELOW_ONE = ("model.batch_norm_momentum", "optimizer.momentum", "optimizer.average_decay")


def check(config: ExperimentConfig) -> None:
    """Raises a UserError that names the first knob whose value cannot work."""
    for name, (low, high) in _RANGES.items():
        value = _field(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                raise UserError(f"`{name}` is {value}; it must be between {low:g} and {high:g}.")
    for name in _POSITIVE:
        value = _field(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not 0 < number < math.inf:
                raise UserError(f"`{name}` is {value}; it must be above 0.")
    for name in _BELOW_ONE:
        value = _field(config, name)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"`{name}` is {value}; it must be at least 0 and below 1.")
    model, augmentation = config.model, config.augmentation
    if min(model.image_size) < LEAST_SIDE:
        height, width = model.image_size
        raise UserError(f"`model.image_size` is {height} x {width}; both numbers must be at least {LEAST_SIDE}.")
    if 0 < config.optimizer.schedule_epochs < config.training.epochs:
        raise UserError(
            f"`optimizer.schedule_epochs` is {config.optimizer.schedule_epochs:g}; it must be 0 or at least "
            f"`training.epochs` ({config.training.epochs:g}), since the learning rate is 0 from then on."
        )
    if not model.aspect_ratios or min(min(shape) for shape in model.aspect_ratios) <= 0:
        raise UserError(f"`model.aspect_ratios` is {model.aspect_ratios}; expected pairs of numbers above 0.")
    if model.min_level != 3 or not 6 <= model.max_level <= 8:
        levels = f"{model.min_level}..{model.max_level}"
        raise UserError(f"`model.min_level..max_level` is {levels}; the first must be 3 and the last 6, 7 or 8.")
    if not augmentation.scale_min <= augmentation.scale_max <= 16:
        raise UserError(
            f"`augmentation.scale_max` is {augmentation.scale_max}; "
            f"it must be at least `augmentation.scale_min` ({augmentation.scale_min}) and at most 16."
        )


def _field(config: ExperimentConfig, name: str) -> Any:
    """Reads the knob with the dotted name `name`."""
    value: Any = config
    for part in name.split("."):
        value = vars(value)[part]
    return value
