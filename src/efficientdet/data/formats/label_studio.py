"""Reads Label Studio's format: a JSON list of tasks ("JSON"), or of images with their regions ("JSON-MIN").

Coordinates are percent of the image. Rectangles are rotated about their top left corner by `rotation` degrees,
clockwise; shapes other than upright rectangles are replaced by the boxes around them. If a task has several
annotations, the one marked as ground truth is read, or else the most recently updated one; cancelled ones and a model's
predictions are skipped. All of this is reported.

Images are often named as Label Studio stores them: `/data/upload/1/8a5f01c2-a%20b.jpg`, `/data/local-files/?d=a.jpg`,
or a cloud URL. They are found with or without the eight digits that an upload prepends.
"""

import re
import urllib.parse
from pathlib import Path
from typing import Any

from efficientdet.data.parsing import fields, shapes
from efficientdet.data.reading import collection
from efficientdet.errors import UserError
from efficientdet.media import images

OTHER_ANNOTATORS = "additional annotations of the same image skipped"
PREDICTIONS = "model predictions skipped"
NOT_SUBMITTED = "images without a submitted annotation skipped"

_SHAPES = {"rectanglelabels": "rectangle", "polygonlabels": "polygon", "ellipselabels": "ellipse"}
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")


def is_document(document: Any) -> bool:
    """Checks whether a JSON document is in this format."""
    if not isinstance(document, list) or not document or not all(isinstance(entry, dict) for entry in document):
        return False
    return isinstance(document[0].get("data"), dict) or any(map(_is_minimal, document))


def read(gathered: collection.Collection) -> None:
    """Reads the exported JSON file, with images anywhere in the folder."""
    for path, document in gathered.documents(is_document):
        for index, task in enumerate(document):
            where = f"`{path}`: task {task.get('id', index)}"
            with gathered.attempt(path):
                if isinstance(task.get("data"), dict):
                    _add_task(gathered, path, task, where)
                else:
                    _add_minimal(gathered, path, task, where)
    gathered.is_normalized = True


def _is_minimal(entry: dict[str, Any]) -> bool:
    """Checks whether an entry is in JSON-MIN form."""
    return "annotation_id" in entry or any("original_width" in region for region in _regions(entry))


