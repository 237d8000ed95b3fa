"""Batch normalisation, with the activation behind it, as every part of the network uses it."""

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
"""What networks normalise by while they are trained: see `fixed` and `measured`."""


def batch_norm(name: str, momentum: float | None, dtype: Any, activation: str | None = None) -> keras.layers.Layer:
    """Makes the batch normalisation that every part uses, with the activation that follows it, if one does.

    A network that does not train needs no momentum.
    """
    number = math.nan if momentum is None else momentum  # Keras wants one
    return BatchNorm(activation, momentum=number, epsilon=BATCH_NORM_EPSILON, name=name, dtype=dtype)


class BatchNorm(keras.layers.BatchNormalization):
    """Keras's batch normalisation, x * factor + shift, and an activation; more exact in inference, faster in training.

    Factor and shift are the same for all pixels, so their rounding does not average out: where float64 is to be had
    (TensorFlow) they are computed in it and rounded once. For D0 that halves the distance of the outputs from float64.

    compute_dtype[B, h, w, D] -> the same
    """

    def __init__(self, activation: str | None = None, **kwargs: Any):
        """Takes `activation`, of `activate`; None: the answer is the normalised input."""
        super().__init__(**kwargs)
        self.activation = activation
        self.kernels = choice.current()

    def call(self, inputs: Features, training: bool | None = None, mask: Any = None) -> Features:
        """Normalises and activates: by the batch while training, by the moving statistics otherwise."""
        statistics = _statistics.get()
        if not self.trainable or not (training or statistics == "measured"):
            return activate(self._normalize_as_learnt(inputs), self.activation)
        options = {"epsilon": self.epsilon, "activation": self.activation}
        gamma, beta, mean = (ops.convert_to_tensor(own) for own in (self.gamma, self.beta, self.moving_mean))
        if statistics == "moving":
            variance = ops.convert_to_tensor(self.moving_variance)
            return self.kernels.rescale(inputs, gamma, beta, mean, variance, **options)
        # A measurement is over before anything would be compiled.
        outputs, *found = self.kernels.normalize(inputs, gamma, beta, mean, once=statistics == "measured", **options)
        self._move(found, momentum=0.0 if statistics == "measured" else self.momentum)
        return outputs

    def _normalize_as_learnt(self, inputs: Features) -> Features:
        """Normalises by the moving statistics."""
        exact = self.kernels.exact
        factor = ops.cast(self.gamma, exact) / ops.sqrt(ops.cast(self.moving_variance, exact) + self.epsilon)
        shift = ops.cast(self.beta, exact) - ops.cast(self.moving_mean, exact) * factor
        dtype = keras.backend.result_type(inputs.dtype, "float32")  # float16 would overflow
        outputs = ops.cast(inputs, dtype) * ops.cast(factor, dtype) + ops.cast(shift, dtype)
        return ops.cast(outputs, self.compute_dtype)

    def _move(self, found: list[Any], momentum: float) -> None:
        """Moves mean and variance towards those of a batch."""
        assert not math.isnan(momentum), "`batch_norm_momentum` comes from the config, or from `schedule.derive`"
        for moving, new in zip((self.moving_mean, self.moving_variance), found, strict=True):
            old = ops.convert_to_tensor(moving)
            moving.assign(new if momentum == 0.0 else old + (new - old) * (1.0 - momentum))


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Lets networks that are trained inside normalise by their moving statistics, which stay as they are.

    What counts is when a step is traced: functions compiled before stay as they are.
    """
    token = _statistics.set("moving")
    try:
        yield
    finally:
        _statistics.reset(token)


@contextlib.contextmanager
def measured() -> Iterator[None]:
    """Lets networks that are called inside normalise by the batch, whose statistics become their moving ones.

    All else is as in inference. Frozen parts keep the statistics they have. Functions compiled before stay as they are.
    """
    token = _statistics.set("measured")
    try:
        yield
    finally:
        _statistics.reset(token)
