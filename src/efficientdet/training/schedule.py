"""When a run does what: epochs of the configuration, in steps."""

import dataclasses
import math

from efficientdet.config import ExperimentConfig, TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run."""

    steps_per_epoch: float
    """Not whole where the batch does not divide the pictures: a batch may span two epochs."""
    total_steps: int
    """Steps of the whole run, at least one."""
    evaluation_steps: frozenset[int]
    """Steps after which the run is evaluated; the last one is among them."""
    learning_rate: dict[str, float]
    """Arguments of `optimizer.learning_rate`."""


def make_schedule(config: ExperimentConfig, num_examples: int) -> Schedule:
    """Turns the epochs of a configuration into steps.

    Args:
        config: of the run.
        num_examples: training pictures.
    """
    training, optimizer = config.training, config.optimizer
    steps_per_epoch = num_examples / training.batch_size
    total_steps = max(math.ceil(training.epochs * steps_per_epoch), 1)
    # 0.08 a batch of 64 is google/automl's rule (EfficientDet: 0.16 at 128).
    peak = 0.08 * training.batch_size / 64 if optimizer.learning_rate is None else optimizer.learning_rate
    return Schedule(
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        evaluation_steps=_evaluation_steps(training, steps_per_epoch, total_steps),
        learning_rate={
            "peak": peak,
            "start": min(optimizer.warmup_learning_rate, peak),
            "warmup_steps": optimizer.warmup_epochs * steps_per_epoch,
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
