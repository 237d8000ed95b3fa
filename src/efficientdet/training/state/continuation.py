"""More epochs for a finished run: a new run that starts from its weights.

The learning rate schedule depends on the length of the run, so a finished run cannot simply be extended.
"""

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientdet import knobs, presets
from efficientdet.errors import UserError
from efficientdet.training.state import checkpoint

SUMMARY = "summary.json"

_EPOCHS = "training.epochs"
_ELSEWHERE = ("dataset.", "derived.")
# Set by the command itself or by the run.
_OTHERWISE = {"preset", "run_dir", "weights", "backbone", "model.num_classes", _EPOCHS}


def explain(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], differing: Sequence[str]) -> str | None:
    """Explains how to train a finished run for more epochs.

    Args:
        folder: run folder.
        old: knobs of the run by dotted name, JSON values.
        new: requested knobs.
        differing: names of the knobs that differ.

    Returns:
        A line with the command. None if the run isn't finished or anything other than more epochs was requested.
    """
    own = [name for name in differing if not name.startswith("derived.")]
    if own != [_EPOCHS] or new[_EPOCHS] <= old[_EPOCHS] or finished(folder) is None:
        return None
    command = " ".join(_words(folder, new, new[_EPOCHS] - old[_EPOCHS]))
    return (
        f"`{folder}` has finished its {old[_EPOCHS]:g} epochs, and its learning rate schedule ends there. To train "
        f"{new[_EPOCHS] - old[_EPOCHS]:g} more from its weights, run `{command}`."
    )


def finished(folder: Path) -> dict[str, Any] | None:
    """Reads summary.json if it belongs to the newest checkpoint; None means the run of the folder hasn't ended."""
    newest = checkpoint.latest(folder / "checkpoints")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # missing, or not ours
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        if newest is not None and summary.get("steps") == checkpoint.step_of(newest):
            return summary
    return None


def _words(folder: Path, values: Mapping[str, Any], epochs: float) -> list[str]:
    """Builds the command: the preset, and the knobs that differ from it."""
    names = (f"{folder}-more", *(f"{folder}-more-{number}" for number in range(2, 1000)))
    free = next(name for name in names if not Path(name).exists())
    words = ["--weights", shlex.quote(str(folder)), "--run-dir", shlex.quote(free), "--training.epochs", f"{epochs:g}"]
    try:
        preset = presets.find_preset(values["preset"])
    except UserError:  # a custom config
        return ["efficientdet", "train", "--config", shlex.quote(str(folder)), *words]
    defaults = knobs.flatten(json.loads(json.dumps(knobs.to_dict(preset))))
    for name, value in values.items():
        if name not in _OTHERWISE and not name.startswith(_ELSEWHERE) and value != defaults.get(name):
            words += _option(name.replace("_", "-"), value)
    return ["efficientdet", "train", shlex.quote(values["preset"]), *words]


def _option(name: str, value: Any) -> list[str]:
    """Formats a knob as a command-line option."""
    if isinstance(value, bool):
        section, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{section}{dot}no-{last}"]
    return [f"--{name}", *(shlex.quote(str(part)) for part in _flat(value))]


def _flat(value: Any) -> list[Any]:
    """Flattens nested lists."""
    return [part for row in value for part in _flat(row)] if isinstance(value, list) else [value]
