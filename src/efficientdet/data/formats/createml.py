"""Reads Apple's Create ML annotation format: a JSON list of images, one file per folder.

`coordinates` are the center of a box and its width and height, px. Roboflow's `_annotations.createml.json` and
RectLabel's export are the same; the image is in `image` or `imagefilename`, its boxes in `annotations` or `annotation`.
"""

from pathlib import Path
from typing import Any

from efficientdet.data.parsing import fields
from efficientdet.data.reading import collection
from efficientdet.errors import UserError

_NAMES = ("image", "imagefilename", "imageFilename")
_LISTS = ("annotations", "annotation")


def is_document(document: Any) -> bool:
    """Checks whether a JSON document is in this format."""
    return (
        isinstance(document, list)
        and bool(document)
        and all(isinstance(entry, dict) for entry in document)
        and any(isinstance(document[0].get(name), str) for name in _NAMES)
        and any(name in document[0] for name in _LISTS)
    )


def read(gathered: collection.Collection) -> None:
    """Reads one JSON file per image folder, or one for all."""
    for path, document in gathered.documents(is_document):
        for index, entry in enumerate(document):
            with gathered.attempt(path):
                _add_image(gathered, path, entry, f"`{path}`: [{index}]")


def _add_image(gathered: collection.Collection, path: Path, entry: dict[str, Any], where: str) -> None:
    """Adds an image and its boxes."""
    name = fields.text(_first(entry, _NAMES, where), where, "image")
    image = gathered.add_image(name, file=path, where=where, is_listing=True)
    field = next((name for name in _LISTS if name in entry), "annotations")
    for index, annotation in enumerate(fields.mappings(entry.get(field), where, field)):
        with gathered.attempt(path):
            _add_annotation(gathered, image, annotation, f"{where}.{field}[{index}]")


def _add_annotation(
    gathered: collection.Collection, image: collection.Annotated, annotation: dict[str, Any], where: str
) -> None:
    """Adds one box."""
    label = fields.text(annotation.get("label"), where, "label")
    box = fields.mapping(annotation.get("coordinates"), where, "coordinates")
    x, y, width, height = (
        fields.number(box.get(side), where, f"coordinates.{side}") for side in ("x", "y", "width", "height")
    )
    gathered.add_box(image, [y - height / 2, x - width / 2, y + height / 2, x + width / 2], label, where)


def _first(entry: dict[str, Any], names: tuple[str, ...], where: str) -> Any:
    """Returns the first of several fields that an entry has."""
    for name in names:
        if name in entry:
            return entry[name]
    raise UserError(f"{where}: `{names[0]}` is missing.")
