"""Reads the VGG Image Annotator's format, versions 1 and 2: a project or its annotations as JSON or CSV.

The class of a region is one of its attributes: the only one in the dataset, or else `class`, `label`, `name`, `type`,
`category` or `object`. If there are no attributes, all regions get the class `object`, which is reported. Shapes other
than rectangles are replaced by the boxes around them.
"""

import math
from pathlib import Path
from typing import Any

from efficientdet.data.parsing import fields, shapes
from efficientdet.data.reading import collection
from efficientdet.errors import UserError

NO_ATTRIBUTE = "regions without attributes read as the class `object`"

_ATTRIBUTES = ("class", "label", "name", "type", "category", "object")
_COLUMNS = ("region_shape_attributes", "region_attributes")
_NAME_COLUMNS = ("filename", "#filename")

_Region = tuple[str, Path, str, dict[str, Any], dict[str, Any]]
"""Image, annotation file, location, shape, attributes; if the shape is empty, the image has no region."""


def is_document(document: Any) -> bool:
    """Checks whether a JSON document is in this format."""
    if not isinstance(document, dict) or not document:
        return False
    entries = document.get("_via_img_metadata", document)
    if "_via_img_metadata" in document:
        return isinstance(entries, dict)
    return all(isinstance(entry, dict) and "filename" in entry and "regions" in entry for entry in entries.values())


def is_header(cells: list[str]) -> bool:
    """Checks whether the first row of a CSV file is the header of this format."""
    return set(_COLUMNS) <= set(cells) and any(name in cells for name in _NAME_COLUMNS)


def read(gathered: collection.Collection) -> None:
    """Reads JSON and CSV files, with images anywhere in the folder."""
    regions: list[_Region] = []
    for path, document in gathered.documents(is_document):
        with gathered.attempt(path):
            regions += _read_json(path, document)
    for path in gathered.gallery.files(".csv"):
        rows = fields.load_rows(path)
        if rows and is_header(rows[0][1]):
            gathered.mark(path)
            with gathered.attempt(path):
                regions += _read_csv(path, rows)
    attribute = _class_attribute([region for region in regions if region[3]])
    for name, path, where, shape, attributes in regions:
        with gathered.attempt(path, bool(shape)):
            image = gathered.add_image(name, file=path, where=where)
            if shape:
                _add_region(gathered, image, shape, attributes, attribute, where)


def _read_json(path: Path, document: dict[str, Any]) -> list[_Region]:
    """Reads the regions of a JSON file."""
    found: list[_Region] = []
    for key, entry in document.get("_via_img_metadata", document).items():
        place = f"`{path}`: {key[:60]}"
        name = fields.text(fields.mapping(entry, place, "image").get("filename"), place, "filename")
        regions = entry.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # version 1
        found.append((name, path, place, {}, {}))
        for index, region in enumerate(fields.mappings(regions, place, "regions")):
            where = f"{place}: regions[{index}]"
            shape = fields.mapping(region.get("shape_attributes"), where, "shape_attributes")
            attributes = fields.mapping(region.get("region_attributes") or {}, where, "region_attributes")
            found.append((name, path, where, shape or {"name": None}, attributes))
    return found


def _read_csv(path: Path, rows: list[tuple[int, list[str]]]) -> list[_Region]:
    """Reads the regions of a CSV file; an image without regions has an empty one."""
    header = rows[0][1]
    name_place = next(header.index(name) for name in _NAME_COLUMNS if name in header)
    found: list[_Region] = []
    for line, row in rows[1:]:
        where = f"`{path}`, line {line}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} cells, but the first line has {len(header)}.")
        shape, attributes = (
            fields.mapping(fields.parse_json(row[header.index(name)] or "{}", f"{where}: `{name}`"), where, name)
            for name in _COLUMNS
        )
        found.append((fields.text(row[name_place], where, "filename"), path, where, shape, attributes))
    return found


def _class_attribute(regions: list[_Region]) -> str | None:
    """Finds the attribute that is the class; returns None if no region has attributes."""
    names = list(dict.fromkeys(name for *_, attributes in regions for name in attributes))
    if len(names) <= 1:
        return names[0] if names else None
    for wanted in _ATTRIBUTES:
        for name in names:
            if name.strip().lower() == wanted:
                return name
    raise UserError(
        f"`{regions[0][1]}`: regions have the attributes {', '.join(names)}, and it is unclear which one is the class. "
        "Rename it to `class` in VIA."
    )


def _add_region(
    gathered: collection.Collection,
    image: collection.Annotated,
    shape: dict[str, Any],
    attributes: dict[str, Any],
    attribute: str | None,
    where: str,
) -> None:
    """Adds the box of one region."""
    kind = shape.get("name")
    if kind == "point":
        gathered.report(shapes.WITHOUT_AREA, image, detail="point")
        return
    if attribute is None:
        gathered.report(NO_ATTRIBUTE, image)
        name = "object"
    else:
        value = attributes.get(attribute)
        if isinstance(value, dict):  # checkboxes
            value = next((key for key in value if value[key]), None) if sum(map(bool, value.values())) == 1 else None
        name = fields.text(value, where, f"region_attributes.{attribute}")

    def numbers(*names: str) -> list[float]:
        return [fields.number(shape.get(name), where, name) for name in names]

    if kind == "rect":
        x, y, width, height = numbers("x", "y", "width", "height")
        gathered.add_box(image, [y, x, y + height, x + width], name, where)
    elif kind == "circle":
        x, y, radius = numbers("cx", "cy", "r")
        gathered.add_outline(image, shapes.around_ellipse((x, y), (radius, radius)), name, where)
    elif kind == "ellipse":
        x, y, radius_x, radius_y = numbers("cx", "cy", "rx", "ry")
        radians = fields.number(shape.get("theta", 0), where, "theta")
        box = shapes.around_ellipse((x, y), (radius_x, radius_y), math.degrees(radians))
        gathered.add_outline(image, box, name, where)
    elif kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise UserError(f"{where}: `all_points_x` and `all_points_y` must be lists of equal length.")
        gathered.add_outline(
            image,
            shapes.around(fields.points([list(p) for p in zip(xs, ys, strict=True)], where, "all_points")),
            name,
            where,
        )
    else:
        known = "rect, circle, ellipse, polygon, polyline, point"
        raise UserError(f"{where}: the shape is {str(kind)[:60]!r}; expected one of {known}.")
