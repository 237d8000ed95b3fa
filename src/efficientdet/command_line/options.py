"""Options that are not the verb's: what somebody who types one probably means.

One knob has one name, `model.image_size`. `train` and `preview` have hundreds of knobs and name each by its section,
`--model.image-size`; every other verb has a few options of its own, and names the same knob `--image-size`.
"""

from collections.abc import Collection, Sequence
from typing import Any

from efficientdet import knobs
from efficientdet.command_line import nvidia
from efficientdet.config import ExperimentConfig

BY_SECTION = ("train", "preview")
"""The verbs that name knobs by section."""


def explain(verb: str, parameters: Collection[str], words: Sequence[str]) -> str | None:
    """Says what an unknown option stands for, if that can be told.

    Args:
        verb: such as train.
        parameters: of its function.
        words: what was typed behind it.

    Returns:
        A line; none: leave it to the parser.
    """
    known = _options(knobs.flatten(knobs.to_dict(ExperimentConfig())))
    names = {"--help", *_options(dict.fromkeys(parameters))}
    if verb in BY_SECTION:
        names |= known.keys()
    typed = [word.partition("=")[0] for word in words if word.startswith("--")]
    # The parser takes an underscore for a hyphen.
    unknown = [word for word in typed if word.replace("_", "-") not in names]
    if not unknown:
        return None
    of_nvidia = nvidia.explain(verb, words, [word for word in typed if word not in unknown])
    if of_nvidia is not None and (any("_" in word for word in unknown) or verb not in BY_SECTION):
        return of_nvidia
    for word in unknown:
        if text := _explain_one(verb, word, word.replace("_", "-"), known, names):
            return text
    return of_nvidia


def _explain_one(verb: str, word: str, option: str, known: Collection[str], names: Collection[str]) -> str | None:
    """Explains one unknown option by the rule of this module, or by the word that it had in earlier versions."""
    if "picture" in option and ((now := option.replace("picture", "image")) in names or now.startswith("--limits.")):
        return f"`{word}` is called `{now}` now."
    if verb in BY_SECTION:
        same = [knob for knob in known if knob.removeprefix("--").endswith(f".{option.removeprefix('--')}")]
        if same:
            meant = " or ".join(f"`{knob}`" for knob in same)
            return f"`{word}` is {meant} here: `{verb}` names knobs by section."
    elif option in known and "." in option:
        short = f"--{option.rpartition('.')[2]}"
        where = f"only {' and '.join(f'`{other}`' for other in BY_SECTION)} name knobs by section"
        return (
            f"`{verb}` takes `{short}`, not `{word}`: {where}."
            if short in names
            else f"`{verb}` has no `{word}`: {where}."
        )
    return None


def _options(values: dict[str, Any]) -> dict[str, None]:
    """Writes names of knobs as options; one that is on or off has two."""
    options: dict[str, None] = {}
    for name, default in values.items():
        section, dot, last = name.replace("_", "-").rpartition(".")
        options[f"--{section}{dot}{last}"] = None
        if isinstance(default, bool):
            options[f"--{section}{dot}no-{last}"] = None
    return options
