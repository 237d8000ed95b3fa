"""Batch normalization followed by an activation, during training (Ioffe and Szegedy 2015).

    y = activation((x - mean) / sqrt(variance + epsilon) * gamma + beta)

On a CPU, TensorFlow runs one operation at a time. There a large feature map goes through one compiled kernel
(`chains`), a small one through TensorFlow's own operation, which needs no compilation. JAX compiles whole steps, but
would store and read more than necessary (`normalization_jax`).
"""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from efficientdet.kernels import chains, mixed_precision
from efficientdet.structures import Array, Channels, Features


def activate(x: Features, activation: str | None) -> Features:
    """Applies `swish` (x * sigmoid(x)), `relu6` or nothing to a tensor of any shape."""
    if activation is None:
        return x
    return ops.relu6(x) if activation == "relu6" else ops.silu(x)


def normalize(
    x: Features,
    gamma: Channels,
    beta: Channels,
    near_mean: Channels,
    *,
    epsilon: float,
    activation: str | None,
    once: bool = False,
) -> tuple[Features, Channels, Channels]:
    """Normalizes by mean and variance over images and pixels, and applies the activation.

    Args:
        x: [B, h, w, D] of any float type; the arithmetic is float32.
        gamma: float32[D].
        beta: float32[D].
        near_mean: float32[D], the expected mean; it affects only the rounding of the result.
        epsilon: added to the variance.
        activation: see `activate`.
        once: whether to avoid compiling, because the result would hardly be reused.

    Returns:
        The same shape and type as x; mean and (biased) variance, float32[D].
    """
    return normalize_by_batch(x, gamma, beta, epsilon=epsilon, activation=activation)


def normalize_on_processors(
    x: Features,
    gamma: Channels,
    beta: Channels,
    near_mean: Channels,
    *,
    epsilon: float,
    activation: str | None,
    once: bool = False,
) -> tuple[Features, Channels, Channels]:
    """Like `normalize`, in one operation or one kernel."""
    if chains.are_known(x) and (once or not chains.pays(x)):
        outputs, mean, variance = _in_operation(x, gamma, beta, epsilon)
        return activate(outputs, activation), mean, variance
    return chains.compute(normalize_by_batch, x, gamma, beta, epsilon=epsilon, activation=activation)


def normalize_over_replicas(
    x: Features,
    gamma: Channels,
    beta: Channels,
    near_mean: Channels,
    *,
    epsilon: float,
    activation: str | None,
    once: bool = False,
) -> tuple[Features, Channels, Channels]:
    """Like `normalize`, with statistics over all replicas of TensorFlow's strategy."""
    if once:
        return normalize_on_processors(x, gamma, beta, near_mean, epsilon=epsilon, activation=activation, once=True)
    wide = ops.cast(x, "float32")
    mean, variance = ops.moments(wide, axes=(0, 1, 2), synchronized=True)
    return rescale(x, gamma, beta, mean, variance, epsilon=epsilon, activation=activation), mean, variance


def in_few_passes(
    x: Features,
    gamma: Channels,
    beta: Channels,
    near_mean: Channels,
    *,
    epsilon: float,
    activation: str | None,
    once: bool = False,
    in_kernel: bool = False,
) -> tuple[Features, Channels, Channels]:
    """Like `normalize`, with JAX. `in_kernel`: sum with Pallas kernels, for a GPU."""
    from efficientdet.kernels import normalization_jax

    return normalization_jax.normalize(x, gamma, beta, near_mean, epsilon, activation, in_kernel)


def rescale(
    x: Features,
    gamma: Channels,
    beta: Channels,
    mean: Channels,
    variance: Channels,
    *,
    epsilon: float,
    activation: str | None,
) -> Features:
    """Normalizes by given mean and variance, float32[D] each, and applies the activation; see `normalize`."""
    factor = gamma * ops.rsqrt(variance + epsilon)
    return chains.compute(scale_and_activate, x, factor, beta - mean * factor, activation=activation)


