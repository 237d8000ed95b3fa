"""Reads PASCAL VOC's annotation format: one XML file per image, one text file per split.

Corners are used as written, without subtracting 1 (VOC's first pixel is 1): google/automl does the same, and most tools
that write this format today count from 0. `difficult` objects are treated like any other unless the caller drops them
(google/automl's default). An XML file is matched to its image by name, as in VOC's own tools. Its <filename>, which
becomes outdated when images are renamed, only decides between several images of that name (`a.jpg`, `a.png`), or is
used if there is no such image.
"""

import collections
import dataclasses
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from efficientdet.data import sources
from efficientdet.data.layouts import voc_layout
from efficientdet.data.parsing import shapes, values, xml_files
from efficientdet.data.reading import accounts, lookup
from efficientdet.errors import UserError
from efficientdet.structures import Category

_DIFFICULT = "difficult boxes dropped"


def is_root(folder: Path) -> bool:
    """Checks whether the folder itself looks like a dataset in this format."""
    return voc_layout.is_root(folder)


def read(
    source: Path,
    *,
    splits: tuple[str, ...] = (),
    classes: Path | None = None,
    drop_difficult: bool = False,
    reading: sources.Reading | None = None,
) -> sources.Source:
    """Reads a dataset: Annotations/*.xml, JPEGImages/ and, if present, ImageSets/Main/<split>.txt.

    Without split files, everything is `train`. If there is neither train nor val, `trainval` is used as train.

    Args:
        source: the folder, in a layout of `voc_layout`.
        splits: use the split files with these names; if empty, train, val and test, as far as they exist.
        classes: file with the class names, one per line, in the order of their ids 1..C; without it, all names that
            occur, sorted.
        drop_difficult: drop the objects marked as difficult.
        reading: where faults go.
    """
    faults = (reading or sources.Reading()).faults
    source = source.absolute()
    root = sources.find_root(source, is_root)
    if root is None:
        raise UserError(
            f"`source` {source} has no VOC annotations; expected Annotations/*.xml and JPEGImages/, or XML files "
            "next to the images. " + accounts.describe_files(source)
        )
    found = voc_layout.find_splits(root, voc_layout.annotation_files(root), splits, faults)
    finder, folders = lookup.Files(source), voc_layout.ImageFolders(root)
    annotations = {
        split: [_Annotation(folders, path, split, finder, faults, drop_difficult) for path in paths]
        for split, paths in found.files.items()
    }
    annotations = {split: [one for one in ones if one.parse()] for split, ones in annotations.items()}
    if classes is not None:
        names = sources.read_classes(classes)
    else:
        names = sorted({name for ones in annotations.values() for one in ones for name, _ in one.objects})
    labels = {name: label for label, name in enumerate(names)}
    examples = _to_examples(annotations, labels, classes, source)
    if not found.lists and list(examples) == ["train"] and not splits:
        examples = _split_by_folder(examples["train"], root)
    files = [one.path for ones in annotations.values() for one in ones] + found.lists
    # The names are already unique; the merge reports those that differ only in case.
    first = next(iter(annotations))
    by_number = {label + 1: name for name, label in labels.items()}
    problems = sources.merge_categories(by_number, classes or root, first)[2]
    problems += [problem for ones in annotations.values() for one in ones for problem in one.problems]
    categories = tuple(Category(id=label + 1, name=name) for name, label in labels.items())
    return sources.Source(
        categories=categories,
        splits=examples,
        problems=problems,
        annotation_files=frozenset(files),
        searched=f"for <object> in {len(files) - len(found.lists)} XML files in {root}",
    )


