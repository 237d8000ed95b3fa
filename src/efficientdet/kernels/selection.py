"""Selection of the best logits and boxes for post-processing, with operations that are fast on the running backend.

JAX sorts all of its input, so anchors are dropped first and 16-bit logits are sorted as integers. On a single GPU the
suppression is one kernel. On TensorFlow, rows are gathered in a form that its converters understand.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from efficientdet import backend
from efficientdet.structures import Array, Labels, Logits

_SORTS_INTEGERS = True


def best_logits(logits: Logits, count: int, dtype: str) -> tuple[Array, Array, Labels]:
    """Selects the highest logits over all anchors and classes; of equal ones the first.

    Args:
        logits: [B, A, C], of any float type.
        count: M; all if there are fewer.
        dtype: data type the logits were computed in, which limits how many different values they have.

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
    """Drops anchors that cannot have any of the best `count` logits.

    The best logit of a dropped anchor is below the best logits of `count` others. The remaining anchors keep their
    order, so that equal logits are selected in the same order too.

    Returns:
        [B, count, C]; int32[B, count], indices of the anchors.
    """
    _, best = _top_k(ops.max(logits, axis=-1), count, dtype)
    kept = ops.sort(ops.cast(best, "int32"), axis=-1)
    return take(logits, kept), kept


def _top_k(logits: Logits, count: int, dtype: str) -> tuple[Array, Array]:
    """Selects the highest values of [B, N] like `ops.top_k`; of equal ones the first."""
    if not (_SORTS_INTEGERS and backend.running() == "jax" and dtype in ("bfloat16", "float16")):
        return ops.top_k(logits, count)
    import jax
    import jax.numpy as jnp

    # Integers in the same order as the floats: XLA sorts 16-bit integers in half the time of 32-bit ones.
    bits = jax.lax.bitcast_convert_type(logits.astype(dtype), jnp.uint16)
    ordered = jnp.where(bits >> 15 == 1, ~bits, bits | 0x8000)
    _, positions = jax.lax.top_k(ordered, count)
    return jnp.take_along_axis(logits, positions, axis=1), positions


def take(values: Array, places: Array) -> Array:
    """Gathers [B, K, ...] from values [B, M, ...] at int32[B, K].

    On TensorFlow it gathers from the rows of all images in one list, because with `take_along_axis` and a batch of 1,
    OpenVINO reads the wrong memory (2026.4.1; a test shows when this is fixed).
    """
    if backend.running() != "tensorflow":
        return ops.take_along_axis(values, ops.reshape(places, (*places.shape, *[1] * (values.ndim - 2))), axis=1)
    batch, count = ops.shape(values)[0], values.shape[1]
    firsts = ops.expand_dims(ops.arange(batch, dtype="int32") * count, -1)
    return ops.take(ops.reshape(values, (-1, *values.shape[2:])), places + firsts, axis=0)


def kernel_that_picks(num_candidates: int) -> Callable[..., tuple[Any, Any]] | None:
    """Returns a kernel equivalent to `postprocess.pick` for JAX on a single GPU; otherwise None."""
    if backend.running() != "jax" or backend.gpus() != 1:
        return None
    from efficientdet.kernels import suppression_pallas

    return suppression_pallas.pick if num_candidates <= suppression_pallas.MOST_CANDIDATES else None
