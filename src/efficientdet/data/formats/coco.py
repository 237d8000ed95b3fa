"""Reads the annotation formats of COCO and LVIS: one JSON file per split.

Boxes are (x, y, width, height) px. Category ids are kept, including gaps; a label is a position in the list sorted by
id. Crowds are kept and marked. All splits share one class table, the union of theirs, in which classes with the same
name are merged. A file without `annotations` lists images only (image_info_*.json, which COCO publishes for its test
images). An annotation without a box gets the box of its segmentation. If areas and polygons show it, boxes are read as
corners (`corners`). LVIS identifies images only by their URL.
"""

import urllib.parse
from pathlib import Path
from typing import Any

from efficientdet.data import sources
from efficientdet.data.layouts import coco_layout
from efficientdet.data.layouts.coco_layout import CocoSplit
from efficientdet.data.parsing import corners, fields, segmentation, values
from efficientdet.data.reading import accounts, lookup
from efficientdet.errors import UserError
from efficientdet.structures import Category

_IMAGES_ONLY = "files without annotations (usable for prediction, but not for evaluation)"
_UNLISTED = "annotations of unlisted images dropped"
_TEXT_IDS = "files with text ids, which were replaced by numbers from 1"
_FROM_SEGMENTATION = "boxes computed from polygons or masks, since the annotation has none"
_REPEATED = "duplicate annotations (same id and content) dropped"
_SAME_ID = "annotations with the same id as an earlier one, but different content, kept"
_NEED_ANNOTATIONS = ("train", "val")

# An annotation: box (yxyx px), label, is_crowd, area (px squared, -1: unknown).
_Row = tuple[list[float], int, bool, float]
_Key = int | str


def is_root(folder: Path) -> bool:
    """Checks whether the folder itself looks like a dataset in this format."""
    return bool(coco_layout.find(folder))


def read(
    source: Path,
    *,
    splits: tuple[str, ...] = (),
    files: tuple[CocoSplit, ...] = (),
    reading: sources.Reading | None = None,
) -> sources.Source:
    """Reads a dataset.

    Args:
        source: the folder, in a layout of `coco_layout`.
        splits: read only these; all if empty.
        files: where each split is, for any other layout; relative paths start at `source`.
        reading: how to interpret ambiguous annotations, and where faults go.
    """
    reading = reading or sources.Reading()
    if files:
        found = [(name, source / annotations, source / images) for name, annotations, images in files]
    else:
        root = sources.find_root(source, is_root)
        if root is None:
            raise UserError(
                f"`source` {source} has no COCO annotations; expected annotations/instances_<split>.json, "
                "instances.json or <split>/_annotations.coco.json. Use `--files` if they are elsewhere. "
                + coco_layout.describe_other_tasks(lookup.Files(source))
                + accounts.describe_files(source)
            )
        found = coco_layout.find(root)
    wanted = sources.take_splits([name for name, _, _ in found], splits, source)
    found = [split for split in found if split[0] in wanted]
    for index, (name, path, _) in enumerate(found):
        first = next((path for other, path, _ in found[:index] if other == name), None)
        if first is not None:
            raise UserError(
                f"`{source}` has the split `{name}` twice, in {first.name} and in {path.name}; choose one with "
                f"`--files {name} {first.relative_to(source)} IMAGES`."
            )
    documents = {name: _load(annotations, name) for name, annotations, _ in found}
    problems: list[sources.Problem] = []
    categories, labels = _merge_categories({path: documents[name] for name, path, _ in found}, found[0][0], problems)
    unannotated = frozenset(name for name, document in documents.items() if "annotations" not in document)
    problems += [
        sources.Problem(kind=_IMAGES_ONLY, split=name, file_name=path.name)
        for name, path, _ in found
        if name in unannotated
    ]
    finder = lookup.Files(source)
    has_own_folders = len({folder for _, _, folder in found}) == len(found) > 1
    examples = {}
    for name, path, folder in found:
        split = _Split(name, path, folder, finder, folder if has_own_folders else None, labels, reading)
        examples[name] = split.read(documents.pop(name))
        problems += split.problems
    return sources.Source(
        categories=categories,
        splits=examples,
        problems=problems,
        unannotated=unannotated,
        annotation_files=frozenset(path for _, path, _ in found),
        searched=f"in `annotations` of {', '.join(path.name for _, path, _ in found)}",
    )


