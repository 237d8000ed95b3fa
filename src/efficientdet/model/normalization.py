"""Batch normalisation and the activation behind it, as every part of the network uses them."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
from keras import ops

from efficientdet.kernels import chains, mixed_precision

BATCH_NORM_EPSILON = 1e-3

_statistics: contextvars.ContextVar[Literal["batch", "moving", "measured"]] = contextvars.ContextVar(
    "statistics", default="batch"
)
"""What networks normalise by while they are trained: see `fixed` and `measured`."""


def activate(x: Any, activation: str) -> Any:
    """Applies `swish` (x * sigmoid(x)) or `relu6` to a tensor of any shape."""
    return ops.relu6(x) if activation == "relu6" else ops.silu(x)


def batch_norm(name: str, momentum: float | None, dtype: Any, activation: str | None = None) -> keras.layers.Layer:
    """Makes the batch normalisation that every part uses, with the activation that follows it, if one does.

    A network that does not train needs no momentum.
    """
    number = math.nan if momentum is None else momentum  # Keras wants one
    return BatchNorm(activation, momentum=number, epsilon=BATCH_NORM_EPSILON, name=name, dtype=dtype)


class BatchNorm(keras.layers.BatchNormalization):
    """Keras's batch normalisation, x * factor + shift, and an activation; more exact in inference, faster in training.

    Factor and shift are the same for all pixels, so their rounding does not average out: on TensorFlow they are
    computed in float64 and rounded once. For D0 that halves the distance of the outputs from float64. JAX has no
    float64 unless the whole process does.

    compute_dtype[B, h, w, D] -> the same
    """

    def __init__(self, activation: str | None = None, **kwargs: Any):
        """Takes `activation`, of `activate`; None: the answer is the normalised input."""
        super().__init__(**kwargs)
        self.activation = activation
        self.sums_in_kernel = False  # with JAX: see `choose_depthwise`

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises and activates: by the batch while training, by the moving statistics otherwise."""
        measures = _statistics.get() == "measured"
        if not ((training or measures) and self.trainable):
            outputs = self._normalize_as_learnt(inputs)
        elif _statistics.get() == "moving":
            return self._normalize_by_population(inputs)
        elif keras.backend.backend() == "jax":
            self._check_momentum()
            return self._normalize_in_few_passes(inputs)
        elif (
            chains.are_known(inputs) and not self.synchronized and (measures or not chains.pays(inputs))
        ):  # a measurement is over before kernels for its larger batches would be compiled
            self._check_momentum()
            outputs = self._normalize_in_operation(inputs)
        elif measures or (chains.pays(inputs) and not self.synchronized):
            self._check_momentum()
            return self._normalize_in_kernel(inputs)
        else:
            self._check_momentum()
            outputs = super().call(inputs, training=True, mask=mask)
        return outputs if self.activation is None else activate(outputs, self.activation)

    def _check_momentum(self) -> None:
        assert not math.isnan(self.momentum), "`batch_norm_momentum` comes from the config, or from `schedule.derive`"

    def _normalize_as_learnt(self, inputs: Any) -> Any:
        """Normalises by the moving statistics."""
        wide = "float64" if keras.backend.backend() == "tensorflow" else "float32"
        factor = ops.cast(self.gamma, wide) / ops.sqrt(ops.cast(self.moving_variance, wide) + self.epsilon)
        shift = ops.cast(self.beta, wide) - ops.cast(self.moving_mean, wide) * factor
        dtype = keras.backend.result_type(inputs.dtype, "float32")  # float16 would overflow
        outputs = ops.cast(inputs, dtype) * ops.cast(factor, dtype) + ops.cast(shift, dtype)
        return ops.cast(outputs, self.compute_dtype)

    def _normalize_by_population(self, inputs: Any) -> Any:
        """Normalises by the moving statistics while gamma and beta learn."""
        gamma, beta, mean, variance = (
            ops.convert_to_tensor(own) for own in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        if chains.are_known(inputs) and not chains.pays(inputs):
            outputs, *_ = _normalize_in_operation(inputs, gamma, beta, self.epsilon, mean, variance)
            return outputs if self.activation is None else activate(outputs, self.activation)
        factor = gamma * ops.rsqrt(variance + self.epsilon)
        return chains.compute(scale_and_activate, inputs, factor, beta - mean * factor, activation=self.activation)

    def _normalize_in_kernel(self, inputs: Any) -> Any:
        """Normalises by the batch, activates, and moves the statistics: what Keras does, in one kernel."""
        gamma, beta = (ops.convert_to_tensor(variable) for variable in (self.gamma, self.beta))
        outputs, mean, variance = chains.compute(
            normalize_by_batch, inputs, gamma, beta, epsilon=self.epsilon, activation=self.activation
        )
        self._move(mean, variance)
        return outputs

    def _normalize_in_operation(self, inputs: Any) -> Any:
        """Does the same for a small input."""
        gamma, beta = (ops.convert_to_tensor(variable) for variable in (self.gamma, self.beta))
        outputs, mean, variance = _normalize_in_operation(inputs, gamma, beta, self.epsilon)
        self._move(mean, variance)
        return outputs

    def _normalize_in_few_passes(self, inputs: Any) -> Any:
        """Does the same with JAX, which compiles whole steps, but would keep and read more than it must."""
        from efficientdet.kernels import normalization_jax

        gamma, beta, moving = (ops.convert_to_tensor(own) for own in (self.gamma, self.beta, self.moving_mean))
        outputs, mean, variance = normalization_jax.normalize(
            inputs, gamma, beta, moving, self.epsilon, self.activation, self.sums_in_kernel
        )
        self._move(mean, variance)
        return outputs

    def _move(self, mean: Any, variance: Any) -> None:
        """Moves the statistics towards those of a batch."""
        if _statistics.get() == "measured":
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
            return
        rest = 1.0 - self.momentum
        for moving, found in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = ops.convert_to_tensor(moving)
            moving.assign(old + (found - old) * rest)


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


def _normalize_in_operation(
    x: Any, gamma: Any, beta: Any, epsilon: float, mean: Any = None, variance: Any = None
) -> tuple[Any, Any, Any]:
    """Normalises by the batch or as given, with one operation of TensorFlow's; Keras takes ten, and thirty backwards.

    Args:
        x: [B, h, w, D], of a known size and any float type.
        gamma: float32[D].
        beta: float32[D].
        epsilon: beside the variance.
        mean: float32[D]; none: that of the batch.
        variance: float32[D]; likewise.

    Returns:
        The same shape and type as x; mean and (biased) variance of the batch, float32[D].
    """
    import tensorflow as tf

    by_batch = mean is None
    # Now: gradients are computed after a stateless call, where variables have other values again.
    gamma, beta = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    mean, variance = ([], []) if by_batch else (tf.convert_to_tensor(mean), tf.convert_to_tensor(variance))
    found: list[Any] = []

    # TensorFlow's own gradient makes zeros, four operations an array, for the outputs that nothing depends on.
    @tf.custom_gradient
    def normalize(x: Any, gamma: Any, beta: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
        outputs, *rest = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=gamma,
            offset=beta,
            mean=mean,
            variance=variance,
            epsilon=epsilon,
            is_training=by_batch,
        )
        found[:] = rest[:2]
        kept = rest[2:] if by_batch else [mean, variance, rest[4]]

        def differentiate(upstream: Any) -> tuple[Any, ...]:
            spaces = {f"reserve_space_{number}": array for number, array in enumerate(kept, 1)}
            return tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream, x=x, scale=gamma, epsilon=epsilon, is_training=by_batch, **spaces
            )[:3]

        return outputs, differentiate

    outputs = normalize(mixed_precision.widened(x), gamma, beta)
    count = math.prod(x.shape[:-1])
    # The operation divides by one less, as for a sample.
    return ops.cast(outputs, x.dtype), found[0], found[1] * ((count - 1) / count)


