"""Reads Keras 2's HDF5 weight files: groups named by layer, datasets named by variable.

Links and external data are refused, since weight files need neither.
"""

from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.checkpoints.tensors import Tensor
from efficientdet.errors import UserError, first_line

START = b"\x89HDF\r\n\x1a\n"
_MOST_ENTRIES = 100_000


def read_datasets(path: Path) -> dict[str, Tensor]:
    """Describes all datasets of a file, by path without `:0`.

    Raises:
        UserError: the file is damaged, or refers to other files.
    """
    import h5py

    found: dict[str, Tensor] = {}
    seen = 0

    def describe(group: Any, prefix: str, depth: int) -> None:
        nonlocal seen
        for name in group:
            seen += 1
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"`{path}` has a link `{prefix}{name}` instead of data, which is not allowed.")
            inner = group.get(name)
            if seen > _MOST_ENTRIES or depth > 32:  # counts groups too, which may be nested repeatedly
                raise ValueError("it has too many entries")
            if isinstance(inner, h5py.Group):
                describe(inner, f"{prefix}{name}/", depth + 1)
            elif isinstance(inner, h5py.Dataset):
                if inner.external or inner.is_virtual:
                    raise UserError(f"`{path}` stores `{prefix}{name}` in another file, which is not allowed.")
                key = f"{prefix}{name}"
                found[key.removesuffix(":0")] = Tensor(
                    key=key, shape=tuple(inner.shape or ()), dtype=inner.dtype.name, read=_reader(path, key)
                )

    try:
        with h5py.File(path, "r") as file:
            describe(file, "", 0)
    except (OSError, RuntimeError, KeyError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{path}` is not a complete HDF5 file: {first_line(error)}.") from error
    return found


def _reader(path: Path, key: str) -> Any:
    import h5py

    def read() -> np.ndarray:
        try:
            with h5py.File(path, "r") as file:
                return np.asarray(file[key][()])
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(f"`{path}` is damaged at `{key}`: {first_line(error)}.") from error

    return read