def _to_examples(
    annotations: dict[str, list["_Annotation"]], labels: dict[str, int], classes: Path | None, source: Path
) -> dict[str, list[sources.Example]]:
    """Converts the XML files of all splits to examples, with ids from 1 across all splits."""
    examples: dict[str, list[sources.Example]] = {}
    number = 0
    for split, ones in annotations.items():
        examples[split] = []
        for annotation in ones:
            number += 1
            example = annotation.to_example(number, labels, classes)
            if example is not None:
                examples[split].append(example)
    # Subfolders of JPEGImages/ may have images with the same name; then the path is used instead.
    count = collections.Counter(example.file_name for some in examples.values() for example in some)
    return {
        split: [
            example
            if count[example.file_name] == 1
            else dataclasses.replace(example, file_name=example.path.relative_to(source).as_posix())
            for example in some
        ]
        for split, some in examples.items()
    }


def _split_by_folder(examples: list[sources.Example], root: Path) -> dict[str, list[sources.Example]]:
    """Splits by the image folders (images/train/, images/val/), if the annotation folders do not."""
    splits: dict[str, list[sources.Example]] = {"train": [], "val": [], "test": []}
    for example in examples:
        parts = example.path.relative_to(root).parts[:-1] if example.path.is_relative_to(root) else ()
        names = [split for part in parts if (split := sources.split_in(part))]
        splits[names[-1] if names else "train"].append(example)
    return {name: some for name, some in splits.items() if some} or {"train": []}


