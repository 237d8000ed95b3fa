"""Batch normalization with activation for training with JAX, in few passes over the feature map, forward and backward.

    z = (x - mean) / sqrt(variance + epsilon)        y = activation(z gamma + beta)

Mean and variance come from one pass with sums of x - m and (x - m)^2, where m is the moving mean: it is close to the
mean, so little precision is lost in their difference. In the backward pass, z and the slope of the activation are
recomputed from x instead of being stored: one pass for the sums of the gradients of gamma and beta, one for the
gradient of x (Ioffe and Szegedy 2015, section 3). Arithmetic is float32. Importing this module imports JAX.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from efficientdet.kernels import pallas


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def normalize(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    near_mean: jax.Array,
    epsilon: float,
    activation: str | None,
    in_kernel: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes by mean and variance over images and pixels, and applies the activation.

    Args:
        x: [B, h, w, D] of any float type.
        gamma: float32[D].
        beta: float32[D].
        near_mean: float32[D], the expected mean; it affects only the rounding of the result.
        epsilon: added to the variance.
        activation: swish, relu6 or None.
        in_kernel: whether to sum with Pallas kernels instead of XLA's.

    Returns:
        The same shape and type as x; mean and (biased) variance, float32[D], which have no gradient.
    """
    return _forward(x, gamma, beta, near_mean, epsilon, activation, in_kernel)[0]


def _forward(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    near_mean: jax.Array,
    epsilon: float,
    activation: str | None,
    in_kernel: bool,
) -> tuple[Any, Any]:
    rows = x.reshape(-1, x.shape[-1])
    sums = pallas.sum_rows(_moments, 2, [rows], [near_mean], in_kernel=in_kernel) / rows.shape[0]
    mean, variance = near_mean + sums[0], jnp.maximum(sums[1] - jnp.square(sums[0]), 0.0)
    factor = jax.lax.rsqrt(variance + epsilon)
    y = _activate((x.astype(jnp.float32) - mean) * (factor * gamma) + beta, activation)
    return (y.astype(x.dtype), mean, variance), (x, gamma, beta, mean, factor)


def _backward(epsilon: float, activation: str | None, in_kernel: bool, kept: Any, upstream: Any) -> tuple[Any, ...]:
    del epsilon
    x, gamma, beta, mean, factor = kept
    of_y = upstream[0]
    rows, of_rows = (array.reshape(-1, x.shape[-1]) for array in (x, of_y))
    terms = functools.partial(_gradients, activation)
    sums = pallas.sum_rows(terms, 2, [rows, of_rows], [gamma, beta, mean, factor], in_kernel=in_kernel)
    of_beta, of_gamma = sums
    of_shifted, z = _slope(activation, x.astype(jnp.float32), of_y.astype(jnp.float32), gamma, beta, mean, factor)
    count = rows.shape[0]
    of_x = (gamma * factor) * (of_shifted - of_beta / count - z * (of_gamma / count))
    return of_x.astype(x.dtype), of_gamma, of_beta, jnp.zeros_like(mean)


normalize.defvjp(_forward, _backward)


def _moments(arrays: Sequence[Any], columns: Sequence[Any]) -> list[Any]:
    """Computes the terms whose sums give mean and variance."""
    difference = arrays[0] - columns[0]
    return [difference, difference * difference]


def _gradients(activation: str | None, arrays: Sequence[Any], columns: Sequence[Any]) -> list[Any]:
    """Computes the terms whose sums are the gradients of beta and gamma."""
    of_shifted, z = _slope(activation, *arrays, *columns)
    return [of_shifted, of_shifted * z]


def _slope(activation: str | None, x: Any, of_y: Any, gamma: Any, beta: Any, mean: Any, factor: Any) -> tuple[Any, Any]:
    """Computes the gradient of z gamma + beta, and z."""
    z = (x - mean) * factor
    if activation is None:
        return of_y, z
    u = z * gamma + beta
    if activation == "relu6":
        return jnp.where((u > 0.0) & (u < 6.0), of_y, 0.0), z
    sigmoid = 1.0 / (1.0 + jnp.exp(-u))
    return of_y * sigmoid * (1.0 + u * (1.0 - sigmoid)), z


def _activate(u: Any, activation: str | None) -> Any:
    if activation is None:
        return u
    return jnp.clip(u, 0.0, 6.0) if activation == "relu6" else u * jax.nn.sigmoid(u)
