"""What a command accepts beyond the options of its function.

Most commands accept nothing more. `train` and `preview` start from a preset or a run's config, whose values become the
defaults of the options; `convert` can omit its format. Each has a function here that reads these words and leaves the
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
    """An argument that is read before the parser runs but still listed in `--help`."""

    name: str
    text: str
    metavar: str = ""
    """Placeholder for its value; empty for a flag."""
    is_positional: bool = False


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a grammar leaves to the parser."""

    words: list[str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Defaults of the function's parameters, by name."""
    listed: tuple[Listed, ...] = ()


JSON = Listed("json", "print the result as JSON.")
BACKEND = Listed(
    "backend", "Keras backend (default: KERAS_BACKEND, then keras.json, then TensorFlow).", "{tensorflow,jax}"
)
_CONFIG = Listed(
    "config", "start from a run folder's config.json or another config file instead of a preset.", "FILE_OR_RUN"
)


def plain(words: list[str]) -> Reading:
    """Leaves everything to the parser: `VERB ARGUMENT ... [--option value ...]`."""
    return Reading(words)


def train(words: list[str]) -> Reading:
    """Reads `train PRESET | --config FILE_OR_RUN [--section.knob value ...]`.

    Raises:
        UserError: neither or both are given, or the given one cannot be used.
    """
    from efficientdet import presets

    start, rest = _take_start("train", words)
    if start is None:
        if not HELP & set(rest):
            raise UserError(f"`train` needs a preset or `--config FILE`; choose from {', '.join(presets.PRESETS)}.")
        start = presets.find_preset("d0")
    return Reading(rest, {"config": start}, (_preset("comes first.", "PRESET"), _CONFIG))


def preview(words: list[str]) -> Reading:
    """Reads `preview DATA [PRESET | --config FILE_OR_RUN] [--section.knob value ...]`; the default preset is d0.

    Raises:
        UserError: both a preset and a config are given, or the given one cannot be used.
    """
    from efficientdet import presets

    data, rest = (words[:1], words[1:]) if words and not words[0].startswith("-") else ([], words)
    start, rest = _take_start("preview", rest)
    start = start or presets.find_preset("d0")
    return Reading([*data, *rest], {"config": start}, (_preset("follows DATA; default d0.", "[PRESET]"), _CONFIG))


def convert(words: list[str]) -> Reading:
    """Reads `convert [FORMAT] FOLDER --output DIR`; the default format is `auto`."""
    if HELP & set(words):
        return Reading(words)
    from efficientdet.data import registry

    flags = ("--dry-run", "--overwrite", "--skip-", "--drop-", "--no-")
    for place, word in enumerate(words[:-1]):
        before = words[place - 1] if place else ""
        is_value = before.startswith("--") and "=" not in before and not before.replace("_", "-").startswith(flags)
        if word in ("auto", *registry.NAMES) and not is_value and not words[place + 1].startswith("-"):
            return Reading(words)
    # The parser explains a format without a folder and a misspelled one; a folder may have the name of a format.
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    is_format = len(leading) > 1 or (leading[:1] and leading[0] in registry.NAMES)
    return Reading(words if is_format and not os.path.isdir(leading[0]) else ["auto", *words])  # noqa: PTH112


def take_flag(words: list[str], flag: str) -> tuple[list[str], bool]:
    """Removes a flag from the words; returns the rest, and whether it was there."""
    return [word for word in words if word != flag], flag in words


def take_option(words: list[str], option: str) -> tuple[list[str], str | None]:
    """Removes `option value` or `option=value` from the words; if repeated, the last one counts.

    Returns:
        The rest, and the value, or None if the option is absent.

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
    """Removes `PRESET` or `--config FILE` from the words and returns the config to start from, or None.

    FILE may also be a run folder, which stands for its config.json.
    """
    words, file = take_option(words, "--config")
    preset, rest = (words[0], words[1:]) if words and not words[0].startswith("-") else (None, words)
    if file is not None and preset is not None:
        raise UserError(f"`{verb}` has both the preset `{preset}` and `--config {file}`; pass only one of them.")
    if file is not None:
        import pathlib

        from efficientdet import config as configs

        path = pathlib.Path(file).expanduser()
        return configs.load(path / "config.json" if path.is_dir() else path), rest
    if preset is not None:
        from efficientdet import presets

        return presets.find_preset(preset), rest
    return None, rest
