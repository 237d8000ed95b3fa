"""The model family and the named recipes: values, no logic.

D0..D7x and Lite follow table 1 of the paper as published by google/automl; `demo` is our own, small enough to learn
generated images on two CPU cores in minutes.
"""

from dataclasses import replace

from efficientdet import config as configs
from efficientdet.config import (
    BackboneConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from efficientdet.errors import UserError

# Width and depth of EfficientNet-B0..B7 (EfficientNet, section 3.3); the Lite backbones use those of B0..B4.
_WIDTH_DEPTH = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}


def _backbone(name: str) -> BackboneConfig:
    width, depth = _WIDTH_DEPTH[name]
    # google/automl trains B0 without stochastic depth, all others with a survival probability of 0.8 at the last block.
    return BackboneConfig(name=f"efficientnet-{name}", width=width, depth=depth, survival=1.0 if name == "b0" else 0.8)


def _lite_backbone(number: int) -> BackboneConfig:
    width, depth = _WIDTH_DEPTH[f"b{number}"]
    return BackboneConfig(
        name=f"efficientnet-lite{number}",
        width=width,
        depth=depth,
        squeeze_excite=False,
        fixed_ends=True,
        survival=0.8,
    )


def _d(name: str, size: int, backbone: str, channels: int, cells: int, repeats: int, **other: object) -> ModelConfig:
    model = ModelConfig(
        name=f"efficientdet-{name}",
        image_size=(size, size),
        backbone=_backbone(backbone),
        feature_channels=channels,
        num_cells=cells,
        head_repeats=repeats,
    )
    return replace(model, **other)  # type: ignore[arg-type]


def _lite(name: str, number: int, size: int, channels: int, cells: int, repeats: int, scale: float) -> ModelConfig:
    return ModelConfig(
        name=f"efficientdet-{name}",
        image_size=(size, size),
        backbone=_lite_backbone(number),
        feature_channels=channels,
        num_cells=cells,
        head_repeats=repeats,
        fusion="sum",
        activation="relu6",
        anchor_scale=scale,
        pixel_mean=(127 / 255,) * 3,
        pixel_std=(128 / 255,) * 3,
    )


MODELS = {
    "d0": _d("d0", 512, "b0", 64, 3, 3),
    "d1": _d("d1", 640, "b1", 88, 4, 3),
    "d2": _d("d2", 768, "b2", 112, 5, 3),
    "d3": _d("d3", 896, "b3", 160, 6, 4),
    "d4": _d("d4", 1024, "b4", 224, 7, 4),
    "d5": _d("d5", 1280, "b5", 288, 7, 4),
    "d6": _d("d6", 1280, "b6", 384, 8, 5, fusion="sum"),
    "d7": _d("d7", 1536, "b6", 384, 8, 5, fusion="sum", anchor_scale=5.0),
    "d7x": _d("d7x", 1536, "b7", 384, 8, 5, fusion="sum", max_level=8),
    "lite0": _lite("lite0", 0, 320, 64, 3, 3, 3.0),
    "lite1": _lite("lite1", 1, 384, 88, 4, 3, 3.0),
    "lite2": _lite("lite2", 2, 448, 112, 5, 3, 3.0),
    "lite3": _lite("lite3", 3, 512, 160, 6, 4, 4.0),
    "lite3x": _lite("lite3x", 3, 640, 200, 6, 4, 3.0),
    "lite4": _lite("lite4", 4, 640, 224, 7, 4, 4.0),
    "demo": ModelConfig(
        name="efficientdet-demo",
        image_size=(128, 128),
        backbone=BackboneConfig(name="efficientnet-demo", width=0.75, depth=0.5),
        feature_channels=64,
        num_cells=1,
        head_repeats=2,
        anchor_scale=2.5,
        max_level=5,
        batch_norm_momentum=0.9,
    ),
}

_DEMO = ExperimentConfig(
    preset="demo",
    model=MODELS["demo"],
    augmentation=configs.AugmentationConfig(scale_min=0.9, scale_max=1.15),
    optimizer=OptimizerConfig(method="adam", learning_rate=0.008, warmup_epochs=0.5, average_decay=0.99),
    training=TrainingConfig(
        batch_size=8,
        epochs=4.6,
        evaluate_every=0,
        checkpoint_every=200,
        recalibrate_images=320,
        fixed_statistics=0.5,
    ),
    evaluation=EvaluationConfig(batch_size=16),
)


