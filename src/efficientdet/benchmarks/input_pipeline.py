"""How fast training images come, in turns with bare JPEG decoding and with the conventional order.

Stages are our own pipeline cut off after a part of the work: what one takes is what it adds an image, in processor
time, which other work on the machine hardly changes. All start afresh each round, so that none keeps batches from one
round to the next, and are timed from the end of their first batch on, which waits for a graph to be made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from efficientdet import presets, progress
from efficientdet.benchmarks import conventional, input_growth, report, timing
from efficientdet.config import AugmentationConfig, Decode
from efficientdet.data import conversion, pipeline, preprocess, synthetic
from efficientdet.data.augment import cropping
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.result import Result
from efficientdet.storage import files

_STAGES = ("read", "decode", "resize", "batch")
_MEANINGS = {
    "bare decoding": "files in memory to whole images, which are dropped",
    "conventional": "decode whole, float, scale whole, cut, match anchors on the host",
    "ours": "as training reads",
    "ours, exact": "the same with `data.decode exact`: every image decoded whole",
    "read": "ours: shuffle, read, parse",
    "decode": "... and draw scale and cut, decode what is seen",
    "resize": "... and mirror, resize, pad",
    "batch": "... and boxes, batches of NumPy arrays: all of it",
    "decoded before": "ours without reading and decoding: what a cache of decoded images could give",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputBenchmark(Result):
    """What `benchmark input` measured; rates in images/s."""

    what: str
    """What was measured, in a sentence."""
    rows: list[dict[str, Any]]
    """Each candidate: name; min, median and max of its rates; processor_ms an image, over all cores, median."""
    stages: dict[str, float]
    """What each stage adds, ms of processor time an image, median."""
    limiting_stage: str
    """The stage that adds most."""
    ratios: dict[str, dict[str, float]]
    """Our rate over theirs, round by round: min, median, max."""
    images: dict[str, Any]
    """How many, their mean height and width in px and bytes of a file; network input, batch."""
    growth: list[dict[str, Any]]
    """What was measured with `growth`."""

    def to_dict(self) -> dict[str, Any]:
        """Turns the result into plain JSON values, with the circumstances."""
        return {**dataclasses.asdict(self), **report.circumstances()}

    def table(self) -> Group:
        """Arranges the result for a terminal."""
        rates = Table(title=self.what, title_justify="left")
        for heading in ("images/s", "median", "min", "max", "processor ms", "of what"):
            rates.add_column(heading, justify="left" if heading in ("images/s", "of what") else "right")
        for row in self.rows:
            numbers = (f"{row[name]:.0f}" for name in ("median", "min", "max"))
            rates.add_row(row["name"], *numbers, f"{row['processor_ms']:.2f}", _MEANINGS[row["name"]])
        ratios = Table()
        for heading in ("ratio", "median", "min", "max"):
            ratios.add_column(heading, justify="left" if heading == "ratio" else "right")
        for name, spread in self.ratios.items():
            ratios.add_row(name, *(f"{spread[key]:.2f}" for key in ("median", "min", "max")))
        shares = ", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in self.stages.items())
        text = f"Processor ms an image that each stage adds: {shares}; the limiting stage is `{self.limiting_stage}`."
        return Group(rates, ratios, text, *([input_growth.table(self.growth)] if self.growth else []))


def benchmark_input(
    records_location: str = "",
    /,
    *,
    split: str = "train",
    image_size: tuple[int, int] = (512, 512),
    batch_size: int = 16,
    num_images: int = 240,
    rounds: int = 7,
    decode: Decode = "fast",
    growth: bool = False,
    output: Path | None = None,
) -> InputBenchmark:
    """Measures the input pipeline of training, and names the stage that limits it.

    In turns, round after round: bare JPEG decoding, the conventional order (google/automl's and NVIDIA's), ours, and
    ours cut off after each stage. A rate alone says little on a shared machine; look at the ratios, which are taken
    within a round, and at the processor time. No network is trained here: `train` shows as `input_wait` whether it
    waits for images at all.

    Args:
        records_location: folder of a converted dataset or a glob of TFRecord files; empty: generated images of about
            480 x 640 px.
        split: split of a converted dataset.
        image_size: height and width of the network input, px.
        batch_size: images a batch.
        num_images: images each candidate reads a round.
        rounds: rounds that count; one more comes before.
        decode: how ours decodes.
        growth: measure too: time to the first batch with 1, 64 and 256 shards; rates by boxes an image and image size.
        output: JSON file to write.

    Returns:
        Rates, ratios, stages.
    """
    if output is not None:
        files.check_writable(output)
    if min(batch_size, rounds) < 1 or num_images < batch_size:
        raise UserError(
            f"`batch_size` is {batch_size}, `rounds` {rounds} and `num_images` {num_images}; the first two must be 1 "
            "or more, the last at least a batch."
        )
    with _opened(records_location, split) as opened:
        images = _describe(opened, image_size, batch_size)
        datasets = _datasets(opened, image_size, batch_size, num_images // batch_size + 1, decode)
        with progress.track("Measuring", (rounds + 1) * len(datasets), unit="measurements") as tracker:
            processor: dict[str, list[float]] = {name: [] for name in datasets}
            counted = {
                name: _measurement(dataset, num_images // batch_size * batch_size, processor[name], tracker)
                for name, dataset in datasets.items()
            }
            rates = timing.in_turns(counted, rounds)
        grown = input_growth.measure(opened, batch_size=batch_size, rounds=rounds) if growth else []
    times = {name: 1e3 * np.array(seconds[-rounds:]) for name, seconds in processor.items()}
    stages = _stage_times(times)
    result = InputBenchmark(
        what=f"Input pipeline, {image_size[0]} x {image_size[1]} px, {os.cpu_count()} cores",
        rows=[
            {"name": name, **timing.spread(found), "processor_ms": round(float(np.median(times[name])), 3)}
            for name, found in rates.items()
        ],
        stages=stages,
        limiting_stage=max(stages, key=lambda name: stages[name]),
        ratios={
            "input_vs_conventional": timing.ratio(rates["ours"], rates["conventional"]),
            "input_vs_decode": timing.ratio(rates["ours"], rates["bare decoding"]),
        },
        images=images,
        growth=grown,
    )
    if output is not None:
        files.write_json(output, result.to_dict())
    return result


@contextlib.contextmanager
def _opened(location: str, split: str) -> Iterator[store.Records]:
    """Opens the records, or generated ones that are gone after the block."""
    if location:
        yield store.open_records(location, split)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_coco_folder(folder / "images", {"train": 64}, (480, 640), seed=0)
        conversion.convert("coco", folder / "images", output=folder / "records", num_workers=1, val_fraction=0)
        yield store.open_records(str(folder / "records"), "train")


def _describe(opened: store.Records, image_size: tuple[int, int], batch_size: int) -> dict[str, Any]:
    """Notes what the images are like: the first 256 of them."""
    sizes, lengths = [], []
    for encoded in _encoded(opened, min(len(opened), 256)):
        sizes.append(preprocess.image_size_tf(encoded).numpy())
        lengths.append(len(encoded))
    height, width = np.mean(sizes, axis=0)
    return {
        "count": len(opened),
        "mean_height": round(float(height), 1),
        "mean_width": round(float(width), 1),
        "mean_bytes": round(float(np.mean(lengths))),
        "image_size": list(image_size),
        "batch_size": batch_size,
    }


def _encoded(opened: store.Records, count: int) -> list[bytes]:
    """Reads the first image files in the order of training."""
    dataset = pipeline.training_files(opened, batch_size=count, seed=0, start_step=0, stop_step=1)
    return [file["encoded"] for file in dataset.as_numpy_iterator()]


def _datasets(
    opened: store.Records, image_size: tuple[int, int], batch_size: int, num_steps: int, decode: Decode
) -> dict[str, Any]:
    """Makes what is measured: datasets of `num_steps` batches."""
    import tensorflow as tf

    model = dataclasses.replace(presets.MODELS["d0"], image_size=image_size)
    augmentation, count = AugmentationConfig(), num_steps * batch_size

    def batched(dataset: Any, function: Callable[..., Any]) -> Any:
        mapped = dataset.map(function, tf.data.AUTOTUNE, deterministic=True)
        return mapped.batch(batch_size, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)

    def made(name: Decode) -> Callable[..., Any]:
        return pipeline.example_maker(
            opened, image_size=image_size, resize=model.resize, seed=0, augmentation=augmentation, decode=name
        )

    files_read = pipeline.training_files(opened, batch_size=batch_size, seed=0, start_step=0, stop_step=num_steps)
    encoded = tf.data.Dataset.from_tensor_slices(_encoded(opened, min(len(opened), count))).repeat().take(count)
    decoded = encoded.take(min(len(opened), 64)).map(preprocess.decode_tf).cache().repeat().take(count).enumerate()

    def seen(file: dict[str, Any]) -> tuple[Any, Any, Any]:
        size = preprocess.image_size_tf(file["encoded"])
        seed = tf.stack([file["epoch"], file["number"]])
        drawn = cropping.draw_decisions(seed, size, image_size, augmentation, model.resize)
        is_mirrored, window, shrink, valid_size = drawn
        return preprocess.decode_window_tf(file["encoded"], window, shrink, decode), is_mirrored, valid_size

    def resized(part: Any, is_mirrored: Any, valid_size: Any) -> Any:
        return preprocess.resample_tf(cropping.mirror_image(part, is_mirrored), valid_size, image_size, model.resize)

    def resized_from_memory(number: Any, image: Any) -> Any:
        seed = tf.stack([0, tf.cast(number, tf.int32)])
        drawn = cropping.draw_decisions(seed, tf.shape(image)[:2], image_size, augmentation, model.resize)
        is_mirrored, window, _, valid_size = drawn
        return resized(preprocess.cut_out(image, window), is_mirrored, valid_size)

    whole = conventional.batches(
        opened, model=model, augmentation=augmentation, batch_size=batch_size, num_steps=num_steps, seed=0
    )
    return {
        "bare decoding": batched(encoded, lambda one: tf.io.decode_jpeg(one, channels=3)[0, 0, 0]),
        "conventional": whole,
        "ours": batched(files_read, made(decode)),
        "ours, exact": batched(files_read, made("exact")),
        "read": batched(files_read, lambda file: file["num_boxes"]),
        "decode": batched(files_read, lambda file: seen(file)[0][0, 0, 0]),
        "resize": batched(files_read, lambda file: resized(*seen(file))[0, 0, 0]),
        "decoded before": batched(decoded, resized_from_memory),
    }


def _measurement(dataset: Any, count: int, seconds: list[float], tracker: progress.Tracker) -> Callable[[], float]:
    """Makes the function that reads a dataset and returns images/s; notes the processor time an image, s, beside it."""

    def read() -> float:
        batches = dataset.as_numpy_iterator()
        next(batches)
        began = time.process_time()
        rate = timing.rate_of(lambda: [None for _ in batches], count)
        seconds.append((time.process_time() - began) / count)
        tracker.advance()
        return rate

    return read


def _stage_times(times: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Computes what each stage adds, ms an image: medians over the rounds of differences within one."""
    until = np.array([times["ours" if name == "batch" else name] for name in _STAGES])
    added = np.median(np.diff(until, axis=0, prepend=0), axis=1)
    return {name: round(float(value), 3) for name, value in zip(_STAGES, added, strict=True)}
