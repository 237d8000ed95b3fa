"""The result of every checkpoint reader: tensors whose values are read only on demand.

Shapes and types are known before values are read, so a file that claims to be huge costs nothing.
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
    """Its name in the file."""
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the type, or the file's own name if NumPy lacks the type."""
    read: Callable[[], np.ndarray]
    """Reads the values; types that NumPy lacks are returned as float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An open checkpoint file."""

    path: Path
    format: str
    """Human-readable description of the format."""
    naming: Naming
    """Naming convention of its tensors."""
    tensors: Mapping[str, Tensor]
    """Tensors by name, with the values of the last training step."""
    averages: Mapping[str, Tensor]
    """Averaged values under the same names; empty if the file has none."""
    set_aside: Mapping[str, int]
    """Number of skipped tensors by kind, such as optimizer slots and counters."""
