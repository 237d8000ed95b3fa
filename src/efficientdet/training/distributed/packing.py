"""The arrays of a state, joined into a few long vectors while TensorFlow trains on a CPU.

TensorFlow runs one operation at a time there, and a network has several hundred arrays, most of them tiny: to update,
to average and to hand over a thousand of them takes longer than their arithmetic. JAX compiles whole steps, and so does
TensorFlow on a GPU; they keep the arrays as they are.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops


class Separate:
    """Keeps arrays as they are: a list of arrays is its own packed form."""

    def pack(self, arrays: list[Any]) -> list[Any]:
        """Makes the packed form of arrays."""
        return arrays

    def unpack(self, packed: list[Any]) -> list[Any]:
        """Makes arrays of their packed form."""
        return packed

    def pieces(self, packed: list[Any]) -> list[Any]:
        """Cuts a packed form into one piece an array, in the order of the arrays."""
        return packed

    def join(self, pieces: list[Any]) -> list[Any]:
        """Makes a packed form of such pieces."""
        return pieces


class Joined(Separate):
    """Joins arrays of one kind into one vector; the arithmetic is that of the arrays one by one."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], kinds: Sequence[Any]):
        """Takes the arrays of a list.

        Args:
            shapes: of each array.
            kinds: of each array; those of a kind become one vector, in the order of the list.
        """
        self._shapes = [tuple(shape) for shape in shapes]
        self._groups = [[n for n, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)]
        self._sizes = [[math.prod(self._shapes[n]) for n in group] for group in self._groups]

    def pack(self, arrays: list[Any]) -> list[Any]:
        """Joins arrays, of the backend or of NumPy; returns one vector a kind."""
        return self.join([_reshape(array, (math.prod(array.shape),)) for array in arrays])

    def unpack(self, packed: list[Any]) -> list[Any]:
        """Cuts vectors, of the backend or of NumPy, into arrays."""
        pieces = zip(self.pieces(packed), self._shapes, strict=True)
        return [_reshape(piece, shape) for piece, shape in pieces]

    def pieces(self, packed: list[Any]) -> list[Any]:
        """Cuts vectors into one a array, in the order of the arrays."""
        found: list[Any] = [None] * len(self._shapes)
        for vector, group, sizes in zip(packed, self._groups, self._sizes, strict=True):
            ends = np.cumsum(sizes)[:-1].tolist()
            cut = _library(vector).split(vector, ends) if ends else [vector]
            for n, piece in zip(group, cut, strict=True):
                found[n] = piece
        return found

    def join(self, pieces: list[Any]) -> list[Any]:
        """Makes vectors of one a array."""
        return [_library(pieces[group[0]]).concatenate([pieces[n] for n in group]) for group in self._groups]


_ARRAYS = {
    "trainable": ("trainable", "momentum", "square", "average_trainable"),
    "non_trainable": ("non_trainable", "average_non_trainable"),
}
"""Which lists of a state hold arrays like those of which list of variables."""


class Packing:
    """How the lists of a state are kept on a device.

    Attributes:
        trainable: of weights, and of what an optimiser keeps for each.
        non_trainable: of batch statistics and the states of random generators.
    """

    def __init__(self, trainable: Separate | None = None, non_trainable: Separate | None = None):
        """Takes both; none keeps arrays as they are."""
        self.trainable, self.non_trainable = trainable or Separate(), non_trainable or Separate()

    def pack(self, state: dict[str, Any]) -> dict[str, Any]:
        """Joins the lists of a state, of NumPy or of the backend."""
        return {name: self._of(name).pack(value) if _is_list(name) else value for name, value in state.items()}

    def unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        """Undoes `pack`."""
        return {name: self._of(name).unpack(value) if _is_list(name) else value for name, value in state.items()}

    def _of(self, name: str) -> Separate:
        return self.trainable if name in _ARRAYS["trainable"] else self.non_trainable


def joined(model: Any) -> Packing:
    """Makes the packing of a network's state.

    Kernels are one vector and the other weights a second, since weight decay is of kernels. Statistics are one, and
    each state of a random generator, of another type, stays alone.

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
    """Says which arrays of a list of weights, as it is packed, are of kernels: what weight decay is for."""
    flags = [np.full(variable.shape, _is_kernel(variable)) for variable in model.trainable_variables]
    return [bool(flag.flat[0]) for flag in weights.pack(flags)]


def _is_kernel(variable: Any) -> bool:
    return bool(variable.path.endswith("kernel"))


def _is_list(name: str) -> bool:
    return any(name in names for names in _ARRAYS.values())


def _reshape(array: Any, shape: tuple[int, ...]) -> Any:
    """Reshapes an array that does not have the shape yet; most have, and each operation costs time to trace."""
    return array if tuple(array.shape) == shape else _library(array).reshape(array, shape)


def _library(array: Any) -> Any:
    """Returns the functions for an array of NumPy, or of the backend."""
    return np if isinstance(array, np.ndarray) else ops
