"""Annotated images in memory, whichever format they came in; and what the readers of all formats share.

`coco`, `voc` and `yolo` read a folder into a `Source`. Images are not opened here: `policy` meets each of them once.
A reader hands every fault of an annotation to `Faults`, which raises it or keeps it, so that a report can be complete.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from efficientdet.errors import UserError
from efficientdet.structures import Category

MAX_ANNOTATION_BYTES = 4 * 2**30
"""A larger annotation file is refused: it would be read into memory as a whole."""

NOT_DATA = frozenset({"runs", "predictions", "__MACOSX"})
"""Folders that are no part of a dataset."""

ANNOTATION_SUFFIXES = (".xml", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml")
"""How names of annotation files end, in any format."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
"""How names of archives end."""

_MOST_LEVELS_DOWN = 4

BROKEN_ANNOTATION = "broken annotations left out"
MENDED_NAME = "images found by their base name, since the annotation's path is not there"
REPEATED_IMAGE = "images listed more than once joined into one"

SPLITS = {
    "train": "train training trainset",
    "val": "val valid validation validate valset dev",
    "test": "test testing testset",
}
"""The splits that have a name of their own -> words that mean them."""
_SPLIT_NAMES = {word: split for split, words in SPLITS.items() for word in words.split()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was not taken over as it stood.

    Attributes:
        kind: what happened, a phrase in the plural that many problems share, such as "boxes without area dropped".
        split: split of the image.
        file_name: image, or annotation file, that it happened to.
        count: how often in this file.
        detail: what exactly; may be empty.
        lost: annotations that were not taken over because of it.
    """

    kind: str
    split: str
    file_name: str
    count: int = 1
    detail: str = ""
    lost: int = 0


class Faults:
    """Where readers put faults of single annotations: raised at once, or kept to be reported together.

    Attributes:
        problems: what was kept.
    """

    def __init__(self, *, keeps: bool = False):
        """Starts without faults; `keeps` keeps them instead of raising."""
        self._keeps = keeps
        self.problems: list[Problem] = []

    @contextlib.contextmanager
    def of(self, split: str, file_name: str, lost: int = 1) -> Iterator[None]:
        """Runs a block that reads one annotation; a UserError inside it is a fault of that annotation."""
        try:
            yield
        except UserError as error:
            if not self._keeps:
                raise
            self.problems.append(
                Problem(kind=BROKEN_ANNOTATION, split=split, file_name=file_name, detail=str(error), lost=lost)
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How annotations are read where a format allows more than one reading, and where their faults go.

    Attributes:
        faults: of single annotations; raised at once by default.
        keypoints: YOLO: how many keypoints follow each box, and how many numbers each has; none: as data.yaml says.
        drop_confidence: YOLO: a last column of confidences is left out.
        crowds_as_objects: COCO: `iscrowd` is ignored.
    """

    faults: Faults = dataclasses.field(default_factory=Faults)
    keypoints: tuple[int, int] | None = None
    drop_confidence: bool = False
    crowds_as_objects: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """An image and its boxes as the annotation says, unchecked.

    Attributes:
        id: number of the image, unique in its split.
        path: the image file.
        file_name: what the annotations call it.
        declared_size: height and width according to the annotation, px; none if it does not say.
        boxes: float32[N, 4], yxyx px of the image; fractions of its height and width if `is_normalized`.
        labels: int32[N] in 0..C-1.
        is_crowd: bool[N].
        area: float32[N], px squared; -1 where the annotation does not say.
        is_normalized: the boxes are fractions.
        is_upright: the boxes are of the image after (or before) its EXIF rotation; none: the declared size tells.
    """

    id: int
    path: Path
    file_name: str
    declared_size: tuple[int, int] | None
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    area: np.ndarray
    is_normalized: bool = False
    is_upright: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset as its annotation files describe it.

    Attributes:
        categories: the classes; a label is a position in it.
        splits: examples of each split.
        problems: what the reader did not take over.
        unannotated: splits that are images only and say so (COCO's test-dev); nothing can be learnt from them.
        annotation_files: the files that annotations, classes and splits were read from; none: not known.
        searched: where annotations were looked for, for the message that there are none.
    """

    categories: tuple[Category, ...]
    splits: dict[str, list[Example]]
    problems: list[Problem]
    unannotated: frozenset[str] = frozenset()
    annotation_files: frozenset[Path] | None = None
    searched: str = ""


def make_example(
    *,
    id: int,
    path: Path,
    file_name: str,
    declared_size: tuple[int, int] | None,
    boxes: Iterable[Iterable[float]],
    labels: Iterable[int],
    is_crowd: Iterable[bool] | None = None,
    area: Iterable[float] | None = None,
    is_normalized: bool = False,
) -> Example:
    """Builds an `Example` from plain numbers; crowds default to none, areas to unknown."""
    label_array = np.asarray(list(labels), np.int32)
    num_boxes = len(label_array)
    with np.errstate(over="ignore"):  # a number beyond float32 becomes inf, which `policy` drops and reports
        box_array = np.asarray([list(box) for box in boxes], np.float64).reshape(num_boxes, 4).astype(np.float32)
        area_array = np.full(num_boxes, -1.0) if area is None else np.asarray(list(area), np.float64)
        area_array = area_array.astype(np.float32)
    crowd_array = np.zeros(num_boxes, bool) if is_crowd is None else np.asarray(list(is_crowd), bool)
    height, width = declared_size or (0, 0)
    return Example(
        id=id,
        path=path,
        file_name=file_name,
        declared_size=(height, width) if height > 0 and width > 0 else None,
        boxes=box_array,
        labels=label_array,
        is_crowd=crowd_array,
        area=area_array,
        is_normalized=is_normalized,
    )


def normalize_split(name: str) -> str:
    """Gives a split its short name: train2017 and Train are train, valid and Validation are val."""
    return _SPLIT_NAMES.get(re.sub(r"[-_ ]?(20\d\d)?$", "", name.strip().casefold()), name)


def split_in(name: str) -> str | None:
    """Finds the one split that a name speaks of (`lvis_v1_train`, `instances_Validation`); none if it does not."""
    found = {normalize_split(word) for word in re.split(r"[-_. ]+", name)} & set(SPLITS)
    return found.pop() if len(found) == 1 else None


def take_splits(available: Iterable[str], wanted: tuple[str, ...], where: Path) -> list[str]:
    """Picks the splits that are wanted, all if none is named; an unknown one is an error that lists what there is."""
    names = list(available)
    wanted = tuple(name if name in names else normalize_split(name) for name in wanted)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"`splits` names `{unknown[0]}`, which {where} does not have; it has {', '.join(names)}.")
    return [name for name in names if not wanted or name in wanted]


def train_on_only_split(source: Source, wanted: tuple[str, ...]) -> Source:
    """Calls the only split of a dataset `train`, whatever it was called, unless it was asked for by name."""
    (name, *others) = source.splits or [""]
    if others or wanted or name in ("", "train") or name in source.unannotated:
        return source
    problems = [dataclasses.replace(p, split="train") if p.split == name else p for p in source.problems]
    problems.append(
        Problem(
            kind="splits taken as training data, since they are the only one",
            split="train",
            file_name=name,
            detail=f"`--splits {name}` keeps its name",
        )
    )
    return dataclasses.replace(source, splits={"train": source.splits[name]}, problems=problems)


def merge_categories(
    names: dict[int, str], where: Path, split: str
) -> tuple[tuple[Category, ...], dict[int, int], list[Problem]]:
    """Makes the class table; classes of one name are one class, with the lowest of their ids.

    Args:
        names: of each id.
        where: file to name in the report.
        split: to name in the report.

    Returns:
        The classes by id; the label of each id; what was merged.
    """
    first: dict[str, int] = {}
    for number in sorted(names):
        first.setdefault(names[number], number)
    categories = tuple(Category(id=number, name=name) for name, number in sorted(first.items(), key=lambda i: i[1]))
    label_of = {category.id: label for label, category in enumerate(categories)}
    problems = [
        Problem(
            kind="classes of one name merged into that with the lowest id",
            split=split,
            file_name=where.name,
            detail=f"`{name}` is {', '.join(str(n) for n in sorted(names) if names[n] == name)}; {number} stays",
        )
        for name, number in first.items()
        if list(names.values()).count(name) > 1
    ]
    folded: dict[str, str] = {}
    for name in first:
        other = folded.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            kind = "classes whose names differ only in case or spaces kept apart"
            problems.append(Problem(kind=kind, split=split, file_name=where.name, detail=f"`{other}` and `{name}`"))
    return categories, {number: label_of[first[names[number]]] for number in names}, problems


def inside(folder: Path, name: str, where: Path) -> Path:
    r"""Joins a file name from an annotation to its folder; a name that leads out of the folder is an error.

    Symbolic links are followed: the user made them, an annotation file cannot.

    Args:
        folder: where the name is looked up.
        name: relative, or absolute and inside the folder; `/` or `\` between its parts.
        where: annotation file to name in the error.
    """
    if not name or re.search(r"[\x00-\x1f]", name):
        raise UserError(f"`{where}` has the image name {name!r}; expected the name of a file.")
    root = os.path.abspath(folder)  # noqa: PTH100 - Path.resolve would follow links
    path = os.path.normpath(os.path.join(root, name.replace("\\", "/")))  # noqa: PTH118
    if not path.startswith(root.rstrip(os.sep) + os.sep):
        raise UserError(f"`{where}` names the image `{name}`, which is outside of {folder}; move it there.")
    return Path(path)


def read_bytes(path: Path) -> bytes:
    """Reads an annotation file.

    Raises:
        UserError: it is missing, unreadable, or too large.
    """
    try:
        if path.exists() and not path.is_file():  # a device, such as /dev/zero, has no end
            raise UserError(f"`{path}` is not a file.")
        if path.stat().st_size > MAX_ANNOTATION_BYTES:
            raise UserError(
                f"`{path}` is larger than {MAX_ANNOTATION_BYTES / 2**30:.0f} GiB; split it into several files."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}.") from error


def read_text(path: Path) -> str:
    """Reads an annotation file as UTF-8, or as UTF-16 if it begins with the mark that says so.

    Raises:
        UserError: it is missing, unreadable, no text, or too large.
    """
    content = read_bytes(path)
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"`{path}` is not text in UTF-8: byte {error.start} cannot be read.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_classes(path: Path) -> list[str]:
    """Reads a list of class names, one a line; empty lines are skipped."""
    lines = unicodedata.normalize("NFC", read_text(path)).splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"`{path}` names no class; expected one name a line.")
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise UserError(f"`{path}` names the class `{repeated[0]}` twice; each must stand once.")
    return names


def check_folder(source: Path) -> None:
    """Raises a UserError if a dataset's folder is not one, and says what to do with a file instead."""
    if source.is_dir():
        return
    hint = "and there is nothing of this name"
    if source.name.lower().endswith(ARCHIVE_SUFFIXES) and source.is_file():
        hint = "not an archive: unpack it first"
    elif source.is_file():
        hint = f"not a file of it: name the folder, such as {source.absolute().parent}"
    raise UserError(f"`source` is {source}; expected a folder with images and annotations, {hint}.")


def find_root(source: Path, is_root: Callable[[Path], bool]) -> Path | None:
    """Finds the one folder that `is_root` accepts: the source, else below it, at most four levels down.

    Archives often hold one folder around everything (VOCdevkit/VOC2012).

    Raises:
        UserError: the source is not a folder, or several folders on one level qualify.
    """
    check_folder(source)
    level = [source]
    for _ in range(1 + _MOST_LEVELS_DOWN):
        roots = [folder for folder in level if is_root(folder)]
        if len(roots) > 1:
            raise UserError(
                f"`source` {source} holds several datasets: {', '.join(map(str, roots))}. Name one of them."
            )
        if roots:
            return roots[0]
        level = [folder for parent in level for folder in _folders(parent)]
    return None


def _folders(parent: Path) -> list[Path]:
    """Lists the folders in a folder by name; hidden ones and those of other things are skipped."""
    with os.scandir(parent) as entries:
        folders = [entry for entry in entries if entry.is_dir() and entry.name[0] != "."]
        return sorted(Path(entry.path) for entry in folders if entry.name not in NOT_DATA)
