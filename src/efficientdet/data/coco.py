"""COCO's annotation format: one JSON file a split.

Boxes are (x, y, width, height) px. Category ids stay as they are, holes included; a label is a position in the list
sorted by id. Crowds are kept and marked. All splits share one class table: the union of theirs. A file without
`annotations` lists pictures only (image_info_*.json, which COCO gives for its test pictures).
"""

import json
from pathlib import Path
from typing import Any

from efficientdet.data import sources
from efficientdet.errors import UserError
from efficientdet.structures import Category

_ROBOFLOW = "_annotations.coco.json"
_SINGLE = ("instances.json", "annotations.json", _ROBOFLOW)
_PICTURES_ONLY = "files without annotations (pictures to detect in, nothing to count)"
_NEED_ANNOTATIONS = ("train", "val")
_HINTS = {
    "categories": " (captions carry no boxes; use instances_*.json)",
    "annotations": " (a list of pictures to test on needs another split name than train and val)",
}
_OTHER_TASKS = ("captions", "person_keypoints", "stuff", "image_info", "panoptic")

CocoSplit = tuple[str, Path, Path]
"""Name of a split, its annotation file, its folder of pictures."""

# An annotation: box yxyx px, label, is_crowd, area px squared (-1 unknown).
_Row = tuple[list[float], int, bool, float]


def is_root(folder: Path) -> bool:
    """Says whether the folder itself looks like a dataset in this format."""
    return bool(_find(folder))


def read(source: Path, *, splits: tuple[str, ...] = (), files: tuple[CocoSplit, ...] = ()) -> sources.Source:
    """Reads a dataset.

    Known layouts: `annotations/instances_<split>.json` with the pictures in `<split>/`, `images/<split>/` or `images/`;
    `<split>/_annotations.coco.json` beside the pictures; one `instances.json` with `images/`, which becomes `train`.

    Args:
        source: the folder.
        splits: take only these; all if empty.
        files: where each split is, for any other layout; relative paths start at `source`.
    """
    if files:
        found = [(name, source / annotations, source / images) for name, annotations, images in files]
    else:
        root = sources.find_root(source, is_root)
        if root is None:
            raise UserError(
                f"`source` {source} holds no COCO annotations; expected annotations/instances_<split>.json, "
                "instances.json or <split>/_annotations.coco.json. `--files` names files anywhere else."
            )
        found = _find(root)
    wanted = sources.take_splits([name for name, _, _ in found], splits, source)
    found = [split for split in found if split[0] in wanted]
    for index, (name, _, _) in enumerate(found):
        if name in [other for other, _, _ in found[:index]]:
            raise UserError(f"`{source}` has the split `{name}` twice; name the files of each split.")
    documents = {name: _load(annotations, name) for name, annotations, _ in found}
    categories = _merge_categories({path: documents[name] for name, path, _ in found})
    labels = {category.id: label for label, category in enumerate(categories)}
    unannotated = frozenset(name for name, document in documents.items() if "annotations" not in document)
    problems = [
        sources.Problem(kind=_PICTURES_ONLY, split=name, file_name=path.name)
        for name, path, _ in found
        if name in unannotated
    ]
    examples = {
        name: _read_split(documents.pop(name), name, path, images, labels, problems) for name, path, images in found
    }
    return sources.Source(categories=categories, splits=examples, problems=problems, unannotated=unannotated)


def _find(root: Path) -> list[CocoSplit]:
    """Finds the splits of a known layout."""
    nested = sorted(root.glob("*/" + _ROBOFLOW))
    if nested:
        return [(sources.normalize_split(path.parent.name), path, path.parent) for path in nested]
    files = sorted((root / "annotations").glob("*.json"))
    files = [p for p in files if p.name.startswith("instances_")] or [
        p for p in files if not p.name.startswith(_OTHER_TASKS)
    ]
    if files:
        return [_annotated(root, path) for path in files]
    singles = [root / name for name in _SINGLE if (root / name).is_file()]
    return [("train", path, _first_folder(root / "images", root)) for path in singles[:1]]


def _annotated(root: Path, path: Path) -> CocoSplit:
    """Pairs annotations/instances_<split>.json with its folder of pictures."""
    name = path.stem.removeprefix("instances_")
    return (
        sources.normalize_split(name),
        path,
        _first_folder(root / name, root / "images" / name, root / "images", root),
    )


def _first_folder(*candidates: Path) -> Path:
    """Picks the first folder that exists, else the last one."""
    return next((folder for folder in candidates if folder.is_dir()), candidates[-1])


def _load(path: Path, split: str) -> dict[str, Any]:
    """Reads a JSON file and checks that it has COCO's three lists; pictures to test on need no annotations."""
    try:
        document = json.loads(sources.read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"`{path}` is no valid JSON, it may be cut short: {error}.") from error
    for field in ("images", "annotations", "categories"):
        values = document.get(field) if isinstance(document, dict) else None
        if field == "annotations" and field not in document and split not in _NEED_ANNOTATIONS:
            continue
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            hint = _HINTS.get(field, "")
            raise UserError(f"`{path}` has no list of objects `{field}`; expected COCO's instances format{hint}.")
    return document


