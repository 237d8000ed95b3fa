"""PASCAL VOC's annotation format: one XML file a picture, one text file a split.

Corners are used as they stand, without VOC's -1 (its first pixel is 1): so does google/automl, and most tools that
write this format today count from 0. `difficult` objects are ordinary ones unless the caller drops them (automl's
default). The name of the XML file pairs it with its picture, as in VOC's own tools; its <filename>, which goes stale
when pictures are renamed, is asked only where there is no such picture.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import defusedxml
import defusedxml.ElementTree

from efficientdet.data import images, sources
from efficientdet.errors import UserError
from efficientdet.structures import Category

_STANDARD_SPLITS = ("train", "val", "test")
_PICTURE_FOLDERS = ("JPEGImages", "images", "Images")


def is_root(folder: Path) -> bool:
    """Says whether the folder itself looks like a dataset in this format."""
    return next((folder / "Annotations").glob("*.xml"), None) is not None


def read(
    source: Path, *, splits: tuple[str, ...] = (), classes: Path | None = None, drop_difficult: bool = False
) -> sources.Source:
    """Reads a dataset: Annotations/*.xml, JPEGImages/ and, where present, ImageSets/Main/<split>.txt.

    Without split files everything is `train`. `trainval` is taken where neither train nor val is, and called train.

    Args:
        source: the folder.
        splits: take the split files with these names; empty: train, val and test, as far as they exist.
        classes: file with the class names, one a line, in the order of their ids 1..C; without it, all names that
            occur, sorted.
        drop_difficult: drop the objects marked as difficult.
    """
    root = sources.find_root(source, is_root)
    if root is None:
        raise UserError(f"`source` {source} holds no VOC annotations; expected Annotations/*.xml and JPEGImages/.")
    trees = {
        split: {stem: _parse(root / "Annotations" / f"{stem}.xml") for stem in stems}
        for split, stems in _find_splits(root, splits).items()
    }
    if classes is not None:
        names = sources.read_classes(classes)
    else:
        names = sorted({name for stems in trees.values() for name in _class_names(stems, root)})
    labels = {name: label for label, name in enumerate(names)}
    examples, problems = _to_examples(root, trees, labels, classes, drop_difficult)
    categories = tuple(Category(id=label + 1, name=name) for name, label in labels.items())
    return sources.Source(categories=categories, splits=examples, problems=problems)


def _class_names(trees: dict[str, ElementTree.Element], root: Path) -> set[str]:
    """Collects the class names that occur."""
    return {
        _text(entry, "name", str(root / "Annotations" / f"{stem}.xml"))
        for stem, tree in trees.items()
        for entry in tree.findall("object")
    }


def _to_examples(
    root: Path,
    trees: dict[str, dict[str, ElementTree.Element]],
    labels: dict[str, int],
    classes: Path | None,
    drop_difficult: bool,
) -> tuple[dict[str, list[sources.Example]], list[sources.Problem]]:
    """Turns the XML files of all splits into examples; their ids count through the splits from 1."""
    problems: list[sources.Problem] = []
    examples: dict[str, list[sources.Example]] = {}
    number = 0
    for split, split_trees in trees.items():
        examples[split] = []
        for stem, tree in split_trees.items():
            number += 1
            annotation = _Annotation(root, stem, tree)
            example, num_difficult = annotation.to_example(number, labels, classes, drop_difficult)
            examples[split].append(example)
            if num_difficult:
                kind = "difficult boxes dropped"
                problems.append(
                    sources.Problem(kind=kind, split=split, file_name=example.file_name, count=num_difficult)
                )
    return examples, problems


class _Annotation:
    """One XML file, read field by field with errors that name it."""

    def __init__(self, root: Path, stem: str, tree: ElementTree.Element):
        self._root, self._stem, self._tree = root, stem, tree
        self._path = root / "Annotations" / f"{stem}.xml"

    def to_example(
        self, number: int, labels: dict[str, int], classes: Path | None, drop_difficult: bool
    ) -> tuple[sources.Example, int]:
        """Returns the example and the number of difficult boxes that were left out of it."""
        boxes, box_labels, num_difficult = [], [], 0
        for index, entry in enumerate(self._tree.findall("object")):
            name = _text(entry, "name", str(self._path))
            if name not in labels:
                raise UserError(f"`{self._path}` has the unknown class `{name}`; {classes} does not name it.")
            if drop_difficult and (entry.findtext("difficult") or "0").strip() == "1":
                num_difficult += 1
                continue
            box = entry.find("bndbox")
            if box is None:
                raise UserError(f"`{self._path}`: object {index} ({name}) has no `bndbox`.")
            boxes.append([self._number(box, side) for side in ("ymin", "xmin", "ymax", "xmax")])
            box_labels.append(labels[name])
        size = self._tree.find("size")
        picture = self._picture()
        example = sources.make_example(
            id=number,
            path=picture,
            file_name=picture.name,
            declared_size=None
            if size is None
            else (int(self._number(size, "height")), int(self._number(size, "width"))),
            boxes=boxes,
            labels=box_labels,
        )
        return example, num_difficult

    def _picture(self) -> Path:
        folder = next(
            (self._root / n for n in _PICTURE_FOLDERS if (self._root / n).is_dir()), self._root / "Annotations"
        )
        declared = (self._tree.findtext("filename") or "").strip()
        named = sources.inside(folder, declared, self._path) if declared else folder / f"{self._stem}.jpg"
        candidates = [folder / f"{self._stem}{s}" for suffix in images.SUFFIXES for s in (suffix, suffix.upper())]
        return next((path for path in (*candidates, named) if path.is_file()), named)

    def _number(self, element: ElementTree.Element, field: str) -> float:
        text = _text(element, field, str(self._path))
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"`{self._path}` has the `{field}` {text[:60]!r}; expected a number.") from None
        if element.tag == "size" and not abs(value) < 2**31:
            raise UserError(f"`{self._path}` has the `{field}` {text[:60]!r}; expected a size in px.")
        return value


def _find_splits(root: Path, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    """Reads the split files: names of annotation files without their ending, split by split."""
    folder = root / "ImageSets" / "Main"
    files = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if wanted:
        names = sources.take_splits(files or ["train"], wanted, folder)
    else:
        names = [name for name in _STANDARD_SPLITS if name in files]
        if not {"train", "val"} & set(names) and "trainval" in files:
            names = ["trainval", *names]
    if not names or not files:
        return {"train": sorted(path.stem for path in (root / "Annotations").glob("*.xml"))}
    return {"train" if n == "trainval" and "train" not in names else n: _read_split(files[n], root) for n in names}


def _read_split(path: Path, root: Path) -> list[str]:
    """Reads the names in one split file; a second column (per-class files: 1, 0 or -1) is skipped."""
    stems: dict[str, None] = {}
    for line in sources.read_text(path).splitlines():
        stem = line.strip()
        if not stem:
            continue
        head, _, flag = stem.rpartition(" ")
        if flag in ("1", "0", "-1") and head:
            stem = head.strip()
        if stem in stems:
            raise UserError(f"`{path}` names `{stem}` twice; each picture must stand once.")
        annotation = sources.inside(root / "Annotations", f"{stem}.xml", path)
        if not annotation.is_file():
            raise UserError(f"`{path}` names `{stem}`, but there is no {annotation}.")
        stems[stem] = None
    if not stems:
        raise UserError(f"`{path}` is empty; expected one picture name a line.")
    return list(stems)


def _parse(path: Path) -> ElementTree.Element:
    """Reads one XML file; entities and other means to exhaust the memory are refused."""
    try:
        return defusedxml.ElementTree.fromstring(sources.read_text(path))
    except (ElementTree.ParseError, defusedxml.DefusedXmlException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{path}` is no valid XML, it may be cut short: {' '.join(str(error).split())}.") from error


def _text(element: ElementTree.Element, field: str, where: str) -> str:
    """Reads the text of a child element."""
    text = (element.findtext(field) or "").strip()
    if not text:
        raise UserError(f"`{where}` has no `{field}` in <{element.tag}>.")
    return text
