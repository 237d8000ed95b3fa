"""Batch statistics measured anew, for weights that are to be used ("precise BN", Wu and Johnson 2021, section 3).

Training normalises by the batch, inference by averages over the last steps' batches. With few pictures a batch those
averages are of no use: the coarsest levels have a cell or a few of each picture, so the spread inside of a batch is
smaller than that of all pictures, in every layer a little more. Here the weights stay, and larger batches go through
the network once: without gradients memory has room for four times as many pictures.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from efficientdet import progress
from efficientdet.config import TrainingConfig
from efficientdet.model import layers, weights
from efficientdet.structures import Batch
from efficientdet.training import engine

_LARGEST_BATCH = 64
_GROWTH = 4
_MEAN, _VARIANCE = "/moving_mean", "/moving_variance"


def plan(training: TrainingConfig, num_examples: int) -> tuple[int, int]:
    """Says how many pictures a batch of the measurement has, and how many batches there are; (0, 0): none.

    Args:
        training: `recalibrate_images` (derived), `batch_size`, `accumulate_steps`.
        num_examples: training pictures.
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
        with layers.measured(model):
            _, found = model.stateless_call(trainable, non_trainable, inputs, training=False)
        return found

    return measure


def recalibrate(
    measure: Callable[[list[Any], list[Any], Batch], list[Any]],
    model: Any,
    trainable: list[Any],
    non_trainable: list[Any],
    batches: Iterable[Batch],
    num_images: int,
) -> list[np.ndarray]:
    """Measures mean and variance of each normalised channel over all batches.

    The variance is that of all pictures: the mean of those inside of the batches and the variance between their means.

    Args:
        measure: compiled `make_measurement`.
        model: whose variables these are.
        trainable: the weights, arrays on the device.
        non_trainable: statistics and states of random generators.
        batches: at least one, all of a size.
        num_images: for the progress bar.

    Returns:
        `non_trainable` on the host, with the measured statistics.
    """
    total: list[np.ndarray] = []
    squares: list[np.ndarray] = []
    count = 0
    with progress.track("recalibrate", num_images) as bar:
        for batch in batches:
            found = engine.to_host(measure(trainable, non_trainable, engine.to_device(batch)))
            wide = [value.astype(np.float64) for value in found]
            total = [a + b for a, b in zip(total, wide, strict=True)] if count else wide
            squares = [a + b * b for a, b in zip(squares, wide, strict=True)] if count else [b * b for b in wide]
            count += 1
            bar.advance(len(batch["images"]))
    names = [weights.variable_name(variable) for variable in model.non_trainable_variables]
    means = {name: value / count for name, value in zip(names, total, strict=True)}
    between = {name: value / count - means[name] ** 2 for name, value in zip(names, squares, strict=True)}
    result = []
    for name, old in zip(names, engine.to_host(non_trainable), strict=True):
        if name.endswith(_VARIANCE):
            value = means[name] + np.maximum(between[name.removesuffix(_VARIANCE) + _MEAN], 0.0)
        else:
            value = means[name] if name.endswith(_MEAN) else old
        result.append(value.astype(old.dtype))
    return result
