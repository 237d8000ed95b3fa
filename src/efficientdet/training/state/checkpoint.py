"""The whole state of a run in one file, written aside and renamed, so a killed run never leaves a partial one.

A checkpoint is a safetensors file with weights, momenta, averages, counters, loss scale and random generator states.
Its metadata has, as JSON, `progress` (best score, whether an evaluation is due), `config`, `categories` and `version`.
The step alone gives the position in the data, because the batch of a step is a pure function of seed and step. Files
of weights for inference are in `model.weights`.
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
    """Writes the checkpoint of the state's step, then removes the oldest ones beyond `keep`.

    Args:
        folder: folder of the run's checkpoints.
        state: NumPy arrays.
        model: provides the names of the arrays.
        progress: JSON values needed to resume.
        keep: number of newest checkpoints to keep.
        best_step: step whose checkpoint is kept as well.
        facts: JSON values stored with it, such as the config.

    Returns:
        The file.

    Raises:
        UserError: the disk is full or the folder cannot be written; earlier checkpoints are intact.
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
    """Returns the path of the checkpoint of a step."""
    return folder / f"step-{step:08d}{weights.SUFFIX}"


def step_of(path: Path) -> int:
    """Reads the step from a checkpoint's file name."""
    return int(path.stem.removeprefix("step-"))


def latest(folder: Path) -> Path | None:
    """Finds the newest checkpoint and removes partial files left by a killed process."""
    for partial in folder.glob(f"{files.PARTIAL}*"):
        partial.unlink(missing_ok=True)
    return newest(folder)


def newest(folder: Path) -> Path | None:
    """Finds the newest checkpoint; safe while another process is writing one."""
    found = _list(folder)
    return found[-1] if found else None


def load(path: Path, model: Any) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
        path: the file.
        model: the model that the checkpoint must match.

    Returns:
        State of NumPy arrays, and `progress`.

    Raises:
        UserError: the file is damaged or belongs to a different model.
    """
    arrays, metadata = weights.read_safetensors(path)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"`{path}` has the format {metadata.get('format')!r}; expected {_FORMAT!r}.")
    names = _names(model)
    state: State = {}
    try:
        for key, kind in _LISTS.items():
            if key != "square" or any(name.startswith("square/") for name in arrays):  # Adam only
                state[key] = [arrays.pop(f"{key}/{name}") for name in names[kind]]
    except KeyError as error:
        raise UserError(
            f"`{path}` has no {error}; it belongs to a different model. Use another `--run-dir`."
        ) from error
    for key in list(arrays):
        if "/" in key:
            raise UserError(f"`{path}` has `{key}`, which the model does not have; it belongs to a different model.")
        state[key] = arrays.pop(key)
    return state, json.loads(metadata["progress"])


def _list(folder: Path) -> list[Path]:
    """Lists the checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}\.safetensors", path.name))


def _names(model: Any) -> dict[str, list[str]]:
    """Names the variables; random generator states are numbered, since their paths differ from model to model."""
    non_trainable = [
        f"random-{number}" if "seed" in variable.path else weights.variable_name(variable)
        for number, variable in enumerate(model.non_trainable_variables)
    ]
    return {
        "trainable": [weights.variable_name(variable) for variable in model.trainable_variables],
        "non_trainable": non_trainable,
    }
