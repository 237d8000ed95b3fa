"""Batch statistics remeasured for weights used at inference ("precise BN", Wu and Johnson 2021, section 3).

Training normalizes by the batch, inference by averages over the batches of the last steps. With few images per batch
those averages are useless: the coarsest levels have only one or a few cells per image, so the spread within a batch is
smaller than that over all images, and the effect grows from layer to layer. Here larger batches go through the network
once with constant weights: without gradients, memory has room for four times as many images.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from efficientdet import backend, progress
from efficientdet.config import TrainingConfig
from efficientdet.model import normalization, weights
from efficientdet.structures import Batch
from efficientdet.training.dataset import Dataset
from efficientdet.training.distributed import engine
from efficientdet.training.step import State

_LARGEST_BATCH = 64
_GROWTH = 4
_MEAN, _VARIANCE = "/moving_mean", "/moving_variance"


def plan(training: TrainingConfig, num_examples: int) -> tuple[int, int]:
    """Computes batch size and number of batches of the measurement; (0, 0) if there is none.

    Args:
        training: `recalibrate_images` (derived), `batch_size`, `accumulate_steps`.
        num_examples: number of training images.
    """
    wanted = min(training.recalibrate_images or 0, num_examples)
    if not wanted:
        return 0, 0
    together = training.batch_size // training.accumulate_steps
    batch_size = min(max(min(_GROWTH * together, _LARGEST_BATCH), together), wanted)
    return batch_size, wanted // batch_size


def make_measurement(model: Any) -> Callable[[list[Any], list[Any], Batch], list[Any]]:
    """Creates the pure function (trainable, non_trainable, batch) -> non_trainable with the statistics of the batch.

    Stochastic depth is off, as in inference; frozen parts keep their statistics.
    """

    def measure(trainable: list[Any], non_trainable: list[Any], batch: Batch) -> list[Any]:
        inputs = {"images": batch["images"], "valid_size": batch["valid_size"]}
        with normalization.measured():
            _, found = model.stateless_call(trainable, non_trainable, inputs, training=False)
        return found

    return measure


class Recalibration:
    """Measures batch statistics for the weights of a run."""

    def __init__(self, model: Any, training: TrainingConfig, dataset: Dataset):
        """Compiles the measurement.

        Args:
            model: EfficientDet.
            training: `recalibrate_images` (derived), `batch_size`, `accumulate_steps`, `xla`.
            dataset: provides the training images.
        """
        self._model, self._dataset = model, dataset
        self._batch_size, self._count = plan(training, dataset.num_examples)
        self._measure = backend.compile_function(make_measurement(model), xla=training.xla)

    def __call__(self, trainable: list[Any], non_trainable: list[Any], guard: Callable[..., Any] = iter) -> list[Any]:
        """Replaces averaged statistics by measured ones.

        Args:
            trainable: weights, arrays on the device.
            non_trainable: statistics and random generator states, arrays on the device.
            guard: iterates over batches and may stop early.

        Returns:
            `non_trainable` with measured means and variances.
        """
        if not self._count:
            return non_trainable
        found = []
        with progress.track("recalibrate", self._batch_size * self._count) as bar:
            for batch in guard(self._dataset.plain_batches(self._batch_size, self._count)):
                found.append(engine.to_host(self._measure(trainable, non_trainable, engine.to_device(batch))))
                bar.advance(self._batch_size)
        names = [weights.variable_name(variable) for variable in self._model.non_trainable_variables]
        return engine.to_device(combine(names, engine.to_host(non_trainable), found))

    def fix(self, state: State) -> State:
        """Returns the state to continue training with constant statistics.

        Args:
            state: state of the run, arrays on the device.

        Returns:
            The state on the host, with statistics measured for its current weights, in the averages too.
        """
        measured = engine.to_host(self(state["trainable"], state["non_trainable"]))
        return {**engine.to_host(state), "non_trainable": measured, "average_non_trainable": measured}


def combine(names: list[str], old: list[np.ndarray], found: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Combines the statistics of equally large batches into those of all images.

    The variance is the mean of the variances within the batches plus the variance of their means.

    Args:
        names: names of the arrays.
        old: arrays; those that are not statistics are kept.
        found: the same arrays for each batch.
    """
    of_batches = dict(
        zip(names, (np.stack(values).astype(np.float64) for values in zip(*found, strict=True)), strict=True)
    )
    result = []
    for name, value in zip(names, old, strict=True):
        if name.endswith(_MEAN):
            new = of_batches[name].mean(axis=0)
        elif name.endswith(_VARIANCE):
            means = of_batches[name.removesuffix(_VARIANCE) + _MEAN]
            new = of_batches[name].mean(axis=0) + means.var(axis=0)
        else:
            new = value
        result.append(new.astype(value.dtype))
    return result
