"""Evaluates the averaged weights on the validation images: losses and COCO metrics from one pass of the network."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from efficientdet import progress
from efficientdet.config import ExperimentConfig
from efficientdet.evaluation import counting, plausibility
from efficientdet.model import postprocess
from efficientdet.structures import Batch, Category, Detections, Originals
from efficientdet.training import losses, targets
from efficientdet.training.distributed import engine, processes

_LOSS = "loss of the batch: "


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Result of a validation."""

    losses: dict[str, float]
    """Means over the batches: loss, class_loss, box_loss."""
    evaluation: counting.EvaluationResult
    watch: plausibility.Watch
    """Finds images that are full of confident boxes."""
    examples: list[tuple[Batch, Detections]]
    """The first batch with its detections, in px of the network input, for the contact sheet."""


def make_validation(model: Any, anchors: np.ndarray, config: ExperimentConfig) -> Callable[..., tuple[Detections, Any]]:
    """Creates the pure function (trainable, non_trainable, batch, is_real bool[B]) -> (Detections, losses).

    Rows that are not real only fill up the last batch and don't count in any loss.
    """

    def validate(
        trainable: list[Any], non_trainable: list[Any], batch: Batch, is_real: Any
    ) -> tuple[Detections, dict[str, Any]]:
        inputs = {"images": batch["images"], "valid_size": batch["valid_size"]}
        raw, _ = model.stateless_call(trainable, non_trainable, inputs, training=False)
        wanted = targets.assign(anchors, batch, config.loss.match_iou)
        values = losses.detection_losses(raw, wanted, config.loss, is_real)
        return postprocess.detect(raw, anchors, config.postprocess), values

    return validate


def evaluate_averages(
    validate: Callable[..., tuple[Detections, Any]],
    trainable: list[Any],
    non_trainable: list[Any],
    batches: Iterable[tuple[Batch, Originals]],
    categories: tuple[Category, ...],
    num_images: int,
) -> ValidationResult:
    """Evaluates averaged weights.

    With n processes, each takes every n-th batch; results are merged in the order of the batches, so that they equal
    those of a single process to the last digit.

    Args:
        validate: compiled function of `make_validation`.
        trainable: averaged weights, arrays on one device of this process.
        non_trainable: matching batch statistics, likewise.
        batches: one pass over the validation images, the same in every process.
        categories: the classes.
        num_images: number of images, for the progress bar.
    """
    evaluator = counting.CocoEvaluator(categories)
    examples: list[tuple[Batch, Detections]] = []
    own: dict[int, dict[str, np.ndarray]] = {}
    originals_of: dict[int, Originals] = {}
    with progress.track("validate", num_images) as bar:
        for number, (batch, originals) in enumerate(batches):
            originals_of[number] = originals
            is_real = np.asarray(originals["ids"] >= 0)
            if number % processes.count() == processes.index():
                found, values = validate(trainable, non_trainable, *engine.to_device((batch, is_real)))
                found, values = engine.to_host((found, values))
                own[number] = {**found, **{f"{_LOSS}{name}": value for name, value in values.items()}}
                if not examples:
                    examples.append((_rows(batch, is_real), _rows(found, is_real)))
            bar.advance(int(is_real.sum()))
    rows: list[dict[str, float]] = []
    for number, arrays in sorted(_gathered(own).items()):
        rows.append({name.removeprefix(_LOSS): float(arrays.pop(name)) for name in list(arrays) if _LOSS in name})
        found_there: Any = arrays
        evaluator.add(originals_of[number], counting.to_originals(found_there, originals_of[number]))
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return ValidationResult(losses=means, evaluation=evaluator.result(), watch=evaluator.watch, examples=examples)


def _gathered(own: dict[int, dict[str, np.ndarray]]) -> dict[int, dict[str, np.ndarray]]:
    """Merges the batches of all processes."""
    flat = {f"{number}/{name}": array for number, arrays in own.items() for name, array in arrays.items()}
    batches: dict[int, dict[str, np.ndarray]] = {}
    for arrays in processes.gather(flat):
        for name, array in arrays.items():
            number, _, field = name.partition("/")
            batches.setdefault(int(number), {})[field] = array
    return batches


def _rows(part: Any, is_chosen: np.ndarray) -> Any:
    """Selects rows of each array in a batch."""
    return {name: np.asarray(value)[is_chosen] for name, value in part.items()}