def _load(path: Path, split: str) -> dict[str, Any]:
    """Reads a JSON file and checks that it has COCO's three lists; test images need no annotations."""
    document = fields.load_json(path)
    for field in ("images", "annotations", "categories"):
        entries = document.get(field) if isinstance(document, dict) else None
        if field == "annotations" and field not in document and split not in _NEED_ANNOTATIONS:
            continue
        if not isinstance(entries, list) or not all(isinstance(value, dict) for value in entries):
            hint = _hint(field, document)
            raise UserError(f"`{path}` has no `{field}` list; expected COCO's instances format{hint}.")
    return document


def _hint(field: str, document: Any) -> str:
    """Suggests what a file without one of the lists may be."""
    if field == "annotations":
        return " (a list of test images must not be called train or val)"
    if field == "categories" and isinstance(document, dict):
        has_boxes = any("bbox" in entry or "category_id" in entry for entry in document["annotations"][:1])
        if has_boxes:
            return ' (add the class names and their ids, such as [{"id": 1, "name": "cat"}])'
        return " (captions have no boxes; use instances_*.json)"
    return ""


def _merge_categories(
    documents: dict[Path, dict[str, Any]], split: str, problems: list[sources.Problem]
) -> tuple[tuple[Category, ...], dict[_Key, int]]:
    """Merges the class tables of all splits; returns the classes and the label of each id."""
    names: dict[_Key, tuple[str, Path]] = {}
    for path, document in documents.items():
        own: set[_Key] = set()
        for index, entry in enumerate(document["categories"]):
            where = f"categories[{index}]"
            number = values.key(_field(entry, "id", path, where), f"`{path}`: {where}: `id` is")
            name = values.name(_field(entry, "name", path, where), f"`{path}`: {where}: `name` is")
            known, known_path = names.setdefault(number, (name, path))
            if known != name:
                raise UserError(f"`{path}` calls class {number} `{name}`, but {known_path} calls it `{known}`.")
            if number in own:
                raise UserError(f"`{path}` lists class {number} twice; each id must appear once.")
            own.add(number)
    first = next(iter(documents))
    numbers, is_text = _number_keys(list(names))
    if is_text:
        problems.append(sources.Problem(kind=_TEXT_IDS, split=split, file_name=first.name, detail="categories"))
    by_number = {numbers[key]: name for key, (name, _) in names.items()}
    categories, labels, merged = sources.merge_categories(by_number, first, split)
    problems += merged
    return categories, {key: labels[number] for key, number in numbers.items()}


def _number_keys(keys: list[_Key]) -> tuple[dict[_Key, int], bool]:
    """Maps ids to numbers: themselves, or counted from 1 if some are text; also returns whether some are text."""
    own: dict[_Key, int] = {key: key for key in keys if isinstance(key, int)}
    if len(own) == len(keys):
        return own, False
    return {key: place for place, key in enumerate(keys, start=1)}, True


