"""COCO's results format: the detections for a whole split as one JSON list.

    [{"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}, ...]

Boxes are in px of the image, whose first pixel starts at 0. COCO's server accepts this file. Files that are read may
come from any detector and are not trusted.
"""

import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from efficientdet.data.parsing import fields
from efficientdet.errors import UserError
from efficientdet.storage import files

_LIMIT_PX = 2**31


def check_name(name: str, output: Path | None, taken: str) -> None:
    """Raises a UserError for an invalid name of a file of detections, or a name that would not be used.

    Args:
        name: name of the file.
        output: its folder; None: nothing is written.
        taken: name of another file there.
    """
    if Path(name).name != name or Path(name).suffix != ".json" or name == taken:
        raise UserError(f"`results_name` is `{name}`; expected a file name that ends in .json, without a folder.")
    if output is None and name != "detections.json":
        raise UserError(f"`results_name` is `{name}`, but nothing is written without `output`; pass an output folder.")


def write(path: Path, detections: Iterable[dict[str, Any]]) -> None:
    """Writes detections, one per line, to a temporary file and renames it.

    Args:
        path: the file.
        detections: image_id, category_id, bbox (x, y, width, height) and score of each.
    """
    lines = ",\n".join(json.dumps(detection, allow_nan=False) for detection in detections)
    files.write_text(path, f"[\n{lines}\n]\n")


def read(path: Path, image_ids: Collection[int], category_ids: Collection[int]) -> list[dict[str, Any]]:
    """Reads and checks detections; ignores other fields.

    Args:
        path: the file.
        image_ids: ids of the images; a detection for any other image is an error.
        category_ids: ids of the classes; a detection of any other class is an error.

    Returns:
        image_id, category_id, bbox and score of each detection, in the order of the file.

    Raises:
        UserError: the file cannot be read, or a detection is invalid.
    """
    document = fields.load_json(path)
    if not isinstance(document, list):
        hint = "; this looks like annotations" if isinstance(document, dict) and "annotations" in document else ""
        raise UserError(f"`{path}` is not a list; expected COCO's results: image_id, category_id, bbox, score{hint}.")
    known = {"image_id": (frozenset(image_ids), "image"), "category_id": (frozenset(category_ids), "class")}
    return [_read_detection(entry, f"`{path}`: detection {index}", known) for index, entry in enumerate(document)]


def _read_detection(entry: Any, where: str, known: dict[str, tuple[frozenset[int], str]]) -> dict[str, Any]:
    """Checks one detection."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {_short(entry)}; expected an object with image_id, category_id, bbox and score.")
    for field in ("image_id", "category_id", "bbox", "score"):
        if field not in entry:
            raise UserError(f"{where} has no `{field}`; expected image_id, category_id, bbox and score.")
    for field, (ids, what) in known.items():
        if type(entry[field]) is not int:
            raise UserError(f"{where} has the `{field}` {_short(entry[field])}; expected an integer.")
        if entry[field] not in ids:
            raise UserError(f"{where} has the `{field}` {_short(entry[field])}, but the data have no such {what}.")
    box, score = entry["bbox"], entry["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise UserError(f"{where} has the `bbox` {_short(box)}; expected four finite numbers: x, y, width, height.")
    if min(box[2:]) < 0 or max(map(abs, box)) >= _LIMIT_PX:
        raise UserError(
            f"{where} has the `bbox` {_short(box)}; width and height must be at least 0, and all numbers below 2^31."
        )
    if not _is_finite(score):
        raise UserError(f"{where} has the `score` {_short(score)}; expected a finite number.")
    ids_of = {field: entry[field] for field in known}
    return ids_of | {"bbox": [float(side) for side in box], "score": float(score)}


def _is_finite(value: Any) -> bool:
    """Returns whether a JSON value is a number (not true or false) that a float can represent."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _short(value: Any) -> str:
    """Formats a value of any size in at most 60 characters."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= 60 else text[:57] + "..."
