"""Batch normalization followed by an activation, as used throughout the network."""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any, Literal

import keras
from keras import ops

from efficientdet.kernels import choice
from efficientdet.kernels.normalization import activate
from efficientdet.structures import Features

BATCH_NORM_EPSILON = 1e-3

_statistics: contextvars.ContextVar[Literal["batch", "moving", "measured"]] = contextvars.ContextVar(
    "statistics", default="batch"
)
"""Statistics that networks normalize by during training: see `fixed` and `measured`."""


def batch_norm(name: str, momentum: float | None, dtype: Any, activation: str | None = None) -> keras.layers.Layer:
    """Creates a batch normalization, with the activation that follows it, if any.

    `momentum` may be None if the network is not trained.
    """
    number = math.nan if momentum is None else momentum  # Keras requires a number
    return BatchNorm(activation, momentum=number, epsilon=BATCH_NORM_EPSILON, name=name, dtype=dtype)


class BatchNorm(keras.layers.BatchNormalization):
    """Keras's batch normalization, x * factor + shift, and an activation; more exact in inference, faster in training.

    Factor and shift are the same for all pixels, so their rounding errors don't average out: if float64 is available
    (TensorFlow), they are computed in it and rounded once. For D0 this halves the error of the outputs against float64.

    compute_dtype[B, h, w, D] -> the same
    """

    def __init__(self, activation: str | None = None, **kwargs: Any):
        """Takes `activation`, see `activate`; None: no activation."""
        super().__init__(**kwargs)
        self.activation = activation
        self.kernels = choice.current()

    def call(self, inputs: Features, training: bool | None = None, mask: Any = None) -> Features:
        """Normalizes by the batch during training, else by the moving statistics, and applies the activation."""
        statistics = _statistics.get()
        if not self.trainable or not (training or statistics == "measured"):
            return activate(self._normalize_as_learnt(inputs), self.activation)
        options = {"epsilon": self.epsilon, "activation": self.activation}
        gamma, beta, mean = (ops.convert_to_tensor(own) for own in (self.gamma, self.beta, self.moving_mean))
        if statistics == "moving":
            variance = ops.convert_to_tensor(self.moving_variance)
            return self.kernels.rescale(inputs, gamma, beta, mean, variance, **options)
        # `once`: a measurement would be over before anything is compiled.
        outputs, *found = self.kernels.normalize(inputs, gamma, beta, mean, once=statistics == "measured", **options)
        self._move(found, momentum=0.0 if statistics == "measured" else self.momentum)
        return outputs

    def _normalize_as_learnt(self, inputs: Features) -> Features:
        """Normalizes by the moving statistics."""
        exact = self.kernels.exact
        factor = ops.cast(self.gamma, exact) / ops.sqrt(ops.cast(self.moving_variance, exact) + self.epsilon)
        shift = ops.cast(self.beta, exact) - ops.cast(self.moving_mean, exact) * factor
        dtype = keras.backend.result_type(inputs.dtype, "float32")  # float16 would overflow
        outputs = ops.cast(inputs, dtype) * ops.cast(factor, dtype) + ops.cast(shift, dtype)
        return ops.cast(outputs, self.compute_dtype)

    def _move(self, found: list[Any], momentum: float) -> None:
        """Moves mean and variance toward those of a batch."""
        assert not math.isnan(momentum), "`batch_norm_momentum` comes from the config, or from `schedule.derive`"
        for moving, new in zip((self.moving_mean, self.moving_variance), found, strict=True):
            old = ops.convert_to_tensor(moving)
            moving.assign(new if momentum == 0.0 else old + (new - old) * (1.0 - momentum))


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Makes networks trained in this context normalize by their moving statistics, which stay constant.

    What matters is when a step is traced: functions compiled earlier don't change.
    """
    token = _statistics.set("moving")
    try:
        yield
    finally:
        _statistics.reset(token)


@contextlib.contextmanager
def measured() -> Iterator[None]:
    """Makes networks called in this context normalize by the batch, whose statistics become the moving ones.

    Everything else is as in inference. Frozen parts keep their statistics. Functions compiled earlier don't change.
    """
    token = _statistics.set("measured")
    try:
        yield
    finally:
        _statistics.reset(token)
