"""Reads YOLO's annotation format: one text file per image, with a line `class x y width height` per box.

x and y are the center; all four are fractions of the upright image. A longer line is a polygon, `class x1 y1 x2 ...`
(with four corners for oriented boxes), which is replaced by its bounding box; or, if data.yaml has `kpt_shape`, a box
and its keypoints, which are ignored. Category ids are YOLO's class numbers, from 0. An image without a label file has
no boxes.
"""

import collections
import dataclasses
import math
import os
from pathlib import Path

from efficientdet.data import sources
from efficientdet.data.layouts import yolo_layout
from efficientdet.data.parsing import corners, values
from efficientdet.data.reading import accounts, lookup
from efficientdet.errors import UserError

_LARGEST = 2.0
_SHARED = "label files shared by several images with the same name"
_POSE = "label lines read as a box and keypoints, since all of them match that"
_MAY_BE_POSE = "label lines read as polygons that may be boxes with keypoints (set `--keypoints` or `kpt_shape`)"
_CONFIDENCE = "confidences in the last column ignored"


def is_root(folder: Path) -> bool:
    """Checks whether the folder itself looks like a dataset in this format."""
    return yolo_layout.is_root(folder)


def read(
    source: Path,
    *,
    splits: tuple[str, ...] = (),
    classes: Path | None = None,
    reading: sources.Reading | None = None,
) -> sources.Source:
    """Reads a dataset.

    Args:
        source: the folder, in a layout of `yolo_layout`.
        splits: read only these; all if empty.
        classes: file with the class names, one per line, in the order of their numbers from 0; replaces the dataset's.
        reading: how to interpret ambiguous lines, and where faults go.
    """
    reading = reading or sources.Reading()
    source = source.absolute()
    root = sources.find_root(source, is_root)
    if root is None and classes is not None and lookup.Files(source).images():
        root = source
    if root is None:
        raise UserError(
            f"`source` {source} is not a YOLO dataset; expected data.yaml, obj.data, or classes.txt with images/ and "
            "labels/. If there is no such file, name the classes with `--classes`. " + accounts.describe_files(source)
        )
    description = yolo_layout.describe(root, lookup.Files(source), splits, classes)
    categories, labels, problems = sources.merge_categories(
        description.names, description.files[0], next(iter(description.splits), "train")
    )
    lines = _Lines(labels, dataclasses.replace(reading, keypoints=reading.keypoints or description.keypoints))
    examples = _read_examples(description, root, lines)
    if reading.keypoints is None and description.keypoints is None and lines.look_like_poses():
        lines = _Lines(labels, dataclasses.replace(reading, keypoints=lines.look_like_poses()))
        examples = _read_examples(description, root, lines)
        lines.report(_POSE, next(iter(examples)))
    elif lines.may_be_poses():
        lines.report(_MAY_BE_POSE, next(iter(examples)))
    lines.report_corners(next(iter(examples)))
    return sources.Source(
        categories=categories,
        splits=examples,
        problems=[*problems, *description.problems, *lines.problems],
        annotation_files=frozenset({*description.files, *lines.files}),
        searched=lines.searched,
    )


def _read_examples(
    description: yolo_layout.Description, root: Path, lines: "_Lines"
) -> dict[str, list[sources.Example]]:
    """Reads the label files of all splits, with ids from 1 across all splits."""
    examples: dict[str, list[sources.Example]] = {}
    first_id = 1
    for split, images in description.splits.items():
        counts = collections.Counter(images)
        images = sorted(counts)
        lines.report_repeated({image: count for image, count in counts.items() if count > 1}, split, root)
        examples[split] = [lines.read(image, first_id + i, split, root) for i, image in enumerate(images)]
        first_id += len(images)
    lines.report_shared()
    return examples


