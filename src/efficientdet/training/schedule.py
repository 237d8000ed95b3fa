"""When a run does what: epochs of the configuration, in steps; and the values that follow from their number.

google/automl's values are for COCO: 0.08 for a batch of 64, one epoch of warm-up, batch statistics that remember 100
steps. They presume 550,000 steps. With 300 images an epoch has five steps, and a run may have 500. So each value has
a form for short runs that becomes google/automl's as the run becomes long. With S the steps of the run and B its batch:

    learning rate     0.08 B/64; for B < 64 times sqrt(10,000/S), at least 1 and at most sqrt(64/B)
    warm-up           one epoch, at least 100 steps, at most S/10
    batch statistics  remember S/50 steps, at least 10 (PyTorch's 0.9) and at most 100; n steps are a decay of 1 - 1/n;
                      if fewer than 32 images are normalised together, measured on 640 (`batch_statistics`), and
                      the last half of the run is trained with them

What a configuration says itself is left as it is. The weight average needs no rule: with a decay of (1 + n) / (10 + n)
the updates up to k share (k/n)^9 of it after n, so that it remembers a tenth of any run up to 45,000 steps.
"""

import dataclasses
import math

from efficientdet.config import ExperimentConfig, TrainingConfig

_LONG_RUN = 10_000
"""Steps from which on a small batch has a learning rate in proportion to its size."""
_REFERENCE_BATCH, _REFERENCE_RATE = 64, 0.08
_ADAM_RATE, _ADAM_RATE_BEHIND_A_BACKBONE = 0.02, 0.008
"""At the reference batch."""
_LEAST_WARMUP = 100
_STATISTICS = (10, 100)
_FEW_TOGETHER, _RECALIBRATION, _FIXED = 32, 640, 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run."""

    steps_per_epoch: float
    """Not whole where the batch does not divide the images: a batch may span two epochs."""
    total_steps: int
    """Steps of the whole run, at least one."""
    evaluation_steps: frozenset[int]
    """Steps after which the run is evaluated; the last one is among them."""
    fixed_from: int
    """Steps after which batch statistics stay as they are; those of the whole run if they never do."""
    learning_rate: dict[str, float]
    """Arguments of `optimizer.learning_rate`."""


def derive(config: ExperimentConfig, num_examples: int) -> tuple[ExperimentConfig, dict[str, float | str]]:
    """Fills in the values that a configuration leaves to the size of batch, dataset and run.

    Args:
        config: of the run.
        num_examples: training images.

    Returns:
        The configuration without None among them, and what was filled in: dotted name -> value.
    """
    batch_size = config.training.batch_size
    steps_per_epoch = num_examples / batch_size
    steps = _total_steps(config.training, num_examples)
    warmup_steps = min(max(steps_per_epoch, _LEAST_WARMUP), steps / 10)
    together = batch_size // config.training.accumulate_steps
    # Whoever gives a rate has SGD's in mind: all published ones are.
    # The heads and the BiFPN are random behind a backbone, too; a whole detector needs to move little.
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
    """Computes the learning rate of a batch.

    Long runs: in proportion to the batch (EfficientDet: 0.16 at 128), so that images count the same in each. A small
    batch in a short run makes too few and too small steps that way; there the rate goes with the root of the batch.

    Args:
        batch_size: images of one update.
        steps: of the whole run.
    """
    share = batch_size / _REFERENCE_BATCH
    rate = _REFERENCE_RATE * share
    return rate if share >= 1 else rate * min(max(math.sqrt(_LONG_RUN / steps), 1.0), math.sqrt(1 / share))


def adam_rate(batch_size: int, *, has_backbone: bool = False) -> float:
    """Computes the learning rate of a batch for Adam: with the root of the batch (Malladi et al. 2022).

    Args:
        batch_size: images of one update.
        has_backbone: whether the backbone knows images already; its weights then need smaller steps.
    """
    rate = _ADAM_RATE_BEHIND_A_BACKBONE if has_backbone else _ADAM_RATE
    return rate * math.sqrt(batch_size / _REFERENCE_BATCH)


def _decay(steps: float) -> float:
    """Turns the steps that a moving average remembers into its decay."""
    return round(1 - 1 / max(steps, 1.0), 6)


def _total_steps(training: TrainingConfig, num_examples: int) -> int:
    return max(math.ceil(training.epochs * num_examples / training.batch_size), 1)


def make_schedule(config: ExperimentConfig, num_examples: int) -> Schedule:
    """Turns the epochs of a configuration into steps.

    Args:
        config: of the run, with derived values.
        num_examples: training images.
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
