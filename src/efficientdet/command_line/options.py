"""Unknown options: suggests what the user probably meant.

Each knob has one name, such as `model.image_size`. `train` and `preview` have hundreds of knobs and name each with its
section, `--model.image-size`; every other command has a few options of its own and calls the same knob `--image-size`.
"""

from collections.abc import Collection, Sequence
from typing import Any

from efficientdet import knobs
from efficientdet.command_line import nvidia
from efficientdet.config import ExperimentConfig

BY_SECTION = ("train", "preview")
"""The commands that name knobs by section."""


def explain(verb: str, parameters: Collection[str], words: Sequence[str]) -> str | None:
    """Suggests what an unknown option stands for.

    Args:
        verb: the command, such as train.
        parameters: parameters of its function.
        words: what was typed after it.

    Returns:
        One line, or None to leave it to the parser.
    """
    known = _options(knobs.flatten(knobs.to_dict(ExperimentConfig())))
    names = {"--help", *_options(dict.fromkeys(parameters))}
    if verb in BY_SECTION:
        names |= known.keys()
    typed = [word.partition("=")[0] for word in words if word.startswith("--")]
    # The parser treats underscores as hyphens.
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
    """Explains one unknown option by this module's rule, or by its name in earlier versions."""
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
    """Turns knob names into options; a boolean has two."""
    options: dict[str, None] = {}
    for name, default in values.items():
        section, dot, last = name.replace("_", "-").rpartition(".")
        options[f"--{section}{dot}{last}"] = None
        if isinstance(default, bool):
            options[f"--{section}{dot}no-{last}"] = None
    return options
