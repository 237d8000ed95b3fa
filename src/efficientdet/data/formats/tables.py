"""Reads CSV files with one box per row.

Two kinds are supported. With a header, with columns in any order: those of the TF Object Detection API and of Roboflow
(`filename,width,height,class,xmin,ymin,xmax,ymax`), and the same under other common names. Without a header, as in
keras-retinanet: `path,x1,y1,x2,y2,class`. A row whose box and class are empty, or `nan` as pandas writes it, is an
image without boxes. A column `split` gives the split of each image.

A file with two columns, a name and a number, is the class table. Coordinates are px. If none exceeds 1, they are
fractions of the image, which is reported; all files must agree.
"""

import math
from pathlib import Path

from efficientdet.data import sources
from efficientdet.data.parsing import fields
from efficientdet.data.reading import collection
from efficientdet.errors import UserError

FRACTIONS = "files whose boxes are read as fractions of the image, since no coordinate exceeds 1"
UNUSED_COLUMNS = "files with unused columns"
SUFFIXES = (".csv", ".tsv")

_COLUMNS = {
    "file": (
        "filename",
        "file_name",
        "image",
        "image_name",
        "image_path",
        "path",
        "filepath",
        "img",
        "file",
        "image_id",
    ),
    "class": ("class", "label", "class_name", "label_name", "name", "category"),
    "xmin": ("xmin", "x_min", "x1", "left"),
    "ymin": ("ymin", "y_min", "y1", "top"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "bbox_x": ("bbox_x",),
    "bbox_y": ("bbox_y",),
    "bbox_width": ("bbox_width",),
    "bbox_height": ("bbox_height",),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "split": ("split", "set", "subset"),
}
_CORNERS = ("ymin", "xmin", "ymax", "xmax")
_EXTENTS = ("bbox_y", "bbox_x", "bbox_height", "bbox_width")  # makesense.ai
_PLAIN = ("file", "xmin", "ymin", "xmax", "ymax", "class")
_NAMES = {"file": "path", "xmin": "x1", "ymin": "y1", "xmax": "x2", "ymax": "y2", "class": "class"}

_EMPTY = frozenset({"", "nan", "null", "none", "na", "n/a", "<na>"})

_Rows = list[tuple[int, list[str]]]


def is_boxes(rows: _Rows) -> bool:
    """Checks whether the rows of a CSV file are boxes, with or without a header."""
    return bool(rows) and (_header(rows[0][1]) is not None or _is_plain(rows[0][1]))


def is_classes(rows: _Rows) -> bool:
    """Checks whether the rows of a CSV file are class names and their numbers."""
    entries = _class_rows(rows)
    return bool(entries) and all(len(row) == 2 and row[1].isdecimal() and row[0] for _, row in entries)


def read(gathered: collection.Collection) -> None:
    """Reads every CSV file of boxes in the folder, and a class table if there is one."""
    are_fractions: dict[Path, bool] = {}
    table: dict[int, str] = {}
    table_file = None
    for path in gathered.gallery.files(*SUFFIXES):
        rows = fields.load_rows(path)
        if is_classes(rows):
            gathered.mark(path)
            table_file = path
            _add_classes(table, path, _class_rows(rows))
        elif is_boxes(rows):
            gathered.mark(path)
            corners = _add_boxes(gathered, path, rows)
            if corners:
                are_fractions[path] = _are_fractions(corners)
    is_normalized = any(are_fractions.values())
    for path, is_so in are_fractions.items():
        if is_normalized and not is_so:
            other = next(path for path in are_fractions if are_fractions[path])
            raise UserError(
                f"`{path}` has boxes in px, but `{other}` has fractions of the image; use the same unit in all files."
            )
        if is_normalized:
            gathered.report_file(FRACTIONS, path)
    gathered.table, gathered.table_file, gathered.is_normalized = table or None, table_file, is_normalized


def _header(cells: list[str]) -> dict[str, int] | None:
    """Finds the columns of a header; returns None if a required one is missing."""
    names = {cell.strip().lower().replace(" ", "_"): place for place, cell in reversed(list(enumerate(cells)))}
    found = {
        column: next(names[name] for name in usual if name in names)
        for column, usual in _COLUMNS.items()
        if any(name in names for name in usual)
    }
    is_complete = {"file", "class"} <= found.keys() and any(set(box) <= found.keys() for box in (_CORNERS, _EXTENTS))
    return found if is_complete else None


def _is_plain(cells: list[str]) -> bool:
    """Checks whether a row is in keras-retinanet's format."""
    if len(cells) != len(_PLAIN) or not cells[0]:
        return False
    return all(map(fields.is_number, cells[1:5])) or not any(cells[1:])


def _class_rows(rows: _Rows) -> _Rows:
    """Drops the header of a class table, such as `class,id`."""
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    return rows[1:] if len(header) == 2 and header[1] in ("id", "class_id", "label_id", "index", "number") else rows


def _add_classes(table: dict[int, str], path: Path, rows: _Rows) -> None:
    """Reads a class table: one name and its number per row."""
    for line, (name, number) in rows:
        known = table.setdefault(int(number), name)
        if known != name or list(table.values()).count(name) > 1:
            raise UserError(f"`{path}`, line {line}: `{name},{number}` repeats a name or number; both must be unique.")


def _add_boxes(gathered: collection.Collection, path: Path, rows: _Rows) -> list[float]:
    """Adds the boxes of one CSV file and returns their coordinates."""
    corners: list[float] = []
    columns = _header(rows[0][1])
    num_cells = len(rows[0][1])
    if columns is not None:
        if "split" in columns and not any(
            _is_split(row[columns["split"]]) for _, row in rows[1:] if len(row) == num_cells
        ):
            del columns["split"]  # the column is about something else
        unused = [cell for place, cell in enumerate(rows[0][1]) if cell and place not in columns.values()]
        if unused:
            gathered.report_file(UNUSED_COLUMNS, path, detail=", ".join(unused))
        names, rows = {column: rows[0][1][place] for column, place in columns.items()}, rows[1:]
    else:
        columns, names = {column: place for place, column in enumerate(_PLAIN)}, _NAMES
    sides = _CORNERS if set(_CORNERS) <= columns.keys() else _EXTENTS
    for line, row in rows:
        with gathered.attempt(path):
            where = f"`{path}`, line {line}"
            if len(row) != num_cells:
                raise UserError(f"{where}: {len(row)} cells, but the first line has {num_cells}.")
            cells = {column: row[place] for column, place in columns.items()}
            corners += _add_row(gathered, path, cells, names, sides, where)
    return corners


def _add_row(
    gathered: collection.Collection,
    path: Path,
    cells: dict[str, str],
    names: dict[str, str],
    sides: tuple[str, ...],
    where: str,
) -> list[float]:
    """Adds the image and the box of a row, and returns its corners; empty for an image without boxes."""
    height, width = (
        fields.parse_number(cells[side], where, names[side]) if cells.get(side) else None
        for side in ("height", "width")
    )
    if not cells["file"]:
        raise UserError(f"{where}: `{names['file']}` is missing.")
    size = fields.image_size(height, width, where)
    image = gathered.add_image(cells["file"], file=path, where=where, size=size, split=_split(cells, names, where))
    if all(cells[column].lower() in _EMPTY for column in (*sides, "class")):
        return []
    box = [fields.parse_number(cells[side], where, names[side]) for side in sides]
    if sides == _EXTENTS:
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    if cells["class"] in ("", "nan", "NaN"):
        raise UserError(f"{where}: `{names['class']}` is missing.")
    gathered.add_box(image, box, cells["class"], where)
    return box


def _split(cells: dict[str, str], names: dict[str, str], where: str) -> str | None:
    """Reads the split of a row; returns None if it is empty."""
    text = cells.get("split", "")
    if text.lower() in _EMPTY:
        return None
    if not _is_split(text):
        raise UserError(f"{where}: `{names['split']}` is {text[:60]!r}; expected {', '.join(sources.SPLITS)}.")
    return sources.normalize_split(text)


def _is_split(text: str) -> bool:
    """Checks whether a text is the name of a split."""
    return sources.normalize_split(text) in sources.SPLITS


def _are_fractions(corners: list[float]) -> bool:
    """Checks whether coordinates are fractions: none exceeds 1, and some are not whole."""
    finite = [abs(value) for value in corners if math.isfinite(value)]
    return max(finite, default=2.0) <= 1 and any(value % 1 for value in finite)
