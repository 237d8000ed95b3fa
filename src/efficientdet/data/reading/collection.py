"""A dataset that a reader collects image by image and box by box.

Shared by the readers of all formats other than COCO, VOC and YOLO: finds images (`gallery`), derives splits from the
names of files and folders, and assigns class ids. `accounts` reports files that no annotation uses.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efficientdet.data import sources
from efficientdet.data.parsing import fields, shapes
from efficientdet.data.reading import gallery
from efficientdet.errors import UserError
from efficientdet.structures import Category

MOVED = "images found by name in a different folder than their annotation says"
LISTED_TWICE = "images listed twice in one file: boxes combined"
SEVERAL_FILES = "images annotated in several files: boxes combined"
NOT_HERE = "annotations of images that are not in the dataset's folder skipped"

_LOSING = {shapes.WITHOUT_AREA, NOT_HERE}  # kinds of problems that count dropped annotations


@dataclasses.dataclass(kw_only=True, eq=False)
class Annotated:
    """An image and what has been read about it so far.

    Attributes:
        path: the image file.
        file_name: path relative to the source; the name in the annotation if there is no such image.
        split: train, val or test.
        size: declared height and width, px; None if not declared.
        files: the annotation files that name it.
        boxes: (yxyx, class name, whether it is a crowd).
    """

    path: Path
    file_name: str
    split: str
    size: tuple[int, int] | None = None
    files: set[Path] = dataclasses.field(default_factory=set)
    boxes: list[tuple[list[float], str, bool]] = dataclasses.field(default_factory=list)


class Collection:
    """The images, boxes and problems of a dataset that is being read."""

    def __init__(self, source: Path, *, classes: Path | None = None, reading: sources.Reading | None = None):
        """Lists the files of a dataset.

        Args:
            source: its folder.
            classes: file with the class names, in the order of their ids from 1; takes precedence over `table`.
            reading: where faults go; None means that they are raised.
        """
        self.classes = classes
        self.table: dict[int, str] | None = None
        """Class names by id; if neither it nor `classes` is set, the names that occur, sorted, with ids from 1."""
        self.table_file: Path | None = None
        """The file that the table was read from."""
        self.is_normalized = False
        """Whether the boxes are fractions of the image."""
        self._faults = (reading or sources.Reading()).faults
        self.gallery = gallery.Gallery(source)
        self._images: dict[tuple[str, str], Annotated] = {}
        self._problems: dict[tuple[str, str, str], tuple[int, str]] = {}
        self._first_uses: dict[str, str] = {}
        self._read: set[Path] = set()
        self._found: dict[tuple[Path, str, str | None, str | None], tuple[str | None, str | None]] = {}

    def add_image(
        self,
        name: str,
        *,
        file: Path,
        where: str,
        split: str | None = None,
        size: tuple[int, int] | None = None,
        key: str | None = None,
        is_listing: bool = False,
    ) -> Annotated:
        """Adds an image, or returns it if it was added before.

        Args:
            name: image name in the annotation.
            file: the annotation file.
            where: the annotation, for an error.
            split: split in the annotation; None derives it from the annotation file's name, its folders, or the
                image's folders.
            size: declared height and width, px.
            key: key of the image in the gallery, if the caller has already found it.
            is_listing: a file of this format should name each image only once; repetitions are reported.

        Raises:
            UserError: several images match, or two annotations declare different sizes.
        """
        split = split or self.gallery.split_of(file)
        lookup = (file, name, key, split)
        if lookup not in self._found:
            at = self.gallery.at(name, file, where)
            self._found[lookup] = at, key or at or self.gallery.search(name, where, split)
        named, key = self._found[lookup]
        split = split or self.gallery.image_split(key or "") or "train"
        file_name = key or name
        path = self.gallery.images[key] if key else file.parent / (Path(name.replace("\\", "/")).name or "image")
        image = self._images.setdefault((split, file_name), Annotated(path=path, file_name=file_name, split=split))
        if size and image.size and size != image.size:
            raise UserError(
                f"{where}: `{name}` is declared as {size[0]} x {size[1]} px (height x width), "
                f"but was declared as {image.size[0]} x {image.size[1]} px earlier."
            )
        image.size = image.size or size
        if is_listing and file in image.files:
            self.report(LISTED_TWICE, image, detail=self.gallery.key(file))
        image.files.add(file)
        if key and key != named and not f"/{key}".endswith(f"/{name}"):
            self._problems[MOVED, split, file_name] = (1, f"named {name}")
        return image

    def attempt(self, file: Path, lost: int = 1) -> contextlib.AbstractContextManager[None]:
        """Runs a block that reads an annotation; a UserError inside it is raised or kept, as `reading` says.

        Args:
            file: the annotation file.
            lost: annotations that are dropped if it fails.
        """
        return self._faults.of(self.gallery.split_of(file) or "train", self.gallery.key(file), lost)

    def add_box(self, image: Annotated, box: list[float], name: str, where: str, *, is_crowd: bool = False) -> None:
        """Adds a box, yxyx, and remembers where its class first occurred."""
        self._first_uses.setdefault(name, where)
        image.boxes.append((box, name, is_crowd))

    def add_outline(
        self, image: Annotated, box: list[float], name: str, where: str, *, kind: str = shapes.OUTLINES
    ) -> None:
        """Adds the box around a shape that is not an upright box, and reports that."""
        self.add_box(image, box, name, where)
        self.report(kind, image)

    def report(self, kind: str, image: Annotated, count: int = 1, detail: str = "") -> None:
        """Reports a problem of an image; counts of the same kind add up, and the first detail is kept."""
        self._report(kind, image.split, image.file_name, count, detail)

    def report_file(self, kind: str, file: Path, count: int = 1, detail: str = "") -> None:
        """Reports a problem of a file that is not an image."""
        self._report(kind, self.gallery.split_of(file) or "", self.gallery.key(file), count, detail)

    def mark(self, file: Path) -> None:
        """Marks a file as read; all others are reported as unused."""
        self._read.add(file)

    def documents(self, is_document: Callable[[Any], bool], *suffixes: str) -> Iterator[tuple[Path, Any]]:
        """Reads the JSON files of a format one by one."""
        for path in self.gallery.files(*(suffixes or (".json",))):
            document = None
            with self.attempt(path, lost=0):
                document = fields.load_json(path)
            if is_document(document):
                self.mark(path)
                yield path, document

    def class_names(self) -> list[str]:
        """Lists the classes of the boxes so far, sorted."""
        return sorted(self._first_uses)

    def finish(self, splits: tuple[str, ...]) -> sources.Source:
        """Returns the dataset: classes, examples with ids from 1 in the order of their names, and all problems.

        Args:
            splits: read only these; all if empty.

        Raises:
            UserError: there are no images, a split does not exist, or a class is not in the table.
        """
        table, table_file = self.table, self.table_file
        if self.classes is not None:
            table, table_file = dict(enumerate(sources.read_classes(self.classes), start=1)), self.classes
        elif table is None:
            table = dict(enumerate(self.class_names(), start=1))
        categories = tuple(Category(id=number, name=table[number]) for number in sorted(table))
        labels = {category.name: label for label, category in enumerate(categories)}
        for name, where in self._first_uses.items():
            if name not in labels:
                raise UserError(f"{where}: unknown class `{name}`, which is not listed in {table_file}.")
        available = [name for name in sources.SPLITS if any(split == name for split, _ in self._images)]
        if not available and self._faults.problems:  # the caller reports them
            available = ["train"]
        if not available:
            left_out = [f"{count} {kind}" for (kind, _, _), (count, _) in self._problems.items()]
            also = f" {'; '.join(left_out[:3])}." if left_out else ""
            raise UserError(
                f"`source` {self.gallery.root} has no annotated images in this format. It contains "
                f"{self.gallery.contents()}.{also}"
            )
        wanted = sources.take_splits(available, splits, self.gallery.root)
        self._report_files()
        examples: dict[str, list[sources.Example]] = {}
        number = 0
        for split in wanted:
            examples[split] = []
            for _, image in sorted((name, image) for (own, name), image in self._images.items() if own == split):
                number += 1
                examples[split].append(_to_example(image, number, labels, self.is_normalized))
        problems = [
            sources.Problem(
                kind=kind,
                split=split if split in wanted else wanted[0],
                file_name=name,
                count=count,
                detail=detail,
                lost=count if kind in _LOSING else 0,
            )
            for (kind, split, name), (count, detail) in self._problems.items()
            if split in wanted or split not in available
        ]
        return sources.Source(
            categories=categories,
            splits=examples,
            problems=problems,
            annotation_files=frozenset(self._read),
            searched=f"in {len(self._read)} annotation files",
        )

    def _report_files(self) -> None:
        """Reports images whose boxes come from several files."""
        for (split, name), image in self._images.items():
            if len(image.files) > 1:
                names = ", ".join(sorted(self.gallery.key(file) for file in image.files))
                self._report(SEVERAL_FILES, split, name, 1, names)

    def _report(self, kind: str, split: str, file_name: str, count: int = 1, detail: str = "") -> None:
        before, first_detail = self._problems.get((kind, split, file_name), (0, detail))
        self._problems[kind, split, file_name] = (before + count, first_detail)


def _to_example(image: Annotated, number: int, labels: dict[str, int], is_normalized: bool) -> sources.Example:
    return sources.make_example(
        id=number,
        path=image.path,
        file_name=image.file_name,
        declared_size=image.size,
        boxes=[box for box, _, _ in image.boxes],
        labels=[labels[name] for _, name, _ in image.boxes],
        is_crowd=[is_crowd for _, _, is_crowd in image.boxes],
        is_normalized=is_normalized,
    )
