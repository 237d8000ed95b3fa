"""The averaged weights on the validation pictures: losses and COCO metrics from one pass of the network."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from efficientdet import evaluation, progress
from efficientdet.config import ExperimentConfig
from efficientdet.model import postprocess
from efficientdet.structures import Batch, Category, Detections, Originals
from efficientdet.training import engine, losses, targets
from efficientdet.training.step import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What a validation found."""

    losses: dict[str, float]
    """Means over the batches: loss, class_loss, box_loss."""
    evaluation: evaluation.EvaluationResult
    examples: list[tuple[Batch, Detections]]
    """The first batch with its detections, in px of the network input, for pictures."""


def make_validation(model: Any, anchors: np.ndarray, config: ExperimentConfig) -> Callable[..., tuple[Detections, Any]]:
    """Makes the pure function (trainable, non_trainable, batch, is_real bool[B]) -> (Detections, losses).

    Rows that are not real only fill the last batch: they count in no loss.
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
    state: State,
    batches: Iterable[tuple[Batch, Originals]],
    categories: tuple[Category, ...],
    num_images: int,
) -> ValidationResult:
    """Evaluates the averaged weights of a state.

    Args:
        validate: compiled `make_validation`.
        state: arrays on the device.
        batches: one pass over the validation pictures.
        categories: the classes.
        num_images: for the progress bar.
    """
    evaluator = evaluation.CocoEvaluator(categories)
    rows: list[dict[str, float]] = []
    examples: list[tuple[Batch, Detections]] = []
    with progress.track("validate", num_images) as bar:
        for batch, originals in batches:
            is_real = np.asarray(originals["ids"] >= 0)
            found, values = validate(
                state["average_trainable"], state["average_non_trainable"], *engine.to_device((batch, is_real))
            )
            found, values = engine.to_host((found, values))
            rows.append({name: float(value) for name, value in values.items()})
            if not examples:
                examples.append((_rows(batch, is_real), _rows(found, is_real)))
            evaluator.add(originals, evaluation.to_originals(found, originals))
            bar.advance(int(is_real.sum()))
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return ValidationResult(losses=means, evaluation=evaluator.result(), examples=examples)


def _rows(part: Any, is_chosen: np.ndarray) -> Any:
    """Takes rows out of each array of a batch."""
    return {name: np.asarray(value)[is_chosen] for name, value in part.items()}
