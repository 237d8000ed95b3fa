"""Groups the sources of `predict` into batches of images that are the same whether or not a run was interrupted.

The output of a network depends slightly on the other images in its batch. So a resumed run forms its batches from all
images, including finished ones, and recomputes finished images that share a batch with unfinished ones.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import progress
from efficientdet.errors import UserError
from efficientdet.inference.detections import ImageDetections
from efficientdet.inference.journal import Journal
from efficientdet.media import images, locations
from efficientdet.structures import Category

_MOST_PIXELS = 64_000_000  # in a batch; the images are kept to draw on them
_RESERVED = {"predictions"}  # predictions.json, predictions.jsonl


@dataclasses.dataclass(kw_only=True, eq=False)
class Task:
    """A source, and what is known about it.

    Attributes:
        medium: the image, video, camera or stream.
        source: its name in the results; unique.
        stem: stem of the names of its output files; unique.
        mark: identifies this version of a file; None for the web, a camera or a stream.
        entry: its journal entry, if it was finished before.
        results: detections by image name.
        files: its output files, relative to the output folder.
        error: why it, or a frame of it, cannot be used; empty if it can.
    """

    medium: locations.Medium
    source: str
    stem: str
    mark: list[int] | None
    entry: dict[str, Any] | None = None
    results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    files: list[str] = dataclasses.field(default_factory=list)
    error: str = ""

    def to_entry(self) -> dict[str, Any]:
        """Converts the task to a journal entry."""
        entry = {"mark": self.mark, "stem": self.stem, "files": self.files, "results": self.results}
        return entry | ({"error": self.error} if self.error else {})


@dataclasses.dataclass(kw_only=True, eq=False)
class Piece:
    """An image of a source: the file, or one of its frames.

    Attributes:
        task: the task of its source.
        number: frame number, from 0.
        total: number of frames to process.
        pixels: uint8[H, W, 3]; None if it cannot be read.
        path: the file, while the batch is being processed.
        error: why it cannot be read; later frames are not tried.
    """

    task: Task
    number: int
    total: int
    pixels: np.ndarray | None = None
    path: Path | None = None
    error: str = ""

    @property
    def is_last(self) -> bool:
        """Returns whether this is the last piece of its source."""
        return bool(self.error) or self.number == self.total - 1

    @property
    def name(self) -> str:
        """Returns its name in the results."""
        return self.task.source if self.total == 1 else f"{self.task.source}#{self.number + 1}"


Detect = Callable[[Sequence[np.ndarray]], list[ImageDetections]]
"""Detects in several images, uint8[H, W, 3] each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """How images and frames are processed.

    Attributes:
        load: loads the weights; returns the detection function and the classes.
        batch_size: maximum number of images per batch.
        max_frames: maximum number of frames per source; None means all.
        folder: folder for files from the web.
    """

    load: Callable[[], tuple[Detect, tuple[Category, ...]]]
    batch_size: int
    max_frames: int | None
    folder: Path

    def pieces(self, tasks: Sequence[Task], detect: Detect) -> Iterator[tuple[Piece, ImageDetections | None]]:
        """Yields the unfinished images with their detections; unreadable ones have None."""
        tasks = [task for task in tasks if task.medium.kind == "image"]
        if all(task.entry is not None for task in tasks):
            return
        kept = sum(task.entry is not None for task in tasks)
        with progress.track("predict", len(tasks), start=kept) as bar:
            for batch in batches(tasks, self.batch_size, self.folder, self.max_frames):
                pixels = [piece.pixels for piece in batch if piece.pixels is not None]
                answers = iter(detect(pixels) if pixels else [])
                for piece in batch:
                    detections = None if piece.pixels is None else next(answers)
                    if piece.task.entry is None:
                        yield piece, detections
                        if piece.is_last and not piece.error:
                            bar.advance(note=Path(piece.task.source).name)