def rescale_on_processors(
    x: Features,
    gamma: Channels,
    beta: Channels,
    mean: Channels,
    variance: Channels,
    *,
    epsilon: float,
    activation: str | None,
) -> Features:
    """Like `rescale`, but processes a small input in one operation."""
    if chains.are_known(x) and not chains.pays(x):
        return activate(_in_operation(x, gamma, beta, epsilon, mean, variance)[0], activation)
    return rescale(x, gamma, beta, mean, variance, epsilon=epsilon, activation=activation)


def _in_operation(
    x: Features,
    gamma: Channels,
    beta: Channels,
    epsilon: float,
    mean: Channels | None = None,
    variance: Channels | None = None,
) -> tuple[Features, Channels, Channels]:
    """Normalizes by batch or given statistics with one TensorFlow operation; Keras uses ten, and thirty backward.

    Args:
        x: [B, h, w, D], of known size and any float type.
        gamma: float32[D].
        beta: float32[D].
        epsilon: added to the variance.
        mean: float32[D]; None: that of the batch.
        variance: float32[D]; None: that of the batch.

    Returns:
        The same shape and type as x; mean and (biased) variance of the batch, float32[D].
    """
    import tensorflow as tf

    by_batch = mean is None
    # Read now: gradients are computed after the stateless call, when the variables have other values again.
    gamma, beta = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    mean, variance = ([], []) if by_batch else (tf.convert_to_tensor(mean), tf.convert_to_tensor(variance))
    found: list[Any] = []

    # TensorFlow's own gradient creates zeros, four operations per array, for outputs that nothing depends on.
    @tf.custom_gradient
    def normalize(x: Features, gamma: Channels, beta: Channels) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
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

        def differentiate(upstream: Array) -> tuple[Any, ...]:
            spaces = {f"reserve_space_{number}": array for number, array in enumerate(kept, 1)}
            return tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream, x=x, scale=gamma, epsilon=epsilon, is_training=by_batch, **spaces
            )[:3]

        return outputs, differentiate

    outputs = normalize(mixed_precision.widened(x), gamma, beta)
    count = math.prod(x.shape[:-1])
    # The operation divides by count - 1, as for a sample.
    return ops.cast(outputs, x.dtype), found[0], found[1] * ((count - 1) / count)


def scale_and_activate(x: Features, factor: Channels, shift: Channels, *, activation: str | None) -> Features:
    """Computes activation(x * factor + shift) in float32.

    Args:
        x: [B, h, w, D] of any float type.
        factor: float32[D].
        shift: float32[D].
        activation: see `activate`.

    Returns:
        The same shape and type as x.
    """
    return ops.cast(activate(ops.cast(x, "float32") * factor + shift, activation), x.dtype)


def normalize_by_batch(
    x: Features, gamma: Channels, beta: Channels, *, epsilon: float, activation: str | None
) -> tuple[Features, Channels, Channels]:
    """Normalizes by mean and variance over images and pixels, and applies the activation.

    Args:
        x: [B, h, w, D] of any float type; the arithmetic is float32.
        gamma: float32[D].
        beta: float32[D].
        epsilon: added to the variance.
        activation: see `activate`.

    Returns:
        The same shape and type as x; mean and (biased) variance, float32[D].
    """
    # Flattened to rows: XLA sums over the first of two axes faster than over three of four.
    rows = ops.cast(ops.reshape(x, (-1, x.shape[-1])), "float32")
    mean = ops.mean(rows, axis=0)
    variance = ops.mean(ops.square(rows - mean), axis=0)
    factor = gamma * ops.rsqrt(variance + epsilon)
    outputs = activate(rows * factor + (beta - mean * factor), activation)
    return ops.reshape(ops.cast(outputs, x.dtype), ops.shape(x)), mean, variance
