"""The whole state of a run in one file, written aside and renamed: a killed run never leaves half of one.

A checkpoint is a safetensors file: weights, momenta, averages, counters, loss scale, states of random generators, and
as metadata in JSON `progress` (best score, whether an evaluation is due), `config`, `categories` and `version`. The
position in the data is the step: the batch of a step is a pure function of seed and step. Weights for use are in
`model.weights`.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.storage import files
from efficientdet.training.step import State

_LISTS = {
    "trainable": "trainable",
    "momentum": "trainable",
    "square": "trainable",
    "average_trainable": "trainable",
    "non_trainable": "non_trainable",
    "average_non_trainable": "non_trainable",
}
_FORMAT = "efficientdet-keras checkpoint 1"


def save(
    folder: Path,
    state: State,
    model: Any,
    progress: dict[str, Any],
    keep: int,
    *,
    best_step: int | None = None,
    facts: dict[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint of the state's step and then removes the oldest beyond `keep`.

    Args:
        folder: checkpoints of the run.
        state: NumPy arrays.
        model: names the arrays.
        progress: JSON values that resume needs.
        keep: newest checkpoints kept.
        best_step: step whose checkpoint is kept as well.
        facts: JSON values that are kept with it, such as the config.

    Returns:
        The file.

    Raises:
        UserError: the disk is full or the folder cannot be written; the earlier checkpoints are whole.
    """
    names = _names(model)
    arrays: dict[str, np.ndarray] = {}
    for key, value in state.items():
        if key in _LISTS:
            arrays |= {f"{key}/{name}": array for name, array in zip(names[_LISTS[key]], value, strict=True)}
        else:
            arrays[key] = np.asarray(value)
    path = path_of(folder, int(state["step"]))
    texts = {name: json.dumps(value) for name, value in {**(facts or {}), "progress": progress}.items()}
    weights.write_safetensors(path, arrays, {"format": _FORMAT, **texts})
    for old in _list(folder)[:-keep]:
        if step_of(old) != best_step:
            old.unlink(missing_ok=True)
    return path


def path_of(folder: Path, step: int) -> Path:
    """Names the checkpoint of a step."""
    return folder / f"step-{step:08d}{weights.SUFFIX}"


def step_of(path: Path) -> int:
    """Reads the step from a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def latest(folder: Path) -> Path | None:
    """Finds the newest checkpoint; sweeps away what a killed writer left."""
    for partial in folder.glob(f"{files.PARTIAL}*"):
        partial.unlink(missing_ok=True)
    return newest(folder)


def newest(folder: Path) -> Path | None:
    """Finds the newest checkpoint, while another process may be writing one."""
    found = _list(folder)
    return found[-1] if found else None


def load(path: Path, model: Any) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
        path: the file.
        model: the model it must fit.

    Returns:
        State of NumPy arrays, and `progress`.

    Raises:
        UserError: the file is damaged or belongs to another model.
    """
    arrays, metadata = weights.read_safetensors(path)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"`{path}` has the format {metadata.get('format')!r}; expected {_FORMAT!r}.")
    names = _names(model)
    state: State = {}
    try:
        for key, kind in _LISTS.items():
            if key != "square" or any(name.startswith("square/") for name in arrays):  # Adam's alone
                state[key] = [arrays.pop(f"{key}/{name}") for name in names[kind]]
    except KeyError as error:
        raise UserError(f"`{path}` has no {error}; it belongs to another model. Use another run folder.") from error
    for key in list(arrays):
        if "/" in key:
            raise UserError(f"`{path}` has `{key}`, unknown to the model; it belongs to another model.")
        state[key] = arrays.pop(key)
    return state, json.loads(metadata["progress"])


def _list(folder: Path) -> list[Path]:
    """Lists the checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}\.safetensors", path.name))


def _names(model: Any) -> dict[str, list[str]]:
    """Names the variables; the paths of random generators' states differ from model to model, so they are numbered."""
    non_trainable = [
        f"random-{number}" if "seed" in variable.path else weights.variable_name(variable)
        for number, variable in enumerate(model.non_trainable_variables)
    ]
    return {
        "trainable": [weights.variable_name(variable) for variable in model.trainable_variables],
        "non_trainable": non_trainable,
    }
