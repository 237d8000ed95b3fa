"""Parses values of annotation files by type, and rejects everything that is not clearly a number, a flag or a name.

JSON and XML written by hand or by scripts often have numbers and flags as text. Text is read as what it spells ("1",
"0.5", "false"), but nothing is guessed: `bool("0")` would be true, and `float("1_0")` ten.
"""

import re
import unicodedata
from typing import Any

from efficientdet.errors import UserError

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"(0|-?[1-9]\d*)(\.0*)?", re.ASCII)
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}


def is_number(text: str) -> bool:
    """Checks whether a text spells a number."""
    return _NUMBER.fullmatch(text.strip()) is not None


def number(value: Any, where: str) -> float:
    """Reads a number, also if given as text; numbers beyond float64 become infinite.

    Args:
        value: value in the file.
        where: start of the error: file and field, up to "is" or "contains".

    Raises:
        UserError: it is something else, including a boolean.
    """
    if isinstance(value, str) and is_number(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        has_comma = isinstance(value, str) and value.count(",") == 1 and is_number(value.replace(",", "."))
        raise UserError(f"{where} {repr(value)[:60]}; expected a number{' with a decimal point' if has_comma else ''}.")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def pixels(value: Any, where: str) -> int:
    """Reads a size in px; 0 if missing.

    Raises:
        UserError: it is not a whole number in the range of image sizes.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return 0
    size = number(value, where)
    if not abs(size) < 2**31 or size != int(size):
        raise UserError(f"{where} {str(value)[:60]!r}; expected a whole number of px.")
    return int(size)


def key(value: Any, where: str) -> int | str:
    """Reads an id: an integer, also as 1.0, "1" or "1.0"; any other text is kept as text.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, str) and value.strip():
        value = value.strip()
        return int(value.partition(".")[0]) if _INTEGER.fullmatch(value) and len(value) < 19 else value
    if isinstance(value, float) and value == value // 1 and abs(value) < 2**53:
        return int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise UserError(f"{where} {str(value)[:60]!r}; expected an integer.")
    return value


def flag(value: Any, where: str) -> bool:
    """Reads a flag: a boolean, 0 or 1, or text that spells one; false if missing.

    Raises:
        UserError: it is something else.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and not value.strip():
        return False
    if isinstance(value, int | float) and value in (0, 1):
        return value == 1
    if isinstance(value, str) and value.strip().casefold() in _FLAGS:
        return _FLAGS[value.strip().casefold()]
    raise UserError(f"{where} {str(value)[:60]!r}; expected 0 or 1.")


def name(value: Any, where: str) -> str:
    """Reads a name: text or an integer, normalized to NFC so that both encodings of é are the same name.

    Raises:
        UserError: it is something else, or empty.
    """
    text = str(value) if isinstance(value, str) or type(value) is int else ""
    text = unicodedata.normalize("NFC", text).strip()
    if not text:
        raise UserError(f"{where} {str(value)[:60]!r}; expected text.")
    return text
