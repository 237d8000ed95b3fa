"""The arrays of a state, joined into a few long vectors while TensorFlow trains on a CPU.

There TensorFlow runs one operation at a time, and a network has several hundred arrays, most of them tiny: the overhead
of updating, averaging and passing a thousand arrays exceeds the arithmetic. JAX, and TensorFlow on a GPU, compile whole
steps and keep the arrays separate.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops


class Separate:
    """Keeps arrays separate: a list of arrays is its own packed form."""

    def pack(self, arrays: list[Any]) -> list[Any]:
        """Converts arrays to their packed form."""
        return arrays

    def unpack(self, packed: list[Any]) -> list[Any]:
        """Converts a packed form back to arrays."""
        return packed

    def pieces(self, packed: list[Any]) -> list[Any]:
        """Splits a packed form into one piece per array, in the order of the arrays."""
        return packed

    def join(self, pieces: list[Any]) -> list[Any]:
        """Joins such pieces into a packed form."""
        return pieces


class Joined(Separate):
    """Joins arrays of the same kind into one vector; results equal those of separate arrays."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], kinds: Sequence[Any]):
        """Plans the vectors for a list of arrays.

        Args:
            shapes: shape of each array.
            kinds: kind of each array; arrays of the same kind become one vector, in the order of the list.
        """
        self._shapes = [tuple(shape) for shape in shapes]
        self._groups = [[n for n, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)]
        self._sizes = [[math.prod(self._shapes[n]) for n in group] for group in self._groups]

    def pack(self, arrays: list[Any]) -> list[Any]:
        """Joins backend or NumPy arrays; returns one vector per kind."""
        return self.join([_reshape(array, (math.prod(array.shape),)) for array in arrays])

    def unpack(self, packed: list[Any]) -> list[Any]:
        """Splits backend or NumPy vectors into arrays."""
        pieces = zip(self.pieces(packed), self._shapes, strict=True)
        return [_reshape(piece, shape) for piece, shape in pieces]

    def pieces(self, packed: list[Any]) -> list[Any]:
        """Splits vectors into one flat piece per array, in the order of the arrays."""
        found: list[Any] = [None] * len(self._shapes)
        for vector, group, sizes in zip(packed, self._groups, self._sizes, strict=True):
            ends = np.cumsum(sizes)[:-1].tolist()
            cut = _library(vector).split(vector, ends) if ends else [vector]
            for n, piece in zip(group, cut, strict=True):
                found[n] = piece
        return found

    def join(self, pieces: list[Any]) -> list[Any]:
        """Joins one flat piece per array into vectors."""
        return [_library(pieces[group[0]]).concatenate([pieces[n] for n in group]) for group in self._groups]


_ARRAYS = {
    "trainable": ("trainable", "momentum", "square", "average_trainable"),
    "non_trainable": ("non_trainable", "average_non_trainable"),
}
"""List of variables -> lists of a state with arrays of the same shapes."""


class Packing:
    """How the lists of a state are stored on a device.

    Attributes:
        trainable: packing of the weights and of the optimizer's arrays for each weight.
        non_trainable: packing of batch statistics and random generator states.
    """

    def __init__(self, trainable: Separate | None = None, non_trainable: Separate | None = None):
        """Takes both packings; None keeps arrays separate."""
        self.trainable, self.non_trainable = trainable or Separate(), non_trainable or Separate()

    def pack(self, state: dict[str, Any]) -> dict[str, Any]:
        """Packs the lists of a state, NumPy or backend arrays."""
        return {name: self._of(name).pack(value) if _is_list(name) else value for name, value in state.items()}

    def unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        """Undoes `pack`."""
        return {name: self._of(name).unpack(value) if _is_list(name) else value for name, value in state.items()}

    def _of(self, name: str) -> Separate:
        return self.trainable if name in _ARRAYS["trainable"] else self.non_trainable


def joined(model: Any) -> Packing:
    """Plans the packing of a network's state.

    Kernels become one vector and the other weights a second, because weight decay applies to kernels only. Statistics
    become one, and each random generator state, which has another type, stays separate.

    Args:
        model: EfficientDet.
    """
    trainable, fixed = model.trainable_variables, model.non_trainable_variables
    kinds = [variable.dtype if variable.dtype == "float32" else variable.path for variable in fixed]
    return Packing(
        Joined([variable.shape for variable in trainable], [_is_kernel(variable) for variable in trainable]),
        Joined([variable.shape for variable in fixed], kinds),
    )


def which_decay(model: Any, weights: Separate) -> list[bool]:
    """Returns which arrays of a packed list of weights are kernels, to which weight decay applies."""
    flags = [np.full(variable.shape, _is_kernel(variable)) for variable in model.trainable_variables]
    return [bool(flag.flat[0]) for flag in weights.pack(flags)]


def _is_kernel(variable: Any) -> bool:
    return bool(variable.path.endswith("kernel"))


def _is_list(name: str) -> bool:
    return any(name in names for names in _ARRAYS.values())


def _reshape(array: Any, shape: tuple[int, ...]) -> Any:
    """Reshapes an array unless it already has the shape, as most do: each operation takes time to trace."""
    return array if tuple(array.shape) == shape else _library(array).reshape(array, shape)


def _library(array: Any) -> Any:
    """Returns the module with the functions for a NumPy or backend array."""
    return np if isinstance(array, np.ndarray) else ops
