"""Reads Open Images' annotation format: one CSV file of boxes per split, and one of class descriptions.

Coordinates are fractions of the image. Images are named by their ids, `<ImageID>.jpg` anywhere in the folder;
annotations of images that were not downloaded are skipped and counted. A box with `IsGroupOf` is a crowd. FiftyOne's
layout (`<split>/labels/detections.csv`, `<split>/metadata/classes.csv`, `<split>/data/`) is supported too.
"""

from pathlib import Path

from efficientdet.data.parsing import fields
from efficientdet.data.reading import collection, lookup
from efficientdet.errors import UserError

CODES = "classes named by their codes, since there is no class-descriptions file"

_CORNERS = ("ymin", "xmin", "ymax", "xmax")
_NEEDED = ("imageid", "labelname", *_CORNERS)
_LARGEST = 1.1
_DESCRIPTIONS = "class"


def is_header(cells: list[str]) -> bool:
    """Checks whether the first row of a CSV file is the header of a file of boxes in this format."""
    return set(_NEEDED) <= {cell.lower() for cell in cells}


def read(gathered: collection.Collection) -> None:
    """Reads every CSV file of boxes in the folder, and `class-descriptions*.csv`."""
    boxes: list[Path] = []
    names: dict[str, str] = {}
    for path in gathered.gallery.files(".csv"):
        _, header = next(fields.stream_rows(path), (1, []))
        if is_header(header):
            gathered.mark(path)
            boxes.append(path)
        elif len(header) == 2 and _DESCRIPTIONS in path.name.lower():
            gathered.mark(path)
            _add_names(names, path)
    for path in boxes:
        _add_boxes(gathered, path, names)
    gathered.is_normalized = True


def _add_names(names: dict[str, str], path: Path) -> None:
    """Reads the code and name of each class."""
    for line, row in fields.stream_rows(path):
        code, name = row if len(row) == 2 else ("", "")
        if (code, name) == ("LabelName", "DisplayName"):
            continue
        if not code or not name:
            raise UserError(f"`{path}`, line {line}: {','.join(row)[:60]!r}; expected a code and a name.")
        if names.setdefault(code, name) != name:
            raise UserError(
                f"`{path}`, line {line}: `{code}` is called `{name}`, but an earlier line calls it `{names[code]}`."
            )


def _add_boxes(gathered: collection.Collection, path: Path, names: dict[str, str]) -> None:
    """Adds the boxes of one CSV file, row by row: Open Images' training file has 14 million rows."""
    rows = fields.stream_rows(path)
    columns = {name.lower(): place for place, name in enumerate(next(rows)[1])}
    split = gathered.gallery.split_of(path)
    keys: dict[str, str | None] = {}
    codes: set[str] = set()
    num_elsewhere = 0
    for line, row in rows:
        with gathered.attempt(path):
            where = f"`{path}`, line {line}"
            if len(row) != len(columns):
                raise UserError(f"{where}: {len(row)} cells, but the first line has {len(columns)}.")
            image_id = row[columns["imageid"]]
            if image_id not in keys:
                stem = Path(image_id).stem if lookup.is_image(image_id) else image_id
                keys[image_id] = gathered.gallery.find_stem(stem, where, split)
            key = keys[image_id]
            if key is None:
                num_elsewhere += 1
                continue
            box = [_fraction(row[columns[side]], where, side) for side in _CORNERS]
            code = row[columns["labelname"]]
            if not code:
                raise UserError(f"{where}: `LabelName` is missing.")
            if names and code not in names:
                raise UserError(f"{where}: `LabelName` is `{code}`, which the class descriptions do not list.")
            if not names and code not in codes:
                codes.add(code)
                gathered.report_file(CODES, path)
            image = gathered.add_image(key, file=path, where=where, split=split, key=key)
            is_group = "isgroupof" in columns and _flag(row[columns["isgroupof"]], where)
            gathered.add_box(image, box, names.get(code, code), where, is_crowd=is_group)
    if num_elsewhere:
        gathered.report_file(collection.NOT_HERE, path, num_elsewhere)


def _fraction(text: str, where: str, side: str) -> float:
    """Reads a coordinate."""
    value = fields.parse_number(text, where, side)
    if abs(value) > _LARGEST:
        raise UserError(f"{where}: `{side}` is {text}; expected a fraction of the image, 0..1, not px.")
    return value


def _flag(text: str, where: str) -> bool:
    """Reads IsGroupOf; -1 is unknown."""
    values = {"1": True, "0": False, "-1": False, "": False, "true": True, "false": False}
    if text.lower() not in values:
        raise UserError(f"{where}: `IsGroupOf` is {text[:60]!r}; expected 1, 0 or -1.")
    return values[text.lower()]