def _nvidia(
    precision: configs.Precision,
    *,
    batch_size: int,
    epochs: float,
    schedule_epochs: float,
    learning_rate: float,
    warmup_epochs: float,
    average_decay: float,
    momentum: float,
    evaluate_every: float = 10,
) -> ExperimentConfig:
    """Creates one of NVIDIA's recipes for COCO; training ends after `epochs`, before the schedule does."""
    return ExperimentConfig(
        model=MODELS["d0"],
        backbone="imagenet",
        optimizer=OptimizerConfig(
            method="sgd",
            learning_rate=learning_rate,
            warmup_epochs=warmup_epochs,
            schedule_epochs=schedule_epochs,
            momentum=momentum,
            average_decay=average_decay,
        ),
        training=TrainingConfig(
            batch_size=batch_size,
            epochs=epochs,
            precision=precision,
            batch_norm="per_replica",
            evaluate_every=evaluate_every,
            evaluate_from=200,
        ),
    )


_A100 = {"schedule_epochs": 400.0, "warmup_epochs": 25.0, "average_decay": 0.999, "momentum": 0.93}
_8_V100 = {"schedule_epochs": 300.0, "warmup_epochs": 5.0, "average_decay": 0.9999, "momentum": 0.9}
_32_V100 = {"schedule_epochs": 350.0, "warmup_epochs": 90.0, "average_decay": 0.999, "momentum": 0.95}

# Batch sizes are over all GPUs. Whatever the schedule, NVIDIA's training ends after 300 epochs. All but the second
# evaluate during training; its script evaluates at the end only.
RECIPES = {
    "d0-amp-8xa100": _nvidia("mixed_float16", batch_size=1600, epochs=300, learning_rate=2.2, **_A100),
    "d0-tf32-8xa100": _nvidia("tf32", batch_size=832, epochs=300, learning_rate=1.1, evaluate_every=0, **_A100),
    "d0-amp-8xv100": _nvidia("mixed_float16", batch_size=512, epochs=300, learning_rate=0.7, **_8_V100),
    "d0-fp32-8xv100": _nvidia("float32", batch_size=320, epochs=300, learning_rate=0.4, **_8_V100),
    "d0-amp-32xv100": _nvidia("mixed_float16", batch_size=2048, epochs=300, learning_rate=1.5, **_32_V100),
    "d0-fp32-32xv100": _nvidia("float32", batch_size=1280, epochs=300, learning_rate=1.0, **_32_V100),
    # Our own: google/automl's schedule on one large GPU, and a recipe for a few hundred images on two CPU cores.
    "d0-1xh200": ExperimentConfig(
        model=MODELS["d0"],
        backbone="imagenet",
        training=TrainingConfig(batch_size=256, epochs=300, precision="mixed_bfloat16", evaluate_every=10),
    ),
    "d0-cpu": ExperimentConfig(
        model=replace(MODELS["d0"], image_size=(256, 256), batch_norm_momentum=0.9),
        backbone="imagenet",
        augmentation=configs.AugmentationConfig(scale_min=0.5, scale_max=1.5),
        optimizer=OptimizerConfig(method="sgd", learning_rate=0.03, warmup_epochs=1.0, average_decay=0.99),
        training=TrainingConfig(
            batch_size=8, epochs=24, evaluate_every=8, recalibrate_images=640, fixed_statistics=0.5
        ),
    ),
}
"""NVIDIA's six recipes for COCO, each in the `training_mode` of its script (see docs/from-nvidia.md for the other
modes), and two of our own."""

PRESETS = {
    **{name: ExperimentConfig(preset=name, model=model) for name, model in MODELS.items()},
    "d7": ExperimentConfig(preset="d7", model=MODELS["d7"], training=TrainingConfig(epochs=600)),
    "d7x": ExperimentConfig(preset="d7x", model=MODELS["d7x"], training=TrainingConfig(epochs=600)),
    "demo": _DEMO,
    **{name: replace(recipe, preset=name) for name, recipe in RECIPES.items()},
}


def find_preset(name: str) -> ExperimentConfig:
    """Returns the preset called `name`; raises a UserError that lists all presets if there is none."""
    if name not in PRESETS:
        raise UserError(f"`{name}` is not a preset; choose from {', '.join(PRESETS)}.")
    return PRESETS[name]
