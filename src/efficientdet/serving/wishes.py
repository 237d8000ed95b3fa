"""Options of a request: thresholds, classes, class-agnostic suppression, and a limit on detections.

Each can be in the query, in a form as a field without a file name, or in a JSON body. Only lists may be repeated.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from efficientdet.errors import UserError
from efficientdet.inference import selection
from efficientdet.serving.admission import Refusal
from efficientdet.structures import Category

NAMES = ("score_threshold", "classes", "class_thresholds", "class_agnostic", "max_detections")
"""Names of the options."""

_LISTS = ("classes", "class_thresholds")
_MOST_NAMES = 20  # classes that an error lists
_ANSWERS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """Values used for options that a request does not set.

    Attributes:
        score_threshold: in [0, 1].
        class_thresholds: score thresholds for individual classes, by name or id.
        class_agnostic: keep one box per object, whatever its class.
        max_detections: maximum number of detections per image; None keeps all that the network returns.
    """

    score_threshold: float = 0.3
    class_thresholds: Mapping[str, float] | None = None
    class_agnostic: bool = False
    max_detections: int | None = None


def check(pairs: Sequence[tuple[str, str]], where: str) -> None:
    """Raises a Refusal (422) for an unknown option.

    Args:
        pairs: names and values.
        where: where they come from, for the message.
    """
    unknown = sorted({name for name, _ in pairs} - set(NAMES))
    if unknown:
        raise Refusal(422, f"The {where} has the unknown option {unknown[0][:80]!r}; choose from {', '.join(NAMES)}.")


def read(
    pairs: Sequence[tuple[str, str]], categories: Sequence[Category], defaults: Defaults
) -> tuple[selection.Choice, float]:
    """Parses the options of a request.

    Args:
        pairs: names from `NAMES` and values.
        categories: classes of the model.
        defaults: defaults of the service.

    Returns:
        Which detections to show, and the score threshold.

    Raises:
        Refusal: 422, a value is not valid.
    """
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    for name, texts in values.items():
        if len(texts) > 1 and name not in _LISTS:
            raise Refusal(422, f"{name} is set {len(texts)} times; set it once.")
    threshold = _number("score_threshold", values, defaults.score_threshold)
    known = [category.name for category in categories]
    wanted = None
    if "classes" in values:
        wanted = [part for text in values["classes"] for part in ([text] if text in known else text.split(","))]
        _check_classes(wanted, known, "classes")
    thresholds = dict(defaults.class_thresholds or {})
    if "class_thresholds" in values:
        thresholds = {}
        for part in (part for text in values["class_thresholds"] for part in text.split(",")):
            name, colon, number = part.rpartition(":")
            if not colon:
                raise Refusal(
                    422, f"class_thresholds contains {part[:80]!r}; expected CLASS:NUMBER, such as person:0.5."
                )
            thresholds[name] = _number(f"class_thresholds of {name[:80]!r}", {}, _float(number))
        _check_classes(list(thresholds), known, "class_thresholds")
    try:
        choice = selection.choose(
            categories,
            score_threshold=threshold,
            class_thresholds=thresholds,
            classes=wanted,
            class_agnostic=_flag("class_agnostic", values, defaults.class_agnostic),
            max_detections=_whole("max_detections", values, defaults.max_detections),
        )
    except UserError as error:
        raise Refusal(422, str(error)) from None
    return choice, threshold


def flatten(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Converts JSON values to pairs like those of a query.

    Args:
        values: values by name, from `NAMES`.

    Raises:
        Refusal: 422, a value has the wrong type.
    """
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if name == "class_thresholds" and isinstance(value, dict):
            pairs += [(name, f"{key}:{_text(name, each)}") for key, each in value.items()]
        elif name in _LISTS and isinstance(value, list):
            pairs += [(name, _text(name, each)) for each in value]
        elif value is not None:
            pairs.append((name, _text(name, value)))
    return pairs


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise Refusal(422, f"{name} has type {type(value).__name__}; expected a number or a string.")


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _number(name: str, values: Mapping[str, list[str]], default: float) -> float:
    """Reads a number from 0 to 1."""
    text = values.get(name, [str(default)])[0]
    number = _float(text)
    if not 0 <= number <= 1:
        raise Refusal(422, f"{name} is {text[:80]!r}; expected a number from 0 to 1.")
    return number


def _whole(name: str, values: Mapping[str, list[str]], default: int | None) -> int | None:
    """Reads an integer of at least 1."""
    if name not in values:
        return default
    text = values[name][0].strip()
    if not (text.isdecimal() and text.isascii() and len(text) < 10 and int(text)):
        raise Refusal(422, f"{name} is {text[:80]!r}; expected an integer of at least 1.")
    return int(text)


def _flag(name: str, values: Mapping[str, list[str]], default: bool) -> bool:
    if name not in values:
        return default
    text = values[name][0].strip().lower()
    if text not in _ANSWERS:
        raise Refusal(422, f"{name} is {text[:80]!r}; expected true or false.")
    return _ANSWERS[text]


def _check_classes(names: Sequence[str], known: Sequence[str], where: str) -> None:
    for name in sorted(set(names)):
        if name not in known:
            shown = ", ".join(known[:_MOST_NAMES]) + (", ..." if len(known) > _MOST_NAMES else "")
            raise Refusal(422, f"{where} has the unknown class {name[:80]!r}; choose from {shown}.")
