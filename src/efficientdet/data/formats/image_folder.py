"""Reads Hugging Face's `imagefolder` with boxes: images, and a `metadata.jsonl` or `metadata.csv` in their folder.

A row has `file_name`, relative to the metadata file, and `objects`: lists `bbox` (x, y, width, height px, as in COCO)
and `categories` (names, or numbers from 0), or a list of objects with one of each.
"""

from pathlib import Path
from typing import Any

from efficientdet.data import sources
from efficientdet.data.parsing import corners, fields
from efficientdet.data.reading import collection
from efficientdet.errors import UserError

FILES = ("metadata.jsonl", "metadata.csv")
NUMBERED = "unnamed classes called class_<number> (use `--classes` to name them)"

_BOXES = ("bbox", "bboxes", "boxes")
_CLASSES = ("categories", "category", "labels", "label", "class", "classes")
_SIDES = ("height", "width")

_Row = tuple[dict[str, Any], str]


def is_row(row: Any) -> bool:
    """Checks whether a row of metadata lists boxes."""
    return isinstance(row, dict) and "file_name" in row and (bool(row.get("objects")) or "bbox" in row)


def read(gathered: collection.Collection) -> None:
    """Reads the metadata file of each folder; class numbers are positions in `gathered.classes`, from 0."""
    found: list[tuple[Path, str, dict[str, Any], list[tuple[list[float], int | str]]]] = []
    for path in gathered.gallery.files(".jsonl", ".csv"):
        if path.name.lower() not in FILES:
            continue
        gathered.mark(path)
        rows: list[_Row] = []
        with gathered.attempt(path, lost=0):
            rows = load_rows(path)
        for row, where in rows:
            with gathered.attempt(path):
                found.append((path, where, row, _objects(row, where)))
    classes = gathered.classes
    table = _table(gathered, found, classes)
    files_of_corners = _find_corners(gathered, found)
    for path, where, row, objects in found:
        with gathered.attempt(path, len(objects)):
            image = _add_image(gathered, path, row, where)
            for (x, y, width, height), label in objects:
                name = table.get(label, "") if table and isinstance(label, int) else str(label)
                if not name:
                    raise UserError(f"{where}: unknown class {label}; {classes} has 0..{len(table or ()) - 1}.")
                box = [y, x, height, width] if path in files_of_corners else [y, x, y + height, x + width]
                gathered.add_box(image, box, name, where)
    if table:  # it is numbered from 0
        gathered.table, gathered.table_file, gathered.classes = table, classes, None


def _add_image(gathered: collection.Collection, path: Path, row: dict[str, Any], where: str) -> collection.Annotated:
    """Adds the image of a row."""
    sides = [row.get(side) for side in _SIDES]
    size = None
    if None not in sides:
        height, width = (fields.number(side, where, name) for side, name in zip(sides, _SIDES, strict=True))
        size = fields.image_size(height, width, where)
    name = fields.text(row.get("file_name"), where, "file_name")
    return gathered.add_image(name, file=path, where=where, size=size, is_listing=True)


def load_rows(path: Path) -> list[_Row]:
    """Reads the rows of a metadata file, each with its location for errors.

    Raises:
        UserError: the file cannot be read, or a row is not an object.
    """
    if path.suffix.lower() == ".jsonl":
        lines = enumerate(sources.read_text(path).splitlines(), start=1)
        places = [(line, f"`{path}`, line {number}") for number, line in lines if line.strip()]
        return [(fields.mapping(fields.parse_json(line, where), where, "row"), where) for line, where in places]
    (_, header), *rows = fields.load_rows(path) or [(1, [])]
    found = []
    for number, row in rows:
        where = f"`{path}`, line {number}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} cells, but the first line has {len(header)}.")
        values: dict[str, Any] = dict(zip(header, row, strict=True))
        for field in ("objects", *_BOXES, *_CLASSES):
            if values.get(field, "")[:1] in ("{", "["):
                values[field] = fields.parse_json(values[field], f"{where}: `{field}`")
        for side in _SIDES:
            values[side] = fields.parse_number(values[side], where, side) if values.get(side) else None
        found.append((values, where))
    return found


def _objects(row: dict[str, Any], where: str) -> list[tuple[list[float], int | str]]:
    """Reads the boxes (x, y, width, height px) and categories of a row."""
    objects = row.get("objects") if "objects" in row else row
    if objects in (None, "", []):
        return []
    if isinstance(objects, list):
        entries = fields.mappings(objects, where, "objects")
        boxes = [_take(entry, _BOXES, where)[0] for entry in entries]
        labels, field = [_take(entry, _CLASSES, where)[0] for entry in entries], "objects"
    else:
        boxes, field = _take(fields.mapping(objects, where, "objects"), _BOXES, where)
        labels, _ = _take(objects, _CLASSES, where)
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise UserError(f"{where}: `{field}` and its categories must be lists of equal length.")
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
            raise UserError(f"{where}: the category is {str(label)[:60]!r}; expected a name or a number.")
    return [
        (fields.numbers(box, 4, where, f"{field}[{index}]"), label)
        for index, (box, label) in enumerate(zip(boxes, labels, strict=True))
    ]


def _take(entry: dict[str, Any], names: tuple[str, ...], where: str) -> tuple[Any, str]:
    """Returns the first of several fields that an entry has, and its name."""
    for name in names:
        if name in entry:
            return entry[name], name
    raise UserError(f"{where}: `objects` has no `{names[0]}`.")


def _find_corners(
    gathered: collection.Collection,
    found: list[tuple[Path, str, dict[str, Any], list[tuple[list[float], int | str]]]],
) -> set[Path]:
    """Finds the files whose boxes are corners, judging by their areas."""
    entries: dict[Path, list[dict[str, Any]]] = {}
    for path, _, row, objects in found:
        inside = row.get("objects")
        areas = inside.get("area") if isinstance(inside, dict) else None
        if isinstance(areas, list) and len(areas) == len(objects):
            boxes = (box for box, _ in objects)
            entries.setdefault(path, []).extend({"bbox": b, "area": a} for b, a in zip(boxes, areas, strict=True))
    told = {path for path, some in entries.items() if corners.are_told(some)}
    for path in told:
        gathered.report_file(corners.TOLD, path)
    return told


def _table(
    gathered: collection.Collection,
    found: list[tuple[Path, str, dict[str, Any], list[tuple[list[float], int | str]]]],
    classes: Path | None,
) -> dict[Any, str] | None:
    """Makes the class names if the dataset has only numbers; returns None if it has names."""
    uses = [(label, path, where) for path, where, _, objects in found for _, label in objects]
    by_number = [use for use in uses if isinstance(use[0], int)]
    if not by_number:
        return None
    if len(by_number) < len(uses):
        label, _, where = next(use for use in uses if not isinstance(use[0], int))
        raise UserError(f"{where}: the category is `{label}`, but others are numbers; use either names or numbers.")
    if classes is not None:
        return dict(enumerate(sources.read_classes(classes)))
    gathered.report_file(NUMBERED, by_number[0][1], len({label for label, _, _ in by_number}))
    return {number: f"class_{number}" for number in sorted({label for label, _, _ in by_number})}
