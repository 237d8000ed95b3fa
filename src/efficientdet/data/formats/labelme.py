"""Reads labelme's annotation format: one JSON file per image, usually next to it.

`shapes` are rectangles (two corners in any order), polygons, circles (center and a point on the edge), masks (two
corners) and others; shapes other than rectangles are replaced by the boxes around them. The image is `imagePath`,
relative to the JSON file; if it is missing there, the image next to the JSON file with the same name, as after
renaming. `imageData`, a copy of the image, is ignored. AnyLabeling, X-AnyLabeling and others write the same format.
"""

import math
from pathlib import Path
from typing import Any

from efficientdet.data.parsing import fields, shapes
from efficientdet.data.reading import collection
from efficientdet.errors import UserError

_BOXES = ("rectangle", "mask")
_OUTLINES = ("polygon", "linestrip", "rotation", "oriented_rectangle", "quadrilateral")
_NOT_BOXES = ("point", "points", "line")


def is_document(document: Any) -> bool:
    """Checks whether a JSON document is in this format."""
    return isinstance(document, dict) and "shapes" in document and ("imagePath" in document or "imageData" in document)


def read(gathered: collection.Collection) -> None:
    """Reads one JSON file per image."""
    for path, document in gathered.documents(is_document):
        with gathered.attempt(path):
            image = _add_image(gathered, path, document)
            for index, shape in enumerate(fields.mappings(document["shapes"], f"`{path}`", "shapes")):
                with gathered.attempt(path):
                    _add_shape(gathered, image, shape, f"`{path}`: shapes[{index}]")


def _add_image(gathered: collection.Collection, path: Path, document: dict[str, Any]) -> collection.Annotated:
    """Adds the image of a JSON file."""
    where = f"`{path}`"
    height, width = (
        None if document.get(field) is None else fields.number(document[field], where, field)
        for field in ("imageHeight", "imageWidth")
    )
    name = fields.text(document.get("imagePath") or f"{path.stem}.jpg", where, "imagePath")
    key = gathered.gallery.at(name, path, where)
    if key is None:
        key = gathered.gallery.find_stem(path.stem, where, folder=path.parent)
    if key is None:
        split = gathered.gallery.split_of(path)
        key = gathered.gallery.search(name, where, split) or gathered.gallery.find_stem(path.stem, where, split)
    return gathered.add_image(name, file=path, where=where, size=fields.image_size(height, width, where), key=key)


def _add_shape(gathered: collection.Collection, image: collection.Annotated, shape: dict[str, Any], where: str) -> None:
    """Adds the box of one shape."""
    kind = shape.get("shape_type") or "polygon"  # before version 3.5, labelme wrote only polygons
    if kind in _NOT_BOXES:
        gathered.report(shapes.WITHOUT_AREA, image, detail=str(kind))
        return
    name = fields.text(shape.get("label"), where, "label")
    points = fields.points(shape.get("points"), where, "points")
    if kind in (*_BOXES, "circle") and len(points) not in ((2, 4) if kind == "rectangle" else (2,)):
        raise UserError(f"{where}: a {kind} with {len(points)} points; expected 2.")
    if kind in _BOXES:
        gathered.add_box(image, shapes.around(points), name, where)
    elif kind == "circle":
        radius = math.dist(*points)
        gathered.add_outline(image, shapes.around_ellipse(points[0], (radius, radius)), name, where)
    elif kind in _OUTLINES:
        rotated = shapes.ROTATED if kind in ("rotation", "oriented_rectangle") else shapes.OUTLINES
        gathered.add_outline(image, shapes.around(points), name, where, kind=rotated)
    else:
        known = ", ".join((*_BOXES, "circle", *_OUTLINES, *_NOT_BOXES))
        raise UserError(f"{where}: `shape_type` is {str(kind)[:60]!r}; expected one of {known}.")
