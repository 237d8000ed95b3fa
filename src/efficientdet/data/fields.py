"""Values of annotation files, read strictly by their type, and the files themselves as JSON, XML or CSV.

A value of another type is an error that names the file, the place in it and the field; nothing is guessed, and a
number in quotes is not a number. NaN and infinity are numbers here: `policy` drops their boxes and reports them.
"""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import defusedxml
import defusedxml.ElementTree

from efficientdet.data import sources
from efficientdet.errors import UserError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII)
_MAX_SIDE = 2**31


def number(value: Any, where: str, field: str) -> float:
    """Takes a number of a JSON document.

    Args:
        value: what the document has.
        where: the file in backticks, and the place in it, for the error.
        field: its name, for the error.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: has the `{field}` {_quoted(value)}; expected a number.")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def numbers(value: Any, count: int, where: str, field: str) -> list[float]:
    """Takes a list of `count` numbers of a JSON document."""
    if not isinstance(value, list) or len(value) != count:
        raise UserError(f"{where}: has the `{field}` {_quoted(value)}; expected a list of {count} numbers.")
    return [number(one, where, f"{field}[{index}]") for index, one in enumerate(value)]


def points(value: Any, where: str, field: str) -> list[tuple[float, float]]:
    """Takes a list of points, each (x, y), of a JSON document; an empty list is an error."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: has the `{field}` {_quoted(value)}; expected a list of points [x, y].")
    pairs = [numbers(one, 2, where, f"{field}[{index}]") for index, one in enumerate(value)]
    return [(x, y) for x, y in pairs]


def text(value: Any, where: str, field: str) -> str:
    """Takes a text of a JSON document that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: has the `{field}` {_quoted(value)}; expected a text.")
    return value.strip()


def mapping(value: Any, where: str, field: str) -> dict[str, Any]:
    """Takes an object of a JSON document."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: has the `{field}` {_quoted(value)}; expected an object.")
    return value


def mappings(value: Any, where: str, field: str) -> list[dict[str, Any]]:
    """Takes a list of objects of a JSON document."""
    if not isinstance(value, list):
        raise UserError(f"{where}: has the `{field}` {_quoted(value)}; expected a list of objects.")
    return [mapping(one, where, f"{field}[{index}]") for index, one in enumerate(value)]


def parse_number(value: str | None, where: str, field: str) -> float:
    """Reads a number of a CSV or XML file."""
    if value is None or not _NUMBER.fullmatch(value.strip()):
        raise UserError(f"{where}: has the `{field}` {_quoted(value)}; expected a number.")
    return float(value)


def is_number(value: str) -> bool:
    """Says whether `parse_number` reads a value."""
    return _NUMBER.fullmatch(value.strip()) is not None


def image_size(height: float | None, width: float | None, where: str) -> tuple[int, int] | None:
    """Takes the height and width of an image, px; none where one of them is 0 or missing.

    Raises:
        UserError: a side is negative, too large, or not whole.
    """
    for field, side in (("height", height), ("width", width)):
        if side is not None and (not 0 <= side < _MAX_SIDE or side != int(side)):
            raise UserError(f"{where}: has the `{field}` {side:g}; expected a whole number of px.")
    return (int(height), int(width)) if height and width else None


def load_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it is missing, unreadable, too large, or not JSON.
    """
    return parse_json(sources.read_text(path), f"`{path}`")


def parse_json(content: str, where: str) -> Any:
    """Reads JSON from a text."""
    try:
        return json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON, it may be cut short: {error}.") from error


def load_xml(path: Path) -> ElementTree.Element:
    """Reads an XML file in the encoding that it declares; entities, which can exhaust the memory, are refused."""
    try:
        if path.stat().st_size > sources.MAX_ANNOTATION_BYTES:
            raise UserError(f"`{path}` is larger than {sources.MAX_ANNOTATION_BYTES / 2**30:.0f} GiB; split it.")
        return _parse_xml(path.read_bytes())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}.") from error
    except (ElementTree.ParseError, defusedxml.DefusedXmlException, LookupError, ValueError) as error:
        raise UserError(f"`{path}` is not valid XML, it may be cut short: {' '.join(str(error).split())}.") from error


def _parse_xml(content: bytes) -> ElementTree.Element:
    """Parses XML; encodings that the parser does not know, such as GBK, are Python's to decode."""
    declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["'][^>]*\?>""", content)
    if declared is None or declared[1].lower() in (b"utf-8", b"utf-16", b"us-ascii", b"iso-8859-1"):
        return defusedxml.ElementTree.fromstring(content)
    return defusedxml.ElementTree.fromstring(content[declared.end() :].decode(declared[1].decode()))


def load_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Reads a CSV file as a whole."""
    return list(stream_rows(path))


def stream_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Reads a CSV file row by row: the number of each line and its cells; empty lines are skipped.

    Cells are separated by commas, semicolons or tabs: by what the first line has most of.
    """
    number = 1
    try:
        if path.stat().st_size > sources.MAX_ANNOTATION_BYTES:
            raise UserError(f"`{path}` is larger than {sources.MAX_ANNOTATION_BYTES / 2**30:.0f} GiB; split it.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            for row in reader:
                number = reader.line_num
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield number, cells
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"`{path}`, after line {number}: is not UTF-8; save it as CSV UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"`{path}`, line {number + 1}: cannot be read as CSV: {error}.") from error


def _quoted(value: Any) -> str:
    """Writes a value for an error."""
    return "(missing)" if value is None else repr(value)[:60]