def scale_and_activate(x: Any, factor: Any, shift: Any, *, activation: str | None) -> Any:
    """Computes activation(x * factor + shift) in float32.

    Args:
        x: [B, h, w, D] of any float type.
        factor: float32[D].
        shift: float32[D].
        activation: of `activate`, or none.

    Returns:
        The same shape and type as x.
    """
    outputs = ops.cast(x, "float32") * factor + shift
    return ops.cast(outputs if activation is None else activate(outputs, activation), x.dtype)


def normalize_by_batch(x: Any, gamma: Any, beta: Any, *, epsilon: float, activation: str | None) -> tuple[Any, ...]:
    """Normalises by mean and variance over images and pixels, and activates.

    Args:
        x: [B, h, w, D] of any float type; the arithmetic is float32.
        gamma: float32[D].
        beta: float32[D].
        epsilon: beside the variance.
        activation: of `activate`, or none.

    Returns:
        The same shape and type as x; mean and (biased) variance, float32[D].
    """
    # Pixels in a row: XLA sums the first of two axes faster than three of four.
    rows = ops.cast(ops.reshape(x, (-1, x.shape[-1])), "float32")
    mean = ops.mean(rows, axis=0)
    variance = ops.mean(ops.square(rows - mean), axis=0)
    factor = gamma * ops.rsqrt(variance + epsilon)
    outputs = rows * factor + (beta - mean * factor)
    if activation is not None:
        outputs = activate(outputs, activation)
    return ops.reshape(ops.cast(outputs, x.dtype), x.shape), mean, variance
