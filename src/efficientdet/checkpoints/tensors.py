"""What every reader of a checkpoint gives: tensors that are read only when somebody wants them.

Shapes and types are known before a value is read, so that a file that claims to hold something huge costs nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from efficientdet.checkpoints.names import Naming


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a checkpoint file."""

    key: str
    """What the file calls it."""
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the type, or the file's own where NumPy has none."""
    read: Callable[[], np.ndarray]
    """Reads the values; what NumPy has no type for comes as float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint file, opened."""

    path: Path
    format: str
    """What it is, for people."""
    naming: Naming
    """How its tensors are called."""
    tensors: Mapping[str, Tensor]
    """Name in the naming -> tensor; values as the last training step left them."""
    averages: Mapping[str, Tensor]
    """The same names -> averaged values; empty where the file has none."""
    set_aside: Mapping[str, int]
    """What the file holds beside the network -> number of tensors: optimizer slots, counters."""
