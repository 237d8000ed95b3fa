"""Reads JSON and CSV annotation files, and their values strictly by type.

A value of another type is an error that names the file, the place in it and the field; nothing is guessed, and a
quoted number is not a number. NaN and infinity are numbers here: `policy` drops and reports their boxes.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientdet.data import sources
from efficientdet.data.parsing import values
from efficientdet.errors import UserError

_MAX_SIDE = 2**31
_SEPARATOR = re.compile(r"\"?sep=([,;\t])\"?", re.IGNORECASE)  # the first line of a CSV file for Excel


def number(value: Any, where: str, field: str) -> float:
    """Reads a number of a JSON document.

    Args:
        value: value in the document.
        where: the file in backticks, and the place in it, for the error.
        field: name of the field, for the error.
    """
    if value is None or isinstance(value, str):
        raise UserError(f"{where}: `{field}` is {_quoted(value)}; expected a number.")
    return values.number(value, f"{where}: `{field}` is")


def numbers(value: Any, count: int, where: str, field: str) -> list[float]:
    """Reads a list of `count` numbers of a JSON document."""
    if not isinstance(value, list) or len(value) != count:
        raise UserError(f"{where}: `{field}` is {_quoted(value)}; expected a list of {count} numbers.")
    return [number(one, where, f"{field}[{index}]") for index, one in enumerate(value)]


def points(value: Any, where: str, field: str) -> list[tuple[float, float]]:
    """Reads a list of points, each (x, y), of a JSON document; an empty list is an error."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: `{field}` is {_quoted(value)}; expected a list of points [x, y].")
    pairs = [numbers(one, 2, where, f"{field}[{index}]") for index, one in enumerate(value)]
    return [(x, y) for x, y in pairs]


def text(value: Any, where: str, field: str) -> str:
    """Reads a text of a JSON document; an empty one is an error."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: `{field}` is {_quoted(value)}; expected text.")
    return value.strip()


def mapping(value: Any, where: str, field: str) -> dict[str, Any]:
    """Reads an object of a JSON document."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: `{field}` is {_quoted(value)}; expected an object.")
    return value


def mappings(value: Any, where: str, field: str) -> list[dict[str, Any]]:
    """Reads a list of objects of a JSON document."""
    if not isinstance(value, list):
        raise UserError(f"{where}: `{field}` is {_quoted(value)}; expected a list of objects.")
    return [mapping(one, where, f"{field}[{index}]") for index, one in enumerate(value)]


def parse_number(value: str | None, where: str, field: str) -> float:
    """Reads a number of a CSV or XML file."""
    if value is None:
        raise UserError(f"{where}: `{field}` is missing; expected a number.")
    return values.number(value, f"{where}: `{field}` is")


def is_number(value: str) -> bool:
    """Checks whether `parse_number` accepts a value."""
    return values.is_number(value)


def image_size(height: float | None, width: float | None, where: str) -> tuple[int, int] | None:
    """Reads the height and width of an image, px; returns None if one of them is 0 or missing.

    Raises:
        UserError: a side is negative, too large, or not whole.
    """
    for field, side in (("height", height), ("width", width)):
        if side is not None and (not 0 <= side < _MAX_SIDE or side != int(side)):
            raise UserError(f"{where}: `{field}` is {side:g}; expected a whole number of px.")
    return (int(height), int(width)) if height and width else None


def load_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it is missing, unreadable, too large, or not JSON.
    """
    return parse_json(sources.read_text(path), f"`{path}`")


def parse_json(content: str, where: str) -> Any:
    """Parses JSON, and rejects duplicate keys, of which Python would silently use the last."""
    try:
        return json.loads(content, object_pairs_hook=_without_repetition)
    except _RepeatedKeyError as error:
        raise UserError(f"{where} has `{error}` twice in one entry; remove the wrong one.") from None
    except (ValueError, RecursionError) as error:  # also a number of more than 4,300 digits
        raise UserError(f"{where} is not valid JSON and may be truncated: {error}.") from error


class _RepeatedKeyError(Exception):
    """An entry of a JSON file has the same key twice."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an entry from its keys and values, which must not repeat a key."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return entry


def load_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Reads a whole CSV file (see `stream_rows`)."""
    return list(stream_rows(path))


def stream_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Reads a CSV file row by row: the number of each line and its cells; empty lines are skipped.

    Cells are separated by commas, semicolons or tabs: whichever is most frequent in the first line, or the one that
    Excel's `sep=;` names. The file is UTF-8, or UTF-16 if it starts with a UTF-16 byte order mark.
    """
    number = 1
    try:
        if path.stat().st_size > sources.MAX_ANNOTATION_BYTES:
            raise UserError(f"`{path}` is larger than {sources.MAX_ANNOTATION_BYTES / 2**30:.0f} GiB; split it.")
        with path.open(encoding=_encoding(path), newline="") as file:
            first = file.readline()
            named = _SEPARATOR.fullmatch(first.strip("\r\n"))
            if named is None:
                file.seek(0)
            delimiter = named[1] if named else max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                number = reader.line_num + (named is not None)
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield number, cells
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        name = "UTF-16" if error.encoding.startswith("utf-16") else "UTF-8"
        raise UserError(f"`{path}`, after line {number}: not valid {name}; save it as CSV UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"`{path}`, line {number + 1}: not valid CSV: {error}.") from error


def _encoding(path: Path) -> str:
    """Detects the encoding of a text file by its first bytes."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _quoted(value: Any) -> str:
    """Formats a value for an error."""
    return "missing" if value is None else repr(value)[:60]
