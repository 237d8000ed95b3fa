"""Scaling of the input pipeline: time to the first batch by shards, images/s by boxes per image and by image size."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from efficientdet.benchmarks import timing
from efficientdet.config import AugmentationConfig
from efficientdet.data import conversion, pipeline, synthetic
from efficientdet.data.records import store, tfrecord
from efficientdet.structures import Batch

_SHARDS = (1, 64, 256)
_BOXES = (1, 8, 32, 100)
_SIDES = (256, 512, 768, 1024)
_IMAGES = 64  # images in the records with a varying number of boxes
_MEASURED = 160  # images per measurement


def measure(opened: store.Records, *, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Measures alternately, with the images of `opened` but other boxes and shards.

    Args:
        opened: the split.
        batch_size: images per batch.
        rounds: number of measured rounds, after one warm-up round.

    Returns:
        Rows with `what`, `value` and min, median and max; seconds to the first batch or images/s.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_coco_folder(folder / "images", {"train": max(_SHARDS)}, (64, 64), seed=0)
        for count in _SHARDS:
            location = folder / f"shards-{count}"
            conversion.convert(
                "coco", folder / "images", output=location, num_shards=count, num_workers=1, val_fraction=0
            )
        shards = {str(n): _first_batch(folder / f"shards-{n}", batch_size) for n in _SHARDS}
        first = timing.in_turns(shards, rounds)
        boxes = {str(n): _rate(_with_boxes(opened, folder, n), batch_size, (512, 512)) for n in _BOXES}
        by_boxes = timing.in_turns(boxes, rounds)
    by_size = timing.in_turns({str(side): _rate(opened, batch_size, (side, side)) for side in _SIDES}, rounds)
    named = (
        ("seconds to the first batch, by shards", first),
        ("images/s, by boxes an image", by_boxes),
        ("images/s, by image size", by_size),
    )
    return [{"what": what, "value": int(key), **timing.spread(v)} for what, found in named for key, v in found.items()]


def table(rows: list[dict[str, Any]]) -> Table:
    """Formats the rows for a terminal."""
    shown = Table()
    for heading in ("growth", "", "median", "min", "max"):
        shown.add_column(heading, justify="left" if heading == "growth" else "right")
    for row in rows:
        shown.add_row(row["what"], str(row["value"]), *(f"{row[name]:.3g}" for name in ("median", "min", "max")))
    return shown


def _first_batch(location: Path, batch_size: int) -> Callable[[], float]:
    """Creates the function that opens a dataset and returns the time to its first batch, s."""

    def wait() -> float:
        began = time.perf_counter()
        next(_batches(store.open_records(str(location), "train"), batch_size, (512, 512), num_steps=1000))
        return time.perf_counter() - began

    return wait


def _rate(opened: store.Records, batch_size: int, image_size: tuple[int, int]) -> Callable[[], float]:
    """Creates the function that reads batches and returns images/s, without the first one, which builds the graph."""
    num_steps = max(_MEASURED // batch_size, 2)

    def read() -> float:
        batches = _batches(opened, batch_size, image_size, num_steps=num_steps + 1)
        next(batches)
        return timing.rate_of(lambda: [None for _ in batches], num_steps * batch_size)

    return read


def _batches(
    opened: store.Records, batch_size: int, image_size: tuple[int, int], *, num_steps: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    return pipeline.training_batches(
        opened,
        image_size=image_size,
        resize="half_pixel",
        batch_size=batch_size,
        seed=0,
        augmentation=AugmentationConfig(),
        decode="fast",
        start_step=0,
        stop_step=num_steps,
    )


def _with_boxes(opened: store.Records, folder: Path, num_boxes: int) -> store.Records:
    """Writes the first images of a split with `num_boxes` boxes each to one file."""
    import tensorflow as tf

    corners = np.random.default_rng(0).uniform(0, 0.5, (num_boxes, 2)).astype(np.float32)
    values: dict[str, Any] = {
        "height": 1,
        "width": 1,
        "boxes": np.concatenate([corners, corners + np.float32(0.4)], axis=1),
        "category_ids": np.full(num_boxes, opened.categories[0].id, np.int64),
        "category_names": [opened.categories[0].name] * num_boxes,
        "is_crowd": np.zeros(num_boxes, bool),
        "area": np.ones(num_boxes, np.float32),
    }
    path, count = folder / f"boxes-{num_boxes}.tfrecord", min(len(opened), _IMAGES)
    dataset = pipeline.training_files(opened, batch_size=count, seed=0, start_step=0, stop_step=1)
    lengths = []
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, file in enumerate(dataset.as_numpy_iterator(), start=1):
            payload = tfrecord.serialize(encoded=file["encoded"], file_name=f"{number}.jpg", id=number, **values)
            writer.write(payload)
            lengths.append(len(payload))
    return dataclasses.replace(
        opened,
        paths=(str(path),),
        shards=np.zeros(count, np.int32),
        offsets=store.locate(np.asarray(lengths)),
        lengths=np.asarray(lengths),
        max_boxes=num_boxes,
        num_boxes=num_boxes * count,
    )