def plan(found: Sequence[locations.Medium], earlier: Journal) -> list[Task]:
    """Makes a task for each source; a file that is passed twice is one source.

    Args:
        found: the sources.
        earlier: existing results.
    """
    tasks: dict[str, Task] = {}
    paths: set[Path] = set()
    stems = _RESERVED | {entry["stem"] for entry in earlier.entries.values()}
    for medium in found:
        if medium.path is not None and medium.path.resolve() in paths:
            continue
        mark = None if medium.path is None else _mark(medium.path)
        if medium.path is not None:
            paths.add(medium.path.resolve())
        # A finished result of a camera or an address is kept; a new run of it gets a new name.
        is_new = medium.path is None and earlier.is_finished
        source = _free(medium.name, {*tasks, *(earlier.entries if is_new else ())}, "{} ({})")
        entry = earlier.entries.get(source)
        stem = _free(medium.stem, stems, "{}-{}") if entry is None else entry["stem"]
        stems.add(stem)
        is_done = entry is not None and "error" not in entry and entry["mark"] == mark
        tasks[source] = Task(medium=medium, source=source, stem=stem, mark=mark, entry=entry if is_done else None)
    return list(tasks.values())


def _free(name: str, taken: set[str], pattern: str) -> str:
    """Appends a number, from 2, to a name that is taken."""
    free, number = name, 2
    while free in taken:
        free, number = pattern.format(name, number), number + 1
    return free


def _mark(path: Path) -> list[int] | None:
    try:
        facts = path.stat()
    except OSError:  # reported when it is read
        return None
    return [facts.st_size, facts.st_mtime_ns]


def batches(tasks: Sequence[Task], batch_size: int, folder: Path, max_frames: int | None) -> Iterator[list[Piece]]:
    """Reads images in batches limited by number and by pixels; skips finished batches.

    Args:
        tasks: tasks whose media are images.
        batch_size: maximum number of images per batch.
        folder: folder for files from the web, which are removed after their batch.
        max_frames: maximum number of frames per file; None means all.

    Yields:
        Pieces in the order of the sources. Those without pixels have an error, or are finished and can't be read again.
    """
    batch: list[Piece] = []
    number = pixels = 0
    for piece, (height, width) in _pieces(tasks, folder, max_frames):
        batch.append(piece)
        number += not piece.error
        pixels += height * width
        if number == batch_size or pixels > _MOST_PIXELS:
            yield from _filled(batch, folder)
            batch, number, pixels = [], 0, 0
    yield from _filled(batch, folder)


def _pieces(tasks: Sequence[Task], folder: Path, max_frames: int | None) -> Iterator[tuple[Piece, tuple[int, int]]]:
    """Reads the images of each task and their sizes; for a finished task only the sizes, from its entry."""
    for task in tasks:
        if task.entry is not None:
            sizes = [(found["height"], found["width"]) for found in task.entry["results"].values()]
            for number, size in enumerate(sizes):
                yield Piece(task=task, number=number, total=len(sizes)), size
            continue
        number = 0
        try:
            for piece in _read(task, folder, max_frames):
                number += 1
                assert piece.pixels is not None
                yield piece, (piece.pixels.shape[0], piece.pixels.shape[1])
        except UserError as error:
            yield Piece(task=task, number=number, total=max(number + 1, 2 if number else 1), error=str(error)), (0, 0)


def _read(task: Task, folder: Path, max_frames: int | None) -> Iterator[Piece]:
    """Reads the image, or the frames, of a source."""
    path = locations.fetch(task.medium, folder).path
    assert path is not None, "no file"
    for number, (total, pixels) in enumerate(images.read_frames(path, task.medium.name)):
        total = total if max_frames is None else min(total, max_frames)
        if number == total:
            return
        yield Piece(task=task, number=number, total=total, pixels=pixels, path=path)


def _filled(batch: list[Piece], folder: Path) -> Iterator[list[Piece]]:
    """Yields a batch with all its pixels, unless it is finished; then removes the files fetched for it."""
    if all(piece.task.entry is not None for piece in batch):
        return
    for piece in batch:
        if piece.task.entry is not None:
            try:
                for again in itertools.islice(_read(piece.task, folder, None), piece.number, piece.number + 1):
                    piece.pixels, piece.path = again.pixels, again.path
            except UserError:  # it already has a result; the rest of its batch is still processed
                piece.pixels = None
    yield batch
    for piece in batch:
        if piece.is_last and piece.path is not None and piece.path.parent == folder:
            piece.path.unlink(missing_ok=True)
