"""Annotated images in memory, independent of their format, and helpers that the readers of all formats share.

`coco`, `voc` and `yolo` read a folder into a `Source`. Images are not opened here: `policy` opens each one once.
Readers pass every faulty annotation to `Faults`, which raises the error or keeps it, so that a report can be complete.
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
"""Larger annotation files are rejected, since they are read into memory as a whole."""

NOT_DATA = frozenset({"runs", "predictions", "__MACOSX"})
"""Folders that are not part of a dataset."""

ANNOTATION_SUFFIXES = (".xml", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml")
"""Suffixes of annotation files, in any format."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
"""Suffixes of archives."""

_MOST_LEVELS_DOWN = 4

BROKEN_ANNOTATION = "broken annotations skipped"
MENDED_NAME = "images found by their file name, since the path in the annotation does not exist"
REPEATED_IMAGE = "images listed more than once merged into one"

SPLITS = {
    "train": "train training trainset",
    "val": "val valid validation validate valset dev",
    "test": "test testing testset",
}
"""Names of the standard splits -> words that mean them."""
_SPLIT_NAMES = {word: split for split, words in SPLITS.items() for word in words.split()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something in the dataset that was changed or dropped.

    Attributes:
        kind: what happened, as a plural phrase that many problems share, such as "boxes with no area dropped".
        split: split of the image.
        file_name: the image or annotation file concerned.
        count: number of occurrences in this file.
        detail: specifics; may be empty.
        lost: annotations dropped because of it.
    """

    kind: str
    split: str
    file_name: str
    count: int = 1
    detail: str = ""
    lost: int = 0


class Faults:
    """Collects the faults of single annotations, or raises them at once.

    Attributes:
        problems: the faults kept so far.
    """

    def __init__(self, *, keeps: bool = False):
        """Starts empty; with `keeps`, faults are kept instead of raised."""
        self._keeps = keeps
        self.problems: list[Problem] = []

    @contextlib.contextmanager
    def of(self, split: str, file_name: str, lost: int = 1) -> Iterator[None]:
        """Runs a block that reads one annotation; a UserError inside it counts as a fault of that annotation."""
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
    """How to interpret annotations if a format allows more than one way, and where their faults go.

    Attributes:
        faults: faults of single annotations; raised at once by default.
        keypoints: YOLO: keypoints after each box and numbers per keypoint; None means as in data.yaml.
        drop_confidence: YOLO: ignore a last column of confidences.
        crowds_as_objects: COCO: ignore `iscrowd`.
    """

    faults: Faults = dataclasses.field(default_factory=Faults)
    keypoints: tuple[int, int] | None = None
    drop_confidence: bool = False
    crowds_as_objects: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """An image and its boxes as in the annotation, unchecked.

    Attributes:
        id: number of the image, unique in its split.
        path: the image file.
        file_name: its name in the annotations.
        declared_size: height and width in the annotation, px; None if not given.
        boxes: float32[N, 4], yxyx px of the image; fractions of its height and width if `is_normalized`.
        labels: int32[N] in 0..C-1.
        is_crowd: bool[N].
        area: float32[N], px squared; -1 if not given in the annotation.
        is_normalized: whether the boxes are fractions.
        is_upright: whether the boxes refer to the image after its EXIF rotation; None means by its declared size.
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
        problems: what the reader changed or dropped.
        unannotated: splits that are declared to have images only (COCO's test-dev); they cannot be trained on.
        annotation_files: the files that annotations, classes and splits were read from; None if unknown.
        searched: where annotations were looked for, for the error if there are none.
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
    """Returns the standard name of a split: train2017 and Train become train, valid and Validation become val."""
    return _SPLIT_NAMES.get(re.sub(r"[-_ ]?(20\d\d)?$", "", name.strip().casefold()), name)


def split_in(name: str) -> str | None:
    """Finds the split in a name (`lvis_v1_train`, `instances_Validation`); returns None unless there is exactly one."""
    found = {normalize_split(word) for word in re.split(r"[-_. ]+", name)} & set(SPLITS)
    return found.pop() if len(found) == 1 else None


def take_splits(available: Iterable[str], wanted: tuple[str, ...], where: Path) -> list[str]:
    """Picks the requested splits, all if none is named; an unknown one is an error that lists the existing ones."""
    names = list(available)
    wanted = tuple(name if name in names else normalize_split(name) for name in wanted)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"`splits` names `{unknown[0]}`, which {where} does not have; choose from {', '.join(names)}.")
    return [name for name in names if not wanted or name in wanted]


def train_on_only_split(source: Source, wanted: tuple[str, ...]) -> Source:
    """Renames the only split of a dataset to `train`, unless it was requested by name."""
    (name, *others) = source.splits or [""]
    if others or wanted or name in ("", "train") or name in source.unannotated:
        return source
    problems = [dataclasses.replace(p, split="train") if p.split == name else p for p in source.problems]
    problems.append(
        Problem(
            kind="splits renamed to train, since the dataset has only one",
            split="train",
            file_name=name,
            detail=f"use `--splits {name}` to keep the name",
        )
    )
    return dataclasses.replace(source, splits={"train": source.splits[name]}, problems=problems)


def merge_categories(
    names: dict[int, str], where: Path, split: str
) -> tuple[tuple[Category, ...], dict[int, int], list[Problem]]:
    """Makes the class table; classes with the same name are merged under the lowest of their ids.

    Args:
        names: class name of each id.
        where: file to name in the report.
        split: split to name in the report.

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
            kind="classes with the same name merged under the lowest id",
            split=split,
            file_name=where.name,
            detail=f"`{name}` has ids {', '.join(str(n) for n in sorted(names) if names[n] == name)}; kept {number}",
        )
        for name, number in first.items()
        if list(names.values()).count(name) > 1
    ]
    folded: dict[str, str] = {}
    for name in first:
        other = folded.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            kind = "classes kept separate although their names differ only in case or spaces"
            problems.append(Problem(kind=kind, split=split, file_name=where.name, detail=f"`{other}` and `{name}`"))
    return categories, {number: label_of[first[names[number]]] for number in names}, problems


def inside(folder: Path, name: str, where: Path) -> Path:
    r"""Joins a file name from an annotation to its folder; a name that leads out of the folder is an error.

    Symbolic links are followed: the user made them; an annotation file cannot.

    Args:
        folder: where the name is looked up.
        name: relative, or absolute and inside the folder; with `/` or `\`.
        where: annotation file to name in the error.
    """
    if not name or re.search(r"[\x00-\x1f]", name):
        raise UserError(f"`{where}` has the image name {name!r}; expected a file name.")
    root = os.path.abspath(folder)  # noqa: PTH100 - Path.resolve would follow links
    path = os.path.normpath(os.path.join(root, name.replace("\\", "/")))  # noqa: PTH118
    if not path.startswith(root.rstrip(os.sep) + os.sep):
        raise UserError(f"`{where}` names the image `{name}`, which is outside {folder}; move it there.")
    return Path(path)


def read_bytes(path: Path) -> bytes:
    """Reads an annotation file.

    Raises:
        UserError: it is missing, unreadable, or too large.
    """
    try:
        if path.exists() and not path.is_file():  # a device such as /dev/zero never ends
            raise UserError(f"`{path}` is not a file.")
        if path.stat().st_size > MAX_ANNOTATION_BYTES:
            raise UserError(
                f"`{path}` is larger than {MAX_ANNOTATION_BYTES / 2**30:.0f} GiB; split it into several files."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}.") from error


def read_text(path: Path) -> str:
    """Reads an annotation file as UTF-8, or as UTF-16 if it starts with a UTF-16 byte order mark.

    Raises:
        UserError: it is missing, unreadable, not text, or too large.
    """
    content = read_bytes(path)
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"`{path}` is not UTF-8 text: byte {error.start} cannot be decoded.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_classes(path: Path) -> list[str]:
    """Reads a list of class names, one per line; empty lines are skipped."""
    lines = unicodedata.normalize("NFC", read_text(path)).splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"`{path}` has no class names; expected one per line.")
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise UserError(f"`{path}` lists the class `{repeated[0]}` twice; each class must appear once.")
    return names


def check_folder(source: Path) -> None:
    """Raises a UserError if the source is not a folder, and says what to do if it is a file."""
    if source.is_dir():
        return
    hint = "was not found; expected a folder with images and annotations"
    if source.name.lower().endswith(ARCHIVE_SUFFIXES) and source.is_file():
        hint = "is an archive; unpack it and pass the folder"
    elif source.is_file():
        hint = f"is a file; pass the folder of the dataset, such as {source.absolute().parent}"
    raise UserError(f"`source` {source} {hint}.")


def find_root(source: Path, is_root: Callable[[Path], bool]) -> Path | None:
    """Finds the folder that `is_root` accepts: the source or a subfolder, at most four levels down.

    Archives often wrap everything in one more folder (VOCdevkit/VOC2012).

    Raises:
        UserError: the source is not a folder, or several folders on one level qualify.
    """
    check_folder(source)
    level = [source]
    for _ in range(1 + _MOST_LEVELS_DOWN):
        roots = [folder for folder in level if is_root(folder)]
        if len(roots) > 1:
            raise UserError(
                f"`source` {source} contains several datasets: {', '.join(map(str, roots))}. Choose one of them."
            )
        if roots:
            return roots[0]
        level = [folder for parent in level for folder in _folders(parent)]
    return None


def _folders(parent: Path) -> list[Path]:
    """Lists the folders in a folder by name; skips hidden ones and those that are not part of a dataset."""
    with os.scandir(parent) as entries:
        folders = [entry for entry in entries if entry.is_dir() and entry.name[0] != "."]
        return sorted(Path(entry.path) for entry in folders if entry.name not in NOT_DATA)
