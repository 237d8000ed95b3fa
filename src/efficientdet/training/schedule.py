"""The schedule of a run: epochs of the configuration converted to steps, and the values derived from their number.

google/automl's values are for COCO: 0.08 for a batch of 64, one epoch of warm-up, batch statistics averaged over 100
steps. They assume 550,000 steps. With 300 images an epoch has five steps, and a run may have 500. So each value has
a form for short runs that approaches google/automl's for long ones. With S the steps of the run and B its batch size:

    learning rate     0.08 B/64; for B < 64 times sqrt(10,000/S), at least 1 and at most sqrt(64/B)
    warm-up           one epoch, at least 100 steps, at most S/10
    batch statistics  averaged over S/50 steps, at least 10 (PyTorch's 0.9) and at most 100; n steps are a decay of
                      1 - 1/n; if fewer than 32 images are normalized together, measured on 640 (`batch_statistics`),
                      and the last half of the run is trained with them

Values set in the configuration are kept. The weight average needs no rule: with a decay of (1 + n) / (10 + n), updates
up to k have a share of (k/n)^9 after n updates, so the average covers the last tenth of any run up to 45,000 steps.
"""

import dataclasses
import math

from efficientdet.config import ExperimentConfig, TrainingConfig

_LONG_RUN = 10_000
"""Number of steps from which the learning rate of a small batch is proportional to its size."""
_REFERENCE_BATCH, _REFERENCE_RATE = 64, 0.08
_ADAM_RATE, _ADAM_RATE_BEHIND_A_BACKBONE = 0.02, 0.008
"""At the reference batch size."""
_LEAST_WARMUP = 100
_STATISTICS = (10, 100)
_FEW_TOGETHER, _RECALIBRATION, _FIXED = 32, 640, 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run."""

    steps_per_epoch: float
    """Not whole if the batch size does not divide the number of images: a batch may span two epochs."""
    total_steps: int
    """Steps of the whole run, at least one."""
    evaluation_steps: frozenset[int]
    """Steps after which the run is evaluated, including the last one."""
    fixed_from: int
    """Step after which batch statistics are constant; `total_steps` if they never are."""
    learning_rate: dict[str, float]
    """Arguments of `optimizer.learning_rate`."""


def derive(config: ExperimentConfig, num_examples: int) -> tuple[ExperimentConfig, dict[str, float | str]]:
    """Fills in the values that depend on the size of batch, dataset and run unless they are set.

    Args:
        config: config of the run.
        num_examples: number of training images.

    Returns:
        The configuration with these values filled in, and the derived values: dotted name -> value.
    """
    batch_size = config.training.batch_size
    steps_per_epoch = num_examples / batch_size
    steps = _total_steps(config.training, num_examples)
    warmup_steps = min(max(steps_per_epoch, _LEAST_WARMUP), steps / 10)
    together = batch_size // config.training.accumulate_steps
    # A given rate is assumed to be for SGD: all published ones are.
    # With a pretrained backbone, heads and BiFPN still start random; a whole pretrained detector needs small changes.
    is_open = config.optimizer.learning_rate is None and not config.weights
    method = config.optimizer.method or ("adam" if is_open and steps < _LONG_RUN else "sgd")
    rules: dict[str, float | str] = {
        "optimizer.method": method,
        "optimizer.learning_rate": (
            peak_rate(batch_size, steps)
            if method == "sgd"
            else adam_rate(batch_size, has_backbone=bool(config.backbone))
        ),
        "optimizer.warmup_epochs": warmup_steps / steps_per_epoch,
        "model.batch_norm_momentum": _decay(min(max(steps / 50, _STATISTICS[0]), _STATISTICS[1])),
    }
    is_small = together < _FEW_TOGETHER
    rules["training.recalibrate_images"] = min(_RECALIBRATION, num_examples) if is_small else 0
    rules["training.fixed_statistics"] = _FIXED if is_small else 0.0
    derived: dict[str, float | str] = {}
    for name, value in rules.items():
        section, field = name.split(".")
        part = vars(config)[section]
        if vars(part)[field] is None:
            derived[name] = value
            config = dataclasses.replace(config, **{section: dataclasses.replace(part, **{field: value})})
    return config, derived


def peak_rate(batch_size: int, steps: int) -> float:
    """Computes the SGD learning rate for a batch size.

    In long runs it is proportional to the batch size (EfficientDet: 0.16 at 128), so that each image has the same
    weight. With a small batch in a short run that gives too few and too small steps, so the rate follows the square
    root of the batch size there.

    Args:
        batch_size: images per update.
        steps: steps of the whole run.
    """
    share = batch_size / _REFERENCE_BATCH
    rate = _REFERENCE_RATE * share
    return rate if share >= 1 else rate * min(max(math.sqrt(_LONG_RUN / steps), 1.0), math.sqrt(1 / share))


def adam_rate(batch_size: int, *, has_backbone: bool = False) -> float:
    """Computes the Adam learning rate, which follows the square root of the batch size (Malladi et al. 2022).

    Args:
        batch_size: images per update.
        has_backbone: whether the backbone is pretrained; its weights then need smaller steps.
    """
    rate = _ADAM_RATE_BEHIND_A_BACKBONE if has_backbone else _ADAM_RATE
    return rate * math.sqrt(batch_size / _REFERENCE_BATCH)


def _decay(steps: float) -> float:
    """Converts the number of steps that a moving average covers to its decay."""
    return round(1 - 1 / max(steps, 1.0), 6)


def _total_steps(training: TrainingConfig, num_examples: int) -> int:
    return max(math.ceil(training.epochs * num_examples / training.batch_size), 1)


def make_schedule(config: ExperimentConfig, num_examples: int) -> Schedule:
    """Converts the epochs of a configuration to steps.

    Args:
        config: config of the run, with derived values.
        num_examples: number of training images.
    """
    training, optimizer = config.training, config.optimizer
    peak, warmup_epochs = optimizer.learning_rate, optimizer.warmup_epochs
    assert peak is not None, "`derive` comes first"
    assert warmup_epochs is not None, "`derive` comes first"
    steps_per_epoch = num_examples / training.batch_size
    total_steps = _total_steps(training, num_examples)
    return Schedule(
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        evaluation_steps=_evaluation_steps(training, steps_per_epoch, total_steps),
        fixed_from=total_steps - math.floor((training.fixed_statistics or 0.0) * total_steps),
        learning_rate={
            "peak": peak,
            "start": min(optimizer.warmup_learning_rate, peak),
            "warmup_steps": warmup_epochs * steps_per_epoch,
            "total_steps": max(optimizer.schedule_epochs * steps_per_epoch, float(total_steps)),
        },
    )


def _evaluation_steps(training: TrainingConfig, steps_per_epoch: float, total_steps: int) -> frozenset[int]:
    """Lists the steps after which the run is evaluated."""
    steps = {total_steps}
    if training.evaluate_every:
        count = int(training.epochs / training.evaluate_every)
        epochs = [k * training.evaluate_every for k in range(1, count + 1)]
        steps |= {math.ceil(epoch * steps_per_epoch) for epoch in epochs if epoch >= training.evaluate_from}
    return frozenset(step for step in steps if step <= total_steps)