def _merge_categories(documents: dict[Path, dict[str, Any]]) -> tuple[Category, ...]:
    """Unites the class tables of all splits."""
    names: dict[int, tuple[str, Path]] = {}
    for path, document in documents.items():
        own: set[int] = set()
        for index, entry in enumerate(document["categories"]):
            where = f"categories[{index}]"
            number, name = _integer(entry, "id", path, where), str(_field(entry, "name", path, where)).strip()
            known, known_path = names.setdefault(number, (name, path))
            if known != name:
                raise UserError(f"`{path}` calls the class {number} `{name}`, but {known_path} calls it `{known}`.")
            if number in own:
                raise UserError(f"`{path}` lists the class {number} twice; each id must stand once.")
            own.add(number)
    return tuple(Category(id=number, name=names[number][0]) for number in sorted(names))


def _read_split(
    document: dict[str, Any],
    split: str,
    path: Path,
    folder: Path,
    labels: dict[int, int],
    problems: list[sources.Problem],
) -> list[sources.Example]:
    """Turns the JSON of one split into examples, in the order of their ids."""
    images = _read_images(document, path)
    annotations = _read_annotations(document, split, path, labels, set(images), problems)
    return [_to_example(images[number], annotations[number], number, path, folder) for number in sorted(images)]


def _read_images(document: dict[str, Any], path: Path) -> dict[int, dict[str, Any]]:
    """Keys the pictures by their ids."""
    images: dict[int, dict[str, Any]] = {}
    for index, image in enumerate(document["images"]):
        number = _integer(image, "id", path, f"images[{index}]")
        if number in images:
            raise UserError(f"`{path}` has two pictures with the id {number}; each id must stand once.")
        images[number] = image
    return images


def _read_annotations(
    document: dict[str, Any],
    split: str,
    path: Path,
    labels: dict[int, int],
    ids: set[int],
    problems: list[sources.Problem],
) -> dict[int, list[_Row]]:
    """Gathers the annotations of each picture."""
    annotations: dict[int, list[_Row]] = {number: [] for number in ids}
    unlisted = 0
    for index, entry in enumerate(document.get("annotations", [])):
        number, row = _read_annotation(entry, path, f"annotations[{index}]", labels)
        if number in annotations:
            annotations[number].append(row)
        else:
            unlisted += 1
    if unlisted:
        kind = "annotations of pictures that are not listed dropped"
        problems.append(sources.Problem(kind=kind, split=split, file_name=path.name, count=unlisted))
    return annotations


def _to_example(image: dict[str, Any], rows: list[_Row], number: int, path: Path, folder: Path) -> sources.Example:
    """Puts a picture and its annotations together."""
    file_name = str(_field(image, "file_name", path, f"picture {number}"))
    height, width = (_number(image.get(side) or 0, path, f"picture {number}: {side}") for side in ("height", "width"))
    if not max(abs(height), abs(width)) < 2**31:
        raise UserError(f"`{path}`: picture {number} has the size {height} x {width}; expected px.")
    return sources.make_example(
        id=number,
        path=sources.inside(folder, file_name, path),
        file_name=file_name,
        declared_size=(int(height), int(width)),
        boxes=[row[0] for row in rows],
        labels=[row[1] for row in rows],
        is_crowd=[row[2] for row in rows],
        area=[row[3] for row in rows],
    )


def _read_annotation(entry: dict[str, Any], path: Path, where: str, labels: dict[int, int]) -> tuple[int, _Row]:
    """Reads one annotation and the id of its picture."""
    category = _integer(entry, "category_id", path, where)
    if category not in labels:
        raise UserError(f"`{path}`: {where} has the unknown class {category}; `categories` does not list it.")
    bbox = _field(entry, "bbox", path, where)
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise UserError(f"`{path}`: {where} has the bbox {str(bbox)[:60]}; expected [x, y, width, height].")
    x, y, width, height = (_number(value, path, f"{where}: bbox") for value in bbox)
    area = entry.get("area")
    row = (
        [y, x, y + height, x + width],
        labels[category],
        bool(entry.get("iscrowd", 0)),
        -1.0 if area is None else _number(area, path, f"{where}: area"),
    )
    return _integer(entry, "image_id", path, where), row


def _field(entry: dict[str, Any], field: str, path: Path, where: str) -> Any:
    if entry.get(field) is None:
        raise UserError(f"`{path}`: {where} has no `{field}`.")
    return entry[field]


def _integer(entry: dict[str, Any], field: str, path: Path, where: str) -> int:
    value = _field(entry, field, path, where)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise UserError(f"`{path}`: {where} has the `{field}` {str(value)[:60]!r}; expected an integer.")
    return value


def _number(value: Any, path: Path, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"`{path}`: {where} has {str(value)[:60]!r}; expected a number.")
    try:
        return float(value)
    except OverflowError:
        return float("inf")