class _Split:
    """One annotation file and its images."""

    def __init__(
        self,
        name: str,
        path: Path,
        folder: Path,
        finder: lookup.Files,
        within: Path | None,
        labels: dict[_Key, int],
        reading: sources.Reading,
    ):
        self._name, self._path, self._folder, self._within = name, path, folder, within
        self._finder, self._labels, self._reading = finder, labels, reading
        self._num_from_segmentation = 0
        self._are_corners = False
        self._suspicion = corners.Suspicion()
        self.problems: list[sources.Problem] = []

    def read(self, document: dict[str, Any]) -> list[sources.Example]:
        """Converts the JSON to examples, in the order of their ids."""
        images = self._read_images(document)
        rows = self._read_annotations(document, set(images))
        numbers, is_text = _number_keys(list(images))
        if is_text:
            self._report(_TEXT_IDS, detail="images")
        examples: dict[Path, sources.Example] = {}
        for key in sorted(images, key=lambda key: numbers[key]):
            with self._reading.faults.of(self._name, self._path.name, lost=len(rows[key])):
                example = self._to_example(images[key], rows[key], numbers[key])
                known = examples.get(example.path)
                examples[example.path] = example if known is None else self._join(known, example)
        if self._suspicion.is_grave():
            self._report(corners.MAY_BE, self._suspicion.num_boxes)
        return list(examples.values())

    def _read_images(self, document: dict[str, Any]) -> dict[_Key, dict[str, Any]]:
        """Keys the images by their ids."""
        images: dict[_Key, dict[str, Any]] = {}
        for index, image in enumerate(document["images"]):
            where = f"images[{index}]"
            number = values.key(_field(image, "id", self._path, where), f"`{self._path}`: {where}: `id` is")
            if images.get(number) == image:
                self._report(sources.REPEATED_IMAGE, detail=f"{where} repeats an earlier entry, id {number}")
            elif number in images:
                raise UserError(
                    f"`{self._path}` has two images with the id {number}: {_name_of(images[number])} and "
                    f"{_name_of(image)}; each id must appear once."
                )
            images[number] = image
        return images

    def _read_annotations(self, document: dict[str, Any], ids: set[_Key]) -> dict[_Key, list[_Row]]:
        """Collects the annotations of each image."""
        rows: dict[_Key, list[_Row]] = {number: [] for number in ids}
        self._are_corners = corners.are_told(document.get("annotations", []))
        self._report(corners.TOLD, int(self._are_corners))
        seen: dict[_Key, dict[str, Any]] = {}
        unlisted = repeated = same_id = 0
        for index, entry in enumerate(document.get("annotations", [])):
            own_id = entry.get("id")
            known = seen.setdefault(own_id, entry) if isinstance(own_id, int | str) else entry
            if known is not entry:
                repeated += known == entry
                same_id += known != entry
                if known == entry:
                    continue
            with self._reading.faults.of(self._name, self._path.name):
                number, row = self._read_annotation(entry, f"annotations[{index}]")
                if number in rows:
                    rows[number].append(row)
                else:
                    unlisted += 1
        self._report(_UNLISTED, unlisted, lost=unlisted)
        self._report(_REPEATED, repeated, lost=repeated)
        self._report(_SAME_ID, same_id)
        self._report(_FROM_SEGMENTATION, self._num_from_segmentation)
        return rows

    def _read_annotation(self, entry: dict[str, Any], where: str) -> tuple[_Key, _Row]:
        """Reads one annotation and the id of its image."""
        start = f"`{self._path}`: {where}"
        category = values.key(_field(entry, "category_id", self._path, where), f"{start}: `category_id` is")
        if category not in self._labels:
            raise UserError(f"{start}: unknown class {category}, which is not listed in `categories`.")
        area = entry.get("area")
        is_crowd = values.flag(entry.get("iscrowd"), f"{start}: `iscrowd` is")
        row = (
            self._box(entry, where),
            self._labels[category],
            is_crowd and not self._reading.crowds_as_objects,
            -1.0 if area in (None, "") else values.number(area, f"{start}: `area` is"),
        )
        return values.key(_field(entry, "image_id", self._path, where), f"{start}: `image_id` is"), row

    def _box(self, entry: dict[str, Any], where: str) -> list[float]:
        """Reads the box, yxyx px, from `bbox`, or from the segmentation if there is no `bbox`."""
        bbox, start = entry.get("bbox"), f"`{self._path}`: {where}"
        if bbox in (None, [], ""):
            shape = entry.get("segmentation")
            box = segmentation.box(shape, f"{start}: `segmentation` contains") if shape else None
            if box is None:
                _field(entry, "bbox", self._path, where)
                raise UserError(f"{start}: `bbox` is empty, and there is no segmentation.")
            self._num_from_segmentation += 1
            return box
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise UserError(f"{start}: `bbox` is {repr(bbox)[:60]}; expected [x, y, width, height].")
        x, y, width, height = (values.number(value, f"{start}: `bbox` contains") for value in bbox)
        return [y, x, height, width] if self._are_corners else [y, x, y + height, x + width]

    def _to_example(self, image: dict[str, Any], rows: list[_Row], number: int) -> sources.Example:
        """Combines an image and its annotations."""
        where = f"`{self._path}`: image {number}"
        path, file_name = self._locate(image, number)
        size = [values.pixels(image.get(side), f"{where}: `{side}` is") for side in ("height", "width")]
        if min(size) > 0 and not self._are_corners:
            for (y1, x1, y2, x2), _, _, _ in rows:
                box = [y1 / size[0], x1 / size[1], y2 / size[0], x2 / size[1]]
                self._suspicion.add([box[1], box[0], box[3] - box[1], box[2] - box[0]], box)
        return _make(number, path, file_name, (size[0], size[1]), rows)

    def _locate(self, image: dict[str, Any], number: int) -> tuple[Path, str]:
        """Finds the file of an image, and its name for reports."""
        address = image.get("coco_url")
        is_address = image.get("file_name") is None and isinstance(address, str)
        name: Any = urllib.parse.urlsplit(str(address)).path.strip("/") if is_address else None
        name = name or _field(image, "file_name", self._path, f"image {number}")
        if not isinstance(name, str):
            raise UserError(f"`{self._path}`: image {number}: `file_name` is {str(name)[:60]!r}; expected text.")
        parent = self._path.parent
        folders = [self._folder, parent, self._folder.parent, self._finder.root, parent.parent]
        path, is_mended = self._finder.find(name, folders, self._path, self._within)
        if path is None:
            return lookup.missing(self._folder, name, self._path), name
        if not is_mended:
            return path, name
        root = self._finder.root
        file_name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        if not is_address:
            detail = f"{name} -> {file_name}"
            self.problems.append(
                sources.Problem(kind=sources.MENDED_NAME, split=self._name, file_name=file_name, detail=detail)
            )
        return path, file_name

    def _join(self, one: sources.Example, other: sources.Example) -> sources.Example:
        """Merges two entries for the same file; annotations that both have count once."""
        if one.declared_size and other.declared_size and one.declared_size != other.declared_size:
            raise UserError(
                f"`{self._path}` lists `{one.file_name}` twice, as {one.declared_size[0]} x {one.declared_size[1]} px "
                f"and as {other.declared_size[0]} x {other.declared_size[1]} px (height x width)."
            )
        rows, kept = [*_rows(one), *_rows(other)], []
        for row in rows:
            if row not in kept:
                kept.append(row)
        detail = f"ids {one.id} and {other.id}"
        lost = len(rows) - len(kept)
        self.problems.append(
            sources.Problem(
                kind=sources.REPEATED_IMAGE, split=self._name, file_name=one.file_name, detail=detail, lost=lost
            )
        )
        return _make(one.id, one.path, one.file_name, one.declared_size or other.declared_size or (0, 0), kept)

    def _report(self, kind: str, count: int = 1, *, detail: str = "", lost: int = 0) -> None:
        if count:
            problem = sources.Problem(
                kind=kind, split=self._name, file_name=self._path.name, count=count, detail=detail, lost=lost
            )
            self.problems.append(problem)


def _name_of(image: dict[str, Any]) -> str:
    """Returns the name of an image for an error."""
    return repr(image.get("file_name", image.get("coco_url")))[:60]


def _make(id: int, path: Path, file_name: str, size: tuple[int, int], rows: list[_Row]) -> sources.Example:
    return sources.make_example(
        id=id,
        path=path,
        file_name=file_name,
        declared_size=size,
        boxes=[row[0] for row in rows],
        labels=[row[1] for row in rows],
        is_crowd=[row[2] for row in rows],
        area=[row[3] for row in rows],
    )


def _rows(example: sources.Example) -> list[_Row]:
    """Turns an example back into rows."""
    columns = (example.boxes, example.labels, example.is_crowd, example.area)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _field(entry: dict[str, Any], field: str, path: Path, where: str) -> Any:
    if entry.get(field) is None:
        raise UserError(f"`{path}`: {where} has no `{field}`.")
    return entry[field]
