"""Matches our variables with a checkpoint's tensors, one to one; otherwise the import stops."""

import collections
import math
from collections.abc import Iterable, Mapping

import numpy as np

from efficientdet.checkpoints.names import Source
from efficientdet.checkpoints.tensors import Checkpoint, Tensor
from efficientdet.errors import UserError

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_FEW = 3


def read_variables(
    checkpoint: Checkpoint,
    sources: Mapping[str, Source],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    raw: bool = False,
) -> dict[str, np.ndarray]:
    """Reads variables from a checkpoint; every variable and every tensor of the file must have a counterpart.

    Args:
        checkpoint: the file.
        sources: location in the file, by the path of our variable.
        shapes: expected shape, by the path of our variable.
        raw: use the values of the last step, not averages.

    Returns:
        float32 values by the path of the variable.

    Raises:
        UserError: something does not fit; the message lists the first few problems.
    """
    entries = collections.Counter(source.name for source in sources.values())
    problems = [f"it has no counterpart to `{path}`" for path in shapes if path not in sources]
    for path, source in sources.items():
        tensor = pick(checkpoint, source.name, raw)
        if tensor is None:
            problems.append(f"`{source.name}` is missing")
            continue
        shape = (entries[source.name],) if source.entry is not None else shapes[path]
        expected = _their_shape(shape, source)
        if tensor.shape != expected:
            problems.append(f"`{tensor.key}` has shape {tensor.shape}; expected {expected}")
        elif tensor.dtype not in _FLOATS:
            problems.append(f"`{tensor.key}` has type {tensor.dtype}; expected float32")
    known = {source.name for source in sources.values()}
    left = sorted({*checkpoint.tensors, *checkpoint.averages} - known)
    problems += [f"`{name}` is unexpected" for name in left]
    _raise(checkpoint, list(dict.fromkeys(problems)))
    arrays = {path: _read(checkpoint, source, raw) for path, source in sources.items()}
    problems = [
        f"`{sources[path].name}` has values that are not finite"
        for path, array in arrays.items()
        if not np.isfinite(array).all()
    ]
    problems += [
        f"`{sources[path].name}` has values below 0"
        for path, array in arrays.items()
        if path.endswith("moving_variance") and (array < 0).any()
    ]
    _raise(checkpoint, problems)
    return arrays


def _raise(checkpoint: Checkpoint, problems: Iterable[str]) -> None:
    """Raises a one-line UserError for a list of problems, if there are any."""
    listed = list(problems)
    if listed:
        more = f"; and {len(listed) - _FEW} more" if len(listed) > _FEW else ""
        what = ", ".join(listed[:_FEW]) + more
        raise UserError(
            f"`{checkpoint.path}` ({checkpoint.format}) does not match the model: {what}. Nothing was loaded."
        )


def pick(checkpoint: Checkpoint, name: str, raw: bool = False) -> Tensor | None:
    """Returns the tensor called `name`: the averaged one if it exists, unless `raw` is set."""
    return checkpoint.tensors.get(name) if raw else checkpoint.averages.get(name, checkpoint.tensors.get(name))


def _their_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """Computes the checkpoint's shape of a variable from ours."""
    if source.axes is None:
        return shape
    theirs = [0] * len(shape)
    for ours, axis in enumerate(source.axes):
        theirs[axis] = shape[ours]
    return tuple(theirs)


def our_shape(tensor: Tensor, source: Source) -> tuple[int, ...]:
    """Computes our shape of a variable from the checkpoint's; empty if the number of axes differs."""
    if source.axes is None:
        return tensor.shape
    return tuple(tensor.shape[axis] for axis in source.axes) if len(tensor.shape) == len(source.axes) else ()


def _read(checkpoint: Checkpoint, source: Source, raw: bool) -> np.ndarray:
    """Reads one variable in our layout."""
    tensor = pick(checkpoint, source.name, raw)
    assert tensor is not None
    array = np.asarray(tensor.read())
    if math.prod(array.shape) != math.prod(tensor.shape):
        raise UserError(f"`{checkpoint.path}` is damaged at `{tensor.key}`: it has {array.size} numbers.")
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, which is reported later
        array = array.reshape(tensor.shape).astype(np.float32)
    if source.entry is not None:
        return array[source.entry]
    return array if source.axes is None else np.ascontiguousarray(array.transpose(source.axes))
