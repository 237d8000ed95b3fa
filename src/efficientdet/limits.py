"""Which values a knob may have."""

import math
from typing import Any

from efficientdet.config import LEAST_SIDE, ExperimentConfig, ModelConfig
from efficientdet.errors import UserError

_MANY = 2**31 - 1
# Numbers in one tensor of one image: 4 GB. The largest published network, D7x at 1536 px, has 1.1 * 10^8.
_MOST_NUMBERS = 2**30
_LARGEST_SIDE = 100_000  # px
_RANGES: dict[str, tuple[float, float]] = {
    "overfit": (0, _MANY),
    "model.num_classes": (1, _MANY),
    "model.feature_channels": (1, 100_000),
    "model.num_cells": (1, 20),
    "model.head_repeats": (0, 20),
    "model.num_octaves": (1, 100),
    "model.anchor_scale": (0, 1000),
    "model.backbone.width": (0, 20),
    "model.backbone.depth": (0, 20),
    "model.backbone.survival": (0, 1),
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
    "training.join_seconds": (1, 1e6),
    "training.seed": (0, _MANY),
    "training.evaluate_every": (0, 1e6),
    "training.evaluate_from": (0, 1e6),
    "training.patience": (0, _MANY),
    "training.recalibrate_images": (0, _MANY),
    "training.fixed_statistics": (0, 1),
    "training.log_every": (1, _MANY),
    "training.checkpoint_every": (1, _MANY),
    "training.keep_checkpoints": (1, _MANY),
    "training.max_bad_steps": (1, _MANY),
    "postprocess.max_candidates": (1, 1_000_000),
    "postprocess.max_detections": (1, 10_000),
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
_BELOW_ONE = ("model.batch_norm_momentum", "optimizer.momentum", "optimizer.square_decay", "optimizer.average_decay")


def check(config: ExperimentConfig) -> None:
    """Raises a UserError that names the first knob whose value cannot work."""
    for name, (low, high) in _RANGES.items():
        value = _field(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                raise UserError(f"`{name}` is {value}; it must be between {low:,.12g} and {high:,.12g}.")
    for name in _POSITIVE:
        value = _field(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not 0 < number < math.inf:
                raise UserError(f"`{name}` is {value}; it must be above 0.")
    for name in _BELOW_ONE:
        value = _field(config, name)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"`{name}` is {value}; it must be at least 0 and below 1.")
    _check_levels(config.model)
    check_image_size(config.model)
    augmentation = config.augmentation
    if 0 < config.optimizer.schedule_epochs < config.training.epochs:
        raise UserError(
            f"`optimizer.schedule_epochs` is {config.optimizer.schedule_epochs:g}; it must be 0 or at least "
            f"`training.epochs` ({config.training.epochs:g}), since the learning rate is 0 from then on."
        )
    if not augmentation.scale_min <= augmentation.scale_max <= 16:
        raise UserError(
            f"`augmentation.scale_max` is {augmentation.scale_max}; "
            f"it must be at least `augmentation.scale_min` ({augmentation.scale_min}) and at most 16."
        )


def _check_levels(model: ModelConfig) -> None:
    """Raises a UserError for levels or anchors that cannot work."""
    if model.min_level != 3 or not 5 <= model.max_level <= 8:
        levels = f"{model.min_level}..{model.max_level}"
        raise UserError(f"`model.min_level..max_level` is {levels}; the first must be 3 and the last 5, 6, 7 or 8.")
    wrong = [shape for shape in model.aspect_ratios if not all(0 < factor <= 100 for factor in shape)]
    if wrong or not model.aspect_ratios:
        found = f"has {wrong[0]}" if wrong else "is ()"
        raise UserError(f"`model.aspect_ratios` {found}; expected pairs of numbers above 0, at most 100.")


def check_image_size(model: ModelConfig, name: str = "model.image_size") -> None:
    """Raises a UserError if images of a size cannot go through a network.

    Args:
        model: the network, with the size.
        name: what the size is called.
    """
    height, width = model.image_size
    if min(height, width) < LEAST_SIDE or max(height, width) > _LARGEST_SIDE:
        raise UserError(
            f"`{name}` is {height} x {width}; both numbers must be at least {LEAST_SIDE}, at most {_LARGEST_SIDE:,}."
        )
    cells = math.ceil(height / 8) * math.ceil(width / 8)
    anchors = cells * model.num_octaves * len(model.aspect_ratios)
    numbers = {
        "backbone": height * width * 24 * model.backbone.width,  # 96 channels at half of each side
        "feature network": cells * model.feature_channels,
        "class head": anchors * model.num_classes,
        "list of anchors": anchors * 16,
    }
    part = max(numbers, key=lambda part: numbers[part])
    if numbers[part] > _MOST_NUMBERS:
        raise UserError(
            f"`{name}` is {height} x {width}; the {part} would need {numbers[part]:.1e} numbers for an image, "
            f"{_MOST_NUMBERS:.1e} is the most."
        )


def _field(config: ExperimentConfig, name: str) -> Any:
    """Reads the knob with the dotted name `name`."""
    value: Any = config
    for part in name.split("."):
        value = vars(value)[part]
    return value