class _Annotation:
    """One XML file, read field by field, with errors that name it.

    Attributes:
        path: the file.
        objects: class and box (yxyx px) of each readable object.
        problems: what was changed or dropped.
    """

    def __init__(
        self,
        folders: voc_layout.ImageFolders,
        path: Path,
        split: str,
        finder: lookup.Files,
        faults: sources.Faults,
        drop_difficult: bool,
    ):
        self._folders, self.path, self._split, self._finder = folders, path, split, finder
        self._faults, self._drop_difficult = faults, drop_difficult
        self._tree = ElementTree.Element("annotation")
        self._num_difficult = 0
        self._outlines: collections.Counter[str] = collections.Counter()
        self.objects: list[tuple[str, list[float]]] = []
        self.problems: list[sources.Problem] = []

    def parse(self) -> bool:
        """Reads the objects; returns False if the file cannot be read."""
        with self._faults.of(self._split, self.path.name):
            self._tree = xml_files.parse(self.path)
            for index, entry in enumerate(self._tree.findall("object")):
                with self._faults.of(self._split, self.path.name):
                    self._read_object(entry, index)
            return True
        return False

    def _read_object(self, entry: ElementTree.Element, index: int) -> None:
        """Reads one object; errors name its index and line."""
        try:
            name = values.name(_text(entry, "name", self.path), f"`{self.path}`: `name` is")
            flag = (entry.findtext("difficult") or "0").strip()
            if self._drop_difficult and values.flag(flag, f"`{self.path}`: `difficult` is"):
                self._num_difficult += 1
            else:
                self.objects.append((name, self._box(entry, f"object {index} ({name})")))
        except UserError as error:
            line = xml_files.line_of(self.path, "object", index)
            raise UserError(f"{str(error).removesuffix('.')} (object {index}, line {line}).") from error

    def to_example(self, number: int, labels: dict[str, int], classes: Path | None) -> sources.Example | None:
        """Makes the example; returns None if its image or its size cannot be determined."""
        boxes, box_labels = [], []
        for name, box in self.objects:
            with self._faults.of(self._split, self.path.name):
                if name not in labels:
                    raise UserError(f"`{self.path}`: unknown class `{name}`, which is not listed in {classes}.")
                boxes.append(box)
                box_labels.append(labels[name])
        with self._faults.of(self._split, self.path.name, lost=len(boxes)):
            image = self._image()
            size = self._tree.find("size")
            sides = ("height", "width")
            declared = None if size is None else [self._pixels(size, side) for side in sides]
            self._report(_DIFFICULT, self._num_difficult, file_name=image.name, lost=self._num_difficult)
            for kind, count in self._outlines.items():
                self._report(kind, count, file_name=image.name)
            return sources.make_example(
                id=number,
                path=image,
                file_name=image.name,
                declared_size=None if declared is None else (declared[0], declared[1]),
                boxes=boxes,
                labels=box_labels,
            )
        return None

    def _image(self) -> Path:
        """Finds the image by the name of the XML file (<filename> decides if several match), or else by <filename>."""
        folders = self._folders.of(self.path)
        declared = (self._tree.findtext("filename") or self._tree.findtext("path") or "").strip()
        base = declared.replace("\\", "/").rsplit("/", 1)[-1]
        own = self._finder.with_stem(self.path.stem)
        candidates = next((near for f in folders if (near := [path for path in own if path.parent == f])), own)
        candidates = [path for path in candidates if path.stem == self.path.stem] or candidates
        meant = [path for path in candidates if path.name == base] or [
            path for path in candidates if lookup.fold(path.name) == lookup.fold(base)
        ]
        if len(meant) == 1:
            return meant[0]
        if len(candidates) > 1:
            raise UserError(
                f"`{self.path}` could belong to {candidates[0]} or {candidates[1]}; name the right one in <filename>, "
                "or remove the other."
            )
        if candidates:
            return candidates[0]
        folder = folders[0] if folders else self.path.parent
        if not declared:
            return folder / f"{self.path.stem}.jpg"
        found, is_mended = self._finder.find(declared, folders, self.path)
        if found is None:
            return folder / base if base else folder / f"{self.path.stem}.jpg"
        if is_mended:
            self._report(sources.MENDED_NAME, detail=f"{declared} -> {found.relative_to(self._finder.root)}")
        return found

    def _box(self, entry: ElementTree.Element, where: str) -> list[float]:
        box = entry.find("bndbox")
        if len(entry.findall("bndbox")) > 1:
            raise UserError(f"`{self.path}`: {where} has more than one `bndbox`; expected one per object.")
        if box is None:
            outline, kind = self._outline(entry)
            if outline is None:
                raise UserError(f"`{self.path}`: {where} has no `bndbox`.")
            self._outlines[kind] += 1
            return outline
        return [self._number(box, side) for side in ("ymin", "xmin", "ymax", "xmax")]

    def _outline(self, entry: ElementTree.Element) -> tuple[list[float] | None, str]:
        """Reads the box (yxyx) around a rotated box (roLabelImg) or a polygon (LabelMe, Roboflow), and its kind."""
        rotated, polygon = entry.find("robndbox"), entry.find("polygon")
        if rotated is not None:
            x, y, width, height, radians = (self._number(rotated, side) for side in ("cx", "cy", "w", "h", "angle"))
            corner = (x - width / 2, y - height / 2)
            return shapes.around_rotated(corner, width, height, math.degrees(radians), pivot=(x, y)), shapes.ROTATED
        if polygon is None:
            return None, ""
        points = [(self._number(point, "x"), self._number(point, "y")) for point in polygon.findall("pt")]
        while polygon.find(f"x{len(points) + 1}") is not None:
            points.append((self._number(polygon, f"x{len(points) + 1}"), self._number(polygon, f"y{len(points) + 1}")))
        return (shapes.around(points) if points else None), shapes.OUTLINES

    def _number(self, element: ElementTree.Element, field: str) -> float:
        return values.number(_text(element, field, self.path), f"`{self.path}`: `{field}` is")

    def _pixels(self, element: ElementTree.Element, side: str) -> int:
        return values.pixels(element.findtext(side), f"`{self.path}`: `{side}` is")

    def _report(self, kind: str, count: int = 1, *, file_name: str = "", detail: str = "", lost: int = 0) -> None:
        if count:
            name = file_name or self.path.name
            self.problems.append(
                sources.Problem(kind=kind, split=self._split, file_name=name, count=count, detail=detail, lost=lost)
            )


def _text(element: ElementTree.Element, field: str, path: Path) -> str:
    """Reads the text of the only child element with a tag."""
    if len(element.findall(field)) > 1:
        raise UserError(f"`{path}`: <{element.tag}> has more than one `{field}`; expected one.")
    text = (element.findtext(field) or "").strip()
    if not text:
        raise UserError(f"`{path}`: <{element.tag}> has no `{field}`.")
    return text
