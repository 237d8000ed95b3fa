"""Annotated pictures in memory, whichever format they came in; and what the readers of all formats share.

`coco`, `voc` and `yolo` read a folder into a `Source`. Pictures are not opened here: `policy` meets each of them once.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from efficientdet.errors import UserError
from efficientdet.structures import Category

MAX_ANNOTATION_BYTES = 4 * 2**30
"""A larger annotation file is refused: it would be read into memory as a whole."""

_SPLIT_NAMES = {"train2014": "train", "train2017": "train", "val2014": "val", "val2017": "val", "valid": "val"}
_SPLIT_NAMES |= {"validation": "val", "training": "train", "test2017": "test", "testing": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was not taken over as it stood.

    Attributes:
        kind: what happened, a phrase in the plural that many problems share, such as "boxes without area dropped".
        split: split of the picture.
        file_name: picture, or annotation file, that it happened to.
        count: how often in this file.
        detail: what exactly; may be empty.
    """

    kind: str
    split: str
    file_name: str
    count: int = 1
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A picture and its boxes as the annotation says, unchecked.

    Attributes:
        id: number of the picture, unique in its split.
        path: the picture file.
        file_name: what the annotations call it.
        declared_size: height and width according to the annotation, px; none if it does not say.
        boxes: float32[N, 4], yxyx px of the picture; fractions of its height and width if `is_normalized`.
        labels: int32[N] in 0..C-1.
        is_crowd: bool[N].
        area: float32[N], px squared; -1 where the annotation does not say.
        is_normalized: the boxes are fractions.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset as its annotation files describe it.

    Attributes:
        categories: the classes; a label is a position in it.
        splits: examples of each split.
        problems: what the reader did not take over.
        unannotated: splits that are pictures only and say so (COCO's test-dev); nothing can be learnt from them.
    """

    categories: tuple[Category, ...]
    splits: dict[str, list[Example]]
    problems: list[Problem]
    unannotated: frozenset[str] = frozenset()


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
    """Gives a split its short name: train2017 is train, valid is val."""
    return _SPLIT_NAMES.get(name, name)


def take_splits(available: Iterable[str], wanted: tuple[str, ...], where: Path) -> list[str]:
    """Picks the splits that are wanted, all if none is named; an unknown one is an error that lists what there is."""
    names = list(available)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"`splits` names `{unknown[0]}`, which {where} does not have; it has {', '.join(names)}.")
    return [name for name in names if not wanted or name in wanted]


def inside(folder: Path, name: str, where: Path) -> Path:
    r"""Joins a file name from an annotation to its folder; a name that leads out of the folder is an error.

    Symbolic links are followed: the user made them, an annotation file cannot.

    Args:
        folder: where the name is looked up.
        name: relative, or absolute and inside the folder; `/` or `\` between its parts.
        where: annotation file to name in the error.
    """
    if not name or re.search(r"[\x00-\x1f]", name):
        raise UserError(f"`{where}` has the picture name {name!r}; expected the name of a file.")
    root = os.path.abspath(folder)  # noqa: PTH100 - Path.resolve would follow links
    path = os.path.normpath(os.path.join(root, name.replace("\\", "/")))  # noqa: PTH118
    if not path.startswith(root.rstrip(os.sep) + os.sep):
        raise UserError(f"`{where}` names the picture `{name}`, which is outside of {folder}; move it there.")
    return Path(path)


def read_text(path: Path) -> str:
    """Reads an annotation file as UTF-8.

    Raises:
        UserError: it is missing, unreadable, no text, or too large.
    """
    try:
        if path.exists() and not path.is_file():  # a device, such as /dev/zero, has no end
            raise UserError(f"`{path}` is no file.")
        if path.stat().st_size > MAX_ANNOTATION_BYTES:
            raise UserError(
                f"`{path}` is larger than {MAX_ANNOTATION_BYTES / 2**30:.0f} GiB; split it into several files."
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"`{path}` is no text in UTF-8: byte {error.start} cannot be read.") from error


def read_classes(path: Path) -> list[str]:
    """Reads a list of class names, one a line; empty lines are skipped."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise UserError(f"`{path}` names no class; expected one name a line.")
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise UserError(f"`{path}` names the class `{repeated[0]}` twice; each must stand once.")
    return names


def find_root(source: Path, is_root: Callable[[Path], bool]) -> Path | None:
    """Finds the one folder that `is_root` accepts: the source, else below it, at most two levels down.

    Archives often hold one folder around everything (VOCdevkit/VOC2012).

    Raises:
        UserError: the source is no folder, or several folders on one level qualify.
    """
    if not source.is_dir():
        raise UserError(f"`source` is {source}; expected a folder with pictures and annotations.")
    level = [source]
    for _ in range(3):
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
    """Lists the folders in a folder by name; hidden ones are skipped."""
    with os.scandir(parent) as entries:
        return [Path(entry.path) for entry in sorted(entries, key=_name) if entry.is_dir() and entry.name[0] != "."]


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name
