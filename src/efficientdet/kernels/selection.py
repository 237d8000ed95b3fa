"""The best of many: what post-processing picks, by the operations in which the running backend is fast.

JAX sorts all that it is given, so that anchors are left out first and 16-bit logits are sorted as integers. On one GPU
the picks of the suppression are one kernel. TensorFlow takes rows in a form that its converters understand.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from efficientdet import backend
from efficientdet.structures import Array, Labels, Logits

_SORTS_INTEGERS = True


def best_logits(logits: Logits, count: int, dtype: str) -> tuple[Array, Array, Labels]:
    """Picks the best logits over all anchors and classes; of equal ones the first.

    Args:
        logits: [B, A, C], of any float type.
        count: M; all, if there are fewer.
        dtype: what the logits were computed in; they are in no more numbers than that has.

    Returns:
        float32[B, M], best first; int32[B, M] each, their anchors and classes.
    """
    num_classes, kept = logits.shape[2], None
    if backend.running() == "jax" and logits.shape[1] > count:
        logits, kept = _best_anchors(logits, count, dtype)
    logits = ops.reshape(ops.cast(logits, "float32"), (-1, logits.shape[1] * num_classes))
    best, positions = _top_k(logits, min(count, logits.shape[1]), dtype)
    positions = ops.cast(positions, "int32")
    anchors, labels = positions // num_classes, positions % num_classes
    return best, anchors if kept is None else take(kept, anchors), labels


def _best_anchors(logits: Logits, count: int, dtype: str) -> tuple[Logits, Array]:
    """Leaves out anchors that none of the best `count` logits can belong to.

    The best logit of one that is left out is below the best of `count` others. Those that stay keep their order, so
    that equal logits are taken in the same order too.

    Returns:
        [B, count, C]; int32[B, count], places among the anchors.
    """
    _, best = _top_k(ops.max(logits, axis=-1), count, dtype)
    kept = ops.sort(ops.cast(best, "int32"), axis=-1)
    return take(logits, kept), kept


def _top_k(logits: Logits, count: int, dtype: str) -> tuple[Array, Array]:
    """Takes the best of [B, N], as `ops.top_k`, of equal ones the first."""
    if not (_SORTS_INTEGERS and backend.running() == "jax" and dtype in ("bfloat16", "float16")):
        return ops.top_k(logits, count)
    import jax
    import jax.numpy as jnp

    # Integers in the order of the numbers: XLA sorts 16 bits of them in half the time of 32.
    bits = jax.lax.bitcast_convert_type(logits.astype(dtype), jnp.uint16)
    ordered = jnp.where(bits >> 15 == 1, ~bits, bits | 0x8000)
    _, positions = jax.lax.top_k(ordered, count)
    return jnp.take_along_axis(logits, positions, axis=1), positions


def take(values: Array, places: Array) -> Array:
    """Takes [B, K, ...] of values [B, M, ...] at int32[B, K].

    On TensorFlow from the rows of all images in one list, since OpenVINO reads other memory where the batch that
    `take_along_axis` keeps apart is 1 (2026.4.1; the tests say when that ends).
    """
    if backend.running() != "tensorflow":
        return ops.take_along_axis(values, ops.reshape(places, (*places.shape, *[1] * (values.ndim - 2))), axis=1)
    batch, count = ops.shape(values)[0], values.shape[1]
    firsts = ops.expand_dims(ops.arange(batch, dtype="int32") * count, -1)
    return ops.take(ops.reshape(values, (-1, *values.shape[2:])), places + firsts, axis=0)


def kernel_that_picks(num_candidates: int) -> Callable[..., tuple[Any, Any]] | None:
    """Returns a kernel that does as `postprocess.pick`: with JAX on the only GPU, since it works on one; else none."""
    if backend.running() != "jax" or backend.gpus() != 1:
        return None
    from efficientdet.kernels import suppression_pallas

    return suppression_pallas.pick if num_candidates <= suppression_pallas.MOST_CANDIDATES else None