def _regions(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Lists the regions of a JSON-MIN entry, whatever their field is called."""
    lists = [value for value in entry.values() if isinstance(value, list)]
    return [region for value in lists for region in value if isinstance(region, dict)]


def _add_task(gathered: collection.Collection, path: Path, task: dict[str, Any], where: str) -> None:
    """Adds the image of a task and the boxes of its annotation."""
    name = _image_name(task["data"], where)
    key = _find(gathered, name, path, where)
    entries = fields.mappings(task.get("annotations", task.get("completions", [])), where, "annotations")
    submitted = [entry for entry in entries if entry.get("was_cancelled") is not True]
    if predictions := fields.mappings(task.get("predictions") or [], where, "predictions"):
        gathered.report_file(PREDICTIONS, path, len(predictions))
    if not submitted:
        gathered.report_file(NOT_SUBMITTED, path, detail=f"{name} (task {task.get('id')})")
        return
    chosen = max(submitted, key=lambda entry: (entry.get("ground_truth") is True, str(entry.get("updated_at") or "")))
    results = fields.mappings(chosen.get("result"), where, "result")
    regions = []
    labels = {
        str(one.get("id")): fields.mapping(one.get("value"), where, "value").get("labels")
        for one in results
        if one.get("type") == "labels"
    }
    for result in (one for one in results if one.get("type") != "labels"):
        value = fields.mapping(result.get("value", {}), where, "value")  # a relation between regions has none
        type_name = str(result.get("type"))
        names = value.get(type_name) if type_name in _SHAPES else labels.get(str(result.get("id")))
        kind = _SHAPES.get(type_name, type_name)
        sides = {side: result.get(side) for side in ("original_height", "original_width", "image_rotation")}
        regions.append((kind, names, value | sides))
    image = _add_regions(gathered, path, name, key, regions, where)
    if len(entries) > 1:
        gathered.report(OTHER_ANNOTATORS, image, len(entries) - 1, f"task {task.get('id')}")


def _add_minimal(gathered: collection.Collection, path: Path, entry: dict[str, Any], where: str) -> None:
    """Adds the image of a JSON-MIN entry and its boxes."""
    name = _image_name({name: value for name, value in entry.items() if isinstance(value, str)}, where)
    regions = []
    for value in _regions(entry):
        kinds = [kind for kind in _SHAPES if kind in value]
        kind = _SHAPES[kinds[0]] if kinds else next((name for name in value if name.endswith("labels")), "region")
        regions.append((kind, value[kinds[0]] if kinds else None, value))
    _add_regions(gathered, path, name, _find(gathered, name, path, where), regions, where)


def _add_regions(
    gathered: collection.Collection,
    path: Path,
    name: str,
    key: str | None,
    regions: list[tuple[str, Any, dict[str, Any]]],
    where: str,
) -> collection.Annotated:
    """Adds an image and its regions: (shape, labels, values with the size of the image)."""
    size = None
    for _, _, value in regions:
        sides = (value.get("original_height"), value.get("original_width"))
        if None not in sides:
            height, width = (fields.number(side, where, "original_height") for side in sides)
            size = fields.image_size(height, width, where)
    image = gathered.add_image(name, file=path, where=where, size=size, key=key, is_listing=True)
    for index, (kind, names, value) in enumerate(regions):
        if kind not in _SHAPES.values():
            gathered.report(shapes.WITHOUT_AREA, image, detail=kind)
            continue
        with gathered.attempt(path):
            place = f"{where}: region {index}"
            _add_region(gathered, image, kind, value, _label(names, value, place), place)
    return image


def _label(names: Any, value: dict[str, Any], where: str) -> str:
    """Reads the class of a region."""
    if not isinstance(names, list) or len(names) != 1:
        raise UserError(f"{where}: the labels are {str(names)[:60]}; expected exactly one.")
    label = fields.text(names[0], where, "labels")
    if value.get("image_rotation"):
        raise UserError(
            f"{where}: drawn on an image rotated by {value['image_rotation']} degrees in Label Studio, which "
            "is not supported; rotate the image file instead."
        )
    return label


def _add_region(
    gathered: collection.Collection,
    image: collection.Annotated,
    kind: str,
    value: dict[str, Any],
    label: str,
    where: str,
) -> None:
    """Adds the box of one region."""
    degrees = fields.number(value.get("rotation", 0), where, "rotation")
    if degrees % 360 and image.size is None:
        raise UserError(f"{where}: rotated, but `original_width` and `original_height` are missing.")
    height, width = image.size or (1, 1)

    def numbers(*names: str) -> list[float]:
        sides = {"y": height, "height": height, "radiusY": height}
        return [fields.number(value.get(name), where, name) / 100 * sides.get(name, width) for name in names]

    if kind == "rectangle":
        x, y, box_width, box_height = numbers("x", "y", "width", "height")
        box = shapes.around_rotated((x, y), box_width, box_height, degrees, pivot=(x, y))
    elif kind == "ellipse":
        x, y, radius_x, radius_y = numbers("x", "y", "radiusX", "radiusY")
        box = shapes.around_ellipse((x, y), (radius_x, radius_y), degrees)
    else:
        points = fields.points(value.get("points"), where, "points")
        box = shapes.around([(x / 100 * width, y / 100 * height) for x, y in points])
    fractions = [side / extent for side, extent in zip(box, (height, width, height, width), strict=True)]
    if kind == "rectangle" and degrees % 360 == 0:
        gathered.add_box(image, fractions, label, where)
    else:
        rotated = shapes.ROTATED if kind == "rectangle" else shapes.OUTLINES
        gathered.add_outline(image, fractions, label, where, kind=rotated)


def _image_name(data: dict[str, Any], where: str) -> str:
    """Finds the field of a task that names its image: `image`, or else the only one with an image suffix."""
    if isinstance(data.get("image"), str):
        return fields.text(data["image"], where, "image")
    names = [value for value in data.values() if isinstance(value, str) and _looks_like_image(value)]
    if len(names) != 1:
        raise UserError(f"{where}: {len(names)} fields name an image ({', '.join(data)}); expected one.")
    return names[0]


def _looks_like_image(value: str) -> bool:
    return value.partition("?")[0].lower().endswith(images.SUFFIXES) or "?d=" in value


def _find(gathered: collection.Collection, name: str, path: Path, where: str) -> str | None:
    """Finds the image that a task names."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(name).query) if "?d=" in name else {}
    wanted = query.get("d", [name])[0]
    if wanted.startswith("data:"):
        raise UserError(f"{where}: contains the image itself; expected a file name. Export the images too.")
    listed = gathered.gallery
    split = listed.split_of(path)
    if key := listed.at(wanted, path, where) or listed.search(wanted, where, split):
        return key
    last = urllib.parse.unquote(wanted.replace("\\", "/")).rpartition("/")[2]
    original = _UPLOAD.sub("", last, count=1)
    if original != last and (key := listed.search(original, where, split)):
        return key
    # Uploads also replace spaces and drop special characters.
    same = [key for key in listed.images if _stored(key.rpartition("/")[2]) == _stored(original)]
    return listed.only(same, where, name, split)


def _stored(name: str) -> str:
    """Returns a file name as Label Studio stores it after an upload."""
    return re.sub(r"[^-\w.]", "", name.replace(" ", "_"))
