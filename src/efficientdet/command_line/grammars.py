"""What a verb's command line takes beyond the options of its function.

Most verbs take nothing more. `train` and `preview` start from a preset or from the config of a run, whose values become
the defaults of the knobs; `convert` may leave its format out. Each has a function here that reads this, and leaves the
rest to the parser.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from efficientdet.errors import UserError

if TYPE_CHECKING:
    from efficientdet.config import ExperimentConfig

HELP = frozenset({"-h", "--help"})


@dataclasses.dataclass(frozen=True)
class Listed:
    """An argument that is read before the parser runs; `--help` lists it with the others."""

    name: str
    text: str
    metavar: str = ""
    """What stands for its value; empty: a flag."""
    is_positional: bool = False


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a grammar leaves to the parser."""

    words: list[str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the function's parameters, by name."""
    listed: tuple[Listed, ...] = ()


JSON = Listed("json", "print the result as JSON.")
BACKEND = Listed(
    "backend", "Keras's backend; else KERAS_BACKEND, else keras.json, else TensorFlow.", "{tensorflow,jax}"
)
_CONFIG = Listed(
    "config", "start from the config.json of a run, or from such a file, instead of a preset.", "FILE_OR_RUN"
)


def plain(words: list[str]) -> Reading:
    """Leaves everything to the parser: `VERB ARGUMENT ... [--option value ...]`."""
    return Reading(words)


def train(words: list[str]) -> Reading:
    """Reads `train PRESET | --config FILE_OR_RUN [--section.knob value ...]`.

    Raises:
        UserError: neither is there, or both, or what is there cannot be used.
    """
    from efficientdet import presets

    start, rest = _take_start("train", words)
    if start is None:
        if not HELP & set(rest):
            raise UserError(
                f"`train` needs a preset first: one of {', '.join(presets.PRESETS)}; or `--config FILE`, of a run."
            )
        start = presets.find_preset("d0")
    return Reading(rest, {"config": start}, (_preset("comes first.", "PRESET"), _CONFIG))


def preview(words: list[str]) -> Reading:
    """Reads `preview DATA [PRESET | --config FILE_OR_RUN] [--section.knob value ...]`; the preset is d0 if left out.

    Raises:
        UserError: a preset and a config, or one that cannot be used.
    """
    from efficientdet import presets

    data, rest = (words[:1], words[1:]) if words and not words[0].startswith("-") else ([], words)
    start, rest = _take_start("preview", rest)
    start = start or presets.find_preset("d0")
    return Reading([*data, *rest], {"config": start}, (_preset("follows DATA; d0 if left out.", "[PRESET]"), _CONFIG))


def convert(words: list[str]) -> Reading:
    """Reads `convert [FORMAT] FOLDER --output DIR`: the format is `auto` where the words name none."""
    if HELP & set(words):
        return Reading(words)
    from efficientdet.data import registry

    flags = ("--dry-run", "--overwrite", "--skip-", "--drop-", "--no-")
    for place, word in enumerate(words[:-1]):
        before = words[place - 1] if place else ""
        is_value = before.startswith("--") and "=" not in before and not before.replace("_", "-").startswith(flags)
        if word in ("auto", *registry.NAMES) and not is_value and not words[place + 1].startswith("-"):
            return Reading(words)
    # A format without a folder and a misspelt one are for the parser to explain; a folder may be called like a format.
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    is_format = len(leading) > 1 or (leading[:1] and leading[0] in registry.NAMES)
    return Reading(words if is_format and not os.path.isdir(leading[0]) else ["auto", *words])  # noqa: PTH112


def take_flag(words: list[str], flag: str) -> tuple[list[str], bool]:
    """Takes a flag out of the words; returns what is left, and whether it was there."""
    return [word for word in words if word != flag], flag in words


def take_option(words: list[str], option: str) -> tuple[list[str], str | None]:
    """Takes `option value` or `option=value` out of the words; given twice, the last one counts.

    Returns:
        What is left, and the value; none: the option is not there.

    Raises:
        UserError: the option has no value.
    """
    rest, value = [], None
    remaining = iter(words)
    for word in remaining:
        if word == option:
            value = next(remaining, None)
            if value is None:
                raise UserError(f"`{option}` has no value.")
        elif word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
        else:
            rest.append(word)
    return rest, value


def _preset(where: str, metavar: str) -> Listed:
    from efficientdet import presets

    return Listed("preset", f"{where} One of {', '.join(presets.PRESETS)}.", metavar, is_positional=True)


def _take_start(verb: str, words: list[str]) -> tuple[ExperimentConfig | None, list[str]]:
    """Takes `PRESET` from the front of the words, or `--config FILE` out of them: the config to start from, or none.

    FILE may also be the folder of a run, whose config.json it then is.
    """
    words, file = take_option(words, "--config")
    preset, rest = (words[0], words[1:]) if words and not words[0].startswith("-") else (None, words)
    if file is not None and preset is not None:
        raise UserError(f"`{verb}` has the preset `{preset}` and `--config {file}`; give one of them.")
    if file is not None:
        import pathlib

        from efficientdet import config as configs

        path = pathlib.Path(file).expanduser()
        return configs.load(path / "config.json" if path.is_dir() else path), rest
    if preset is not None:
        from efficientdet import presets

        return presets.find_preset(preset), rest
    return None, rest
