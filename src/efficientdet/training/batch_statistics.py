"""Batch statistics measured again, for weights that are to be used ("precise BN", Wu and Johnson 2021, section 3).

Training normalises by the batch, inference by averages over the last steps' batches. With few images a batch those
averages are of no use: the coarsest levels have a cell or a few of each image, so the spread inside a batch is
smaller than that of all images, in every layer a little more. Here the weights stay, and larger batches go through
the network once: without gradients memory has room for four times as many images.
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
    """Says how many images a batch of the measurement has, and how many batches there are; (0, 0): none.

    Args:
        training: `recalibrate_images` (derived), `batch_size`, `accumulate_steps`.
        num_examples: training images.
    """
    wanted = min(training.recalibrate_images or 0, num_examples)
    if not wanted:
        return 0, 0
    together = training.batch_size // training.accumulate_steps
    batch_size = min(max(min(_GROWTH * together, _LARGEST_BATCH), together), wanted)
    return batch_size, wanted // batch_size


def make_measurement(model: Any) -> Callable[[list[Any], list[Any], Batch], list[Any]]:
    """Makes the pure function (trainable, non_trainable, batch) -> non_trainable with the statistics of the batch.

    Stochastic depth is off, as in inference; frozen parts keep theirs.
    """

    def measure(trainable: list[Any], non_trainable: list[Any], batch: Batch) -> list[Any]:
        inputs = {"images": batch["images"], "valid_size": batch["valid_size"]}
        with normalization.measured():
            _, found = model.stateless_call(trainable, non_trainable, inputs, training=False)
        return found

    return measure


class Recalibration:
    """Measures the statistics of a run's weights."""

    def __init__(self, model: Any, training: TrainingConfig, dataset: Dataset):
        """Compiles the measurement.

        Args:
            model: EfficientDet, whose weights they are.
            training: `recalibrate_images` (derived), `batch_size`, `accumulate_steps`, `xla`.
            dataset: whose training images are measured on.
        """
        self._model, self._dataset = model, dataset
        self._batch_size, self._count = plan(training, dataset.num_examples)
        self._measure = backend.compile_function(make_measurement(model), xla=training.xla)

    def __call__(self, trainable: list[Any], non_trainable: list[Any], guard: Callable[..., Any] = iter) -> list[Any]:
        """Puts measured statistics in the place of averaged ones.

        Args:
            trainable: weights, arrays on the device.
            non_trainable: statistics and states of random generators, likewise.
            guard: goes through batches, and may leave off.

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
        """Makes the state from which training goes on with statistics that stay as they are.

        Args:
            state: of the run, arrays on the device.

        Returns:
            The state on the host, with the statistics of its own weights, in the averages too.
        """
        measured = engine.to_host(self(state["trainable"], state["non_trainable"]))
        return {**engine.to_host(state), "non_trainable": measured, "average_non_trainable": measured}


def combine(names: list[str], old: list[np.ndarray], found: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Makes the statistics of all images from those of batches of a size.

    The variance is the mean of those inside the batches and the variance between their means.

    Args:
        names: of the arrays.
        old: arrays, of which those that are no statistics stay.
        found: the same for each batch.
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