class _Lines:
    """Reads label files, and collects evidence about their format from all lines.

    Attributes:
        files: label files that were read.
        problems: what was changed or dropped.
        searched: where the labels of an image without any were looked for.
    """

    def __init__(self, labels: dict[int, int], reading: sources.Reading):
        self._labels, self._reading = labels, reading
        self._owners: dict[Path, list[tuple[str, str]]] = {}
        self._suspicion = corners.Suspicion()
        self._long: collections.Counter[tuple[int, bool, bool]] = collections.Counter()
        self._listings: dict[Path, dict[str, str]] = {}
        self.files: list[Path] = []
        self.problems: list[sources.Problem] = []
        self.searched = "for lines in the label files"

    def read(self, image: Path, number: int, split: str, root: Path) -> sources.Example:
        """Reads the label file of one image."""
        name = _name(image, root)
        path = self._find(image)
        boxes, box_labels = [], []
        if path is None:
            places = yolo_layout.label_folders(image)
            folders = [str(folder) for folder in places if folder.is_dir()] or [str(image.parent)]
            self.searched = f"for {image.stem}.txt in {', '.join(folders)}"
        else:
            self._owners.setdefault(path, []).append((split, name))
            self.files.append(path)
            num_confidences = 0
            with self._reading.faults.of(split, path.name, lost=0):
                for line_number, line in enumerate(sources.read_text(path).splitlines(), start=1):
                    words = line.split()
                    if not words:
                        continue
                    with self._reading.faults.of(split, path.name):
                        if self._reading.drop_confidence and self._has_confidence(len(words)):
                            words = words[:-1]
                            num_confidences += 1
                        label, box = self._read_line(words, f"`{path}`, line {line_number}")
                        boxes.append(box)
                        box_labels.append(label)
            if num_confidences:
                self.problems.append(
                    sources.Problem(kind=_CONFIDENCE, split=split, file_name=name, count=num_confidences)
                )
        return sources.make_example(
            id=number,
            path=image,
            file_name=name,
            declared_size=None,
            boxes=boxes,
            labels=box_labels,
            is_normalized=True,
        )

    def _find(self, image: Path) -> Path | None:
        """Finds the label file of an image: `a.txt` or `a.jpg.txt`, ignoring case and Unicode normalization."""
        for folder in yolo_layout.label_folders(image):
            if folder not in self._listings:
                self._listings[folder] = _list_labels(folder)
            listing = self._listings[folder]
            for name in (f"{image.stem}.txt", f"{image.name}.txt"):
                found = listing.get(name) or listing.get(lookup.fold(name))
                if found is not None:
                    return folder / found
        return None

    def look_like_poses(self) -> tuple[int, int] | None:
        """Returns the keypoints that all long lines seem to have, with x, y, and visibility 0, 1 or 2; else None."""
        if len(self._long) == 1:
            (length, _, is_pose), _ = self._long.most_common(1)[0]
            return ((length - 5) // 3, 3) if is_pose else None
        return None

    def may_be_poses(self) -> bool:
        """Returns whether all long lines look like a box and points inside it, which polygons rarely do."""
        return len({length for length, _, _ in self._long}) == 1 and all(is_pose for _, is_pose, _ in self._long)

    def report(self, kind: str, split: str) -> None:
        """Reports how the long lines were read."""
        count = sum(self._long.values()) or len(self.files)
        self.problems.append(
            sources.Problem(kind=kind, split=split, file_name=f"{len(self.files)} label files", count=count)
        )

    def report_corners(self, split: str) -> None:
        """Reports lines that may be corners."""
        if self._suspicion.is_grave():
            count = self._suspicion.num_boxes
            name = f"{len(self.files)} label files"
            self.problems.append(sources.Problem(kind=corners.MAY_BE, split=split, file_name=name, count=count))

    def report_repeated(self, counts: dict[Path, int], split: str, root: Path) -> None:
        """Reports images that appear more than once, in lists or in nested folders."""
        for image, count in counts.items():
            self.problems.append(
                sources.Problem(
                    kind=sources.REPEATED_IMAGE,
                    split=split,
                    file_name=_name(image, root),
                    detail=f"listed {count} times",
                )
            )

    def report_shared(self) -> None:
        """Reports the label files that several images share."""
        for path, owners in self._owners.items():
            if len(owners) > 1:
                detail = ", ".join(name for _, name in owners)
                self.problems.append(
                    sources.Problem(kind=_SHARED, split=owners[0][0], file_name=path.name, detail=detail)
                )

    def _read_line(self, words: list[str], where: str) -> tuple[int, list[float]]:
        """Reads one line: the label, and the box, yxyx, as fractions of the image."""
        try:
            numbers = [values.number(word, "") for word in words]
        except UserError:
            raise UserError(
                f"{where}: {' '.join(words)[:60]!r} is not all numbers; expected `class x y width height`."
            ) from None
        labels, count = self._labels, len(numbers)
        self._check_count(count, where)
        if numbers[0] not in labels:
            raise UserError(f"{where}: unknown class {words[0]}; `names` has {min(labels)}..{max(labels)}.")
        label = labels[int(numbers[0])]
        if self._reading.keypoints is not None:
            numbers = numbers[:5]
        elif count > 5:
            self._long[count, _is_pose(numbers, 2), _is_pose(numbers, 3)] += 1
        if any(abs(number) > _LARGEST for number in numbers[1:] if math.isfinite(number)):
            largest = max(numbers[1:], key=abs)
            raise UserError(f"{where}: contains {largest:g}; expected fractions of the image, 0..1, not px.")
        if len(numbers) == 5:
            x, y, width, height = numbers[1:]
            box = [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
            self._suspicion.add(numbers[1:], box)
            return label, box
        xs, ys = numbers[1::2], numbers[2::2]
        if not all(map(math.isfinite, numbers)):
            return label, [math.nan] * 4
        return label, [min(ys), min(xs), max(ys), max(xs)]

    def _has_confidence(self, count: int) -> bool:
        """Checks whether a line has one number more than a box, a polygon, or a box with keypoints."""
        if self._reading.keypoints is not None:
            points, size = self._reading.keypoints
            return count in (6, 6 + points * size)
        return count > 5 and count % 2 == 0

    def _check_count(self, count: int, where: str) -> None:
        """Raises a UserError for a line that is too long or too short."""
        if self._reading.keypoints is not None:
            points, size = self._reading.keypoints
            if count not in (5, 5 + points * size):
                raise UserError(
                    f"{where}: {count} numbers; expected 5 for a box, or {5 + points * size} with {points} "
                    f"keypoints of {size} numbers."
                )
        elif count == 6:
            raise UserError(
                f"{where}: 6 numbers; expected `class x y width height` or a polygon. If the last one is a "
                "confidence, use `--drop-confidence` to ignore it."
            )
        elif count < 5 or count % 2 == 0:
            hint = " If keypoints follow the box, set their number, such as `--keypoints 17 3`." if count > 6 else ""
            raise UserError(f"{where}: {count} numbers; expected `class x y width height` or a polygon.{hint}")


def _name(image: Path, root: Path) -> str:
    """Returns an image's path in the dataset."""
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else image.name


def _list_labels(folder: Path) -> dict[str, str]:
    """Lists the text files in a folder by their names and by their folded names."""
    if not folder.is_dir():
        return {}
    names = [entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(".txt") and entry.is_file()]
    return {lookup.fold(name): name for name in sorted(names)} | {name: name for name in names}


def _is_pose(numbers: list[float], size: int) -> bool:
    """Checks whether a long line can be a box and keypoints inside it; a third number per point must be 0, 1 or 2."""
    x, y, width, height = numbers[1:5]
    rest = numbers[5:]
    if not rest or len(rest) % size or not all(map(math.isfinite, numbers)):
        return False
    if size == 3 and not {*rest[2::3]} <= {0.0, 1.0, 2.0}:
        return False
    points = [(a, b) for a, b in zip(rest[::size], rest[1::size], strict=True) if a or b]
    margin = 0.01
    return bool(points) and all(
        abs(a - x) <= width / 2 + margin and abs(b - y) <= height / 2 + margin for a, b in points
    )
