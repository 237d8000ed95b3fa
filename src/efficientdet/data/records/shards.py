"""Writes shards of records, in this process or in several; each shard is written by one process."""

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import backend, progress
from efficientdet.data import policy, sources
from efficientdet.data.records import tfrecord
from efficientdet.errors import UserError
from efficientdet.storage import files
from efficientdet.structures import Category

_POLL_SECONDS = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to write.

    Attributes:
        split: split of the examples.
        path: the file; None means that the images are only checked.
        examples: images, in the order of the records.
        categories: the classes.
    """

    split: str
    path: Path | None
    examples: list[sources.Example]
    categories: tuple[Category, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One shard that was written, or only checked (then it has no name and no bytes).

    Attributes:
        split: split of its records.
        name: file name.
        num_bytes: size of the file.
        sha256: SHA-256 of the file.
        lengths: int64[E], bytes of each payload.
        num_crowds: boxes that mark a crowd.
        max_boxes: boxes of the image that has the most, including crowds.
        boxes_per_class: boxes of each label, including crowds.
        problems: what was fixed or dropped.
        broken: unusable images, which are not in the shard; `detail` is the error.
    """

    split: str
    name: str
    num_bytes: int
    sha256: str
    lengths: np.ndarray
    num_crowds: int
    max_boxes: int
    boxes_per_class: collections.Counter[int]
    problems: list[sources.Problem]
    broken: list[sources.Problem]


def write_all(tasks: list[Task], num_workers: int) -> list[Shard]:
    """Writes all shards and shows the progress.

    Args:
        tasks: the shards.
        num_workers: processes; 1 means this one. More are spawned, so a script that calls this needs
            `if __name__ == "__main__":`.

    Raises:
        UserError: a file cannot be written, or a process died.
    """
    label = "Converting" if any(task.path for task in tasks) else "Checking"
    with progress.track(label, sum(len(task.examples) for task in tasks)) as tracker:
        if min(num_workers, len(tasks)) <= 1:
            return [_write(task, tracker.advance) for task in tasks]
        return _write_in_processes(tasks, min(num_workers, len(tasks)), tracker)


def _write_in_processes(tasks: list[Task], num_workers: int, tracker: progress.Tracker) -> list[Shard]:
    """Distributes the shards over spawned processes; a shared counter holds the number of images done."""
    context = multiprocessing.get_context("spawn")
    counter, stop, writes = context.Value("q", 0), context.Event(), any(task.path for task in tasks)
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker, (counter, stop, writes))
    shown = 0
    try:
        futures = [pool.submit(_write_counted, task) for task in tasks]
        waiting = set(futures)
        while waiting:
            done, waiting = concurrent.futures.wait(
                waiting, _POLL_SECONDS, return_when=concurrent.futures.FIRST_EXCEPTION
            )
            for future in done:
                future.result()
            done_images = counter.value
            if done_images > shown:
                tracker.advance(done_images - shown)
                shown = done_images
        return [future.result() for future in futures]
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"A conversion process died, possibly because memory ran out; set `num_workers` below {num_workers}."
        ) from error
    finally:
        # After an error or Ctrl-C, running tasks stop at their next image, and waiting ones do not start.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


# In spawned processes: the number of images that all of them have done, and whether they should stop.
_counter: Any = None
_stop: Any = None


def _start_worker(counter: Any, stop: Any, writes: bool) -> None:
    """Prepares a spawned process: leaves Ctrl-C to the parent, and keeps TensorFlow quiet and off the GPU."""
    global _counter, _stop
    _counter, _stop = counter, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if writes:
        with backend.start_up_lines_hidden():
            importlib.import_module("tensorflow")


def _write_counted(task: Task) -> Shard:
    """Writes one shard in a spawned process."""

    def advance() -> None:
        with _counter.get_lock():
            _counter.value += 1
        if _stop.is_set():
            raise InterruptedError

    return _write(task, advance)


def _write(task: Task, advance: Callable[[], None]) -> Shard:
    """Checks the images of one shard and writes their records."""
    lengths: list[int] = []
    images: list[_Counts] = []
    broken: list[sources.Problem] = []
    with _Writer(task.path) as writer:
        for example in task.examples:
            try:
                image = policy.prepare(example, task.split)
            except UserError as error:
                name, detail = example.file_name, str(error)
                broken.append(sources.Problem(kind=policy.BROKEN, split=task.split, file_name=name, detail=detail))
            else:
                lengths.append(writer.write(example, image, task.categories))
                images.append(_Counts(image))
            advance()
    return Shard(
        split=task.split,
        name="" if task.path is None else task.path.name,
        num_bytes=0 if task.path is None else task.path.stat().st_size,
        sha256="" if task.path is None else files.sha256(task.path),
        lengths=np.asarray(lengths, np.int64),
        num_crowds=sum(counts.num_crowds for counts in images),
        max_boxes=max((len(counts.labels) for counts in images), default=0),
        boxes_per_class=collections.Counter(label for counts in images for label in counts.labels),
        problems=[problem for counts in images for problem in counts.problems],
        broken=broken,
    )


class _Counts:
    """What the summary needs to know about an image, without its pixels."""

    def __init__(self, image: policy.Image):
        self.labels: list[int] = image.labels.tolist()
        self.num_crowds = int(image.is_crowd.sum())
        self.problems = image.problems


class _Writer:
    """A TFRecord file being written; writes nothing if it has no path."""

    def __init__(self, path: Path | None):
        self._path = path
        self._file: Any = None

    def __enter__(self) -> "_Writer":
        if self._path is not None:
            import tensorflow as tf

            def create() -> None:
                self._file = tf.io.TFRecordWriter(str(self._path))

            self._translate(create)
        return self

    def write(self, example: sources.Example, image: policy.Image, categories: tuple[Category, ...]) -> int:
        """Writes one record and returns the bytes of its payload."""
        if self._file is None:
            return 0
        size = np.asarray([image.height, image.width] * 2, np.float32)
        payload = tfrecord.serialize(
            encoded=image.jpeg,
            file_name=example.file_name,
            id=example.id,
            height=image.height,
            width=image.width,
            boxes=image.boxes / size,
            category_ids=np.asarray([categories[label].id for label in image.labels], np.int64),
            category_names=[categories[label].name for label in image.labels],
            is_crowd=image.is_crowd,
            area=image.area,
        )
        self._translate(lambda: self._file.write(payload))
        return len(payload)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._translate(self._file.close)

    def _translate(self, action: Callable[[], None]) -> None:
        """Turns TensorFlow's errors, which cannot be passed between processes, into ours."""
        import tensorflow as tf

        try:
            action()
        except tf.errors.OpError as error:
            raise UserError(f"`{self._path}` cannot be written: {' '.join(str(error).split())}.") from None
