"""Reads Supervisely's format: `<dataset>/img/a.jpg`, `<dataset>/ann/a.jpg.json`, and `meta.json` with the classes.

The datasets of a project are its splits if they are named like splits. Shapes other than rectangles are replaced by the
boxes around them; points are skipped.
"""

import base64
import binascii
import io
import zlib
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from efficientdet.data.parsing import fields, shapes
from efficientdet.data.reading import collection
from efficientdet.errors import UserError
from efficientdet.media import images

_OUTLINES = ("polygon", "line", "polyline")
_MAX_BITMAP_BYTES = 2**26


def is_document(document: Any) -> bool:
    """Checks whether a JSON document is the annotation of an image in this format."""
    return (
        isinstance(document, dict)
        and isinstance(document.get("objects"), list)
        and isinstance(document.get("size"), dict)
        and {"height", "width"} <= document["size"].keys()
    )


def read(gathered: collection.Collection) -> None:
    """Reads one JSON file per image; the classes are those of meta.json in order, then others that occur."""
    names: dict[str, None] = {}
    for path in gathered.gallery.files(".json"):
        document = None
        with gathered.attempt(path, lost=0):
            document = fields.load_json(path)
        if is_document(document):
            gathered.mark(path)
            with gathered.attempt(path):
                _add_file(gathered, path, document)
        elif path.name == "meta.json" and isinstance(document, dict) and "classes" in document:
            gathered.mark(path)
            entries = fields.mappings(document["classes"], f"`{path}`", "classes")
            names |= {
                fields.text(entry.get("title"), f"`{path}`: classes[{index}]", "title"): None
                for index, entry in enumerate(entries)
            }
    names |= dict.fromkeys(gathered.class_names())
    gathered.table = dict(enumerate(names, start=1))


def _add_file(gathered: collection.Collection, path: Path, document: dict[str, Any]) -> None:
    """Adds the image of a JSON file, and its boxes."""
    where = f"`{path}`"
    height, width = (fields.number(document["size"][side], where, f"size.{side}") for side in ("height", "width"))
    name = path.name[: -len(".json")]
    listed = gathered.gallery
    folder = path.parent.parent / "img"
    beside = listed.key(folder / name)
    key = beside if beside in listed.images else None
    if key is None and not name.lower().endswith(images.SUFFIXES):  # early exports: ann/a.json
        key = listed.find_stem(name, where, listed.split_of(path), folder)
    image = gathered.add_image(
        key or name, file=path, where=where, size=fields.image_size(height, width, where), key=key
    )
    for index, entry in enumerate(fields.mappings(document["objects"], where, "objects")):
        with gathered.attempt(path):
            _add_object(gathered, image, entry, f"{where}: objects[{index}]")


def _add_object(
    gathered: collection.Collection, image: collection.Annotated, entry: dict[str, Any], where: str
) -> None:
    """Adds the box of one object."""
    kind = entry.get("geometryType") or ("bitmap" if entry.get("bitmap") else "polygon")
    if kind in ("point", "graph", "cuboid"):
        gathered.report(shapes.WITHOUT_AREA, image, detail=str(kind))
        return
    name = fields.text(entry.get("classTitle"), where, "classTitle")
    if kind == "bitmap":
        gathered.add_outline(
            image, _bitmap_box(fields.mapping(entry.get("bitmap"), where, "bitmap"), where), name, where
        )
        return
    points = fields.mapping(entry.get("points"), where, "points")
    box = shapes.around(fields.points(points.get("exterior"), where, "points.exterior"))
    if kind == "rectangle":
        gathered.add_box(image, box, name, where)
    elif kind in _OUTLINES:
        gathered.add_outline(image, box, name, where)
    else:
        raise UserError(f"{where}: `geometryType` is {str(kind)[:60]!r}; expected rectangle, polygon or bitmap.")


def _bitmap_box(bitmap: dict[str, Any], where: str) -> list[float]:
    """Returns the box of a mask: its origin, and the size of the PNG that holds it (zlib in base64)."""
    x, y = fields.numbers(bitmap.get("origin"), 2, where, "bitmap.origin")
    try:
        packed = base64.b64decode(fields.text(bitmap.get("data"), where, "bitmap.data"), validate=True)
        content = zlib.decompressobj().decompress(packed, _MAX_BITMAP_BYTES)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as mask:
            width, height = mask.size
    except (binascii.Error, zlib.error, UnidentifiedImageError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: `bitmap.data` cannot be decoded: {error}.") from error
    return [y, x, y + height, x + width]
