"""Speed of the training input pipeline, measured alternately with bare JPEG decoding and the conventional order.

Stages are our own pipeline cut off after part of the work; the cost of a stage is the CPU time it adds per image, which
is hardly affected by other work on the machine. Everything starts from scratch each round, so that no batches are kept
from one round to the next, and is timed from the end of its first batch, which includes building the graph.
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
    "bare decoding": "decode files in memory to whole images, discard them",
    "conventional": "decode whole image, to float, scale, crop, match anchors on the host",
    "ours": "as in training",
    "ours, exact": "the same with `data.decode exact`: decode every image whole",
    "read": "ours: shuffle, read, parse",
    "decode": "... and draw scale and crop, decode the cropped part",
    "resize": "... and mirror, resize, pad",
    "batch": "... and boxes, batches of NumPy arrays: everything",
    "decoded before": "ours without reading and decoding: the limit for a cache of decoded images",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputBenchmark(Result):
    """Result of `benchmark input`; rates in images/s."""

    what: str
    """What was measured, in a sentence."""
    rows: list[dict[str, Any]]
    """For each candidate: name; min, median and max of its rates; processor_ms per image, over all cores, median."""
    stages: dict[str, float]
    """CPU time that each stage adds per image, ms, median."""
    limiting_stage: str
    """The stage that adds most."""
    ratios: dict[str, dict[str, float]]
    """Our rate over theirs in the same round: min, median, max."""
    images: dict[str, Any]
    """Number of images, mean height and width in px, mean bytes per file; network input, batch size."""
    growth: list[dict[str, Any]]
    """Measurements with `growth`."""

    def to_dict(self) -> dict[str, Any]:
        """Converts the result to plain JSON values, with the circumstances."""
        return {**dataclasses.asdict(self), **report.circumstances()}

    def table(self) -> Group:
        """Formats the result for a terminal."""
        rates = Table(title=self.what, title_justify="left")
        for heading in ("images/s", "median", "min", "max", "CPU ms", "meaning"):
            rates.add_column(heading, justify="left" if heading in ("images/s", "meaning") else "right")
        for row in self.rows:
            numbers = (f"{row[name]:.0f}" for name in ("median", "min", "max"))
            rates.add_row(row["name"], *numbers, f"{row['processor_ms']:.2f}", _MEANINGS[row["name"]])
        ratios = Table()
        for heading in ("ratio", "median", "min", "max"):
            ratios.add_column(heading, justify="left" if heading == "ratio" else "right")
        for name, spread in self.ratios.items():
            ratios.add_row(name, *(f"{spread[key]:.2f}" for key in ("median", "min", "max")))
        shares = ", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in self.stages.items())
        text = f"CPU time that each stage adds per image, ms: {shares}; the limiting stage is `{self.limiting_stage}`."
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
    """Measures the input pipeline of training and finds the stage that limits it.

    Alternates in each round between bare JPEG decoding, the conventional order (google/automl's and NVIDIA's), ours,
    and ours cut off after each stage. Absolute rates mean little on a shared machine; look at the ratios, which are
    taken within a round, and at the CPU time. No network is trained here; `input_wait` in the log of `train`
    shows whether training waits for images at all.

    Args:
        records_location: folder of a converted dataset or a glob of TFRecord files; empty: generated images of about
            480 x 640 px.
        split: split of a converted dataset.
        image_size: height and width of the network input, px.
        batch_size: images per batch.
        num_images: images that each candidate reads per round.
        rounds: number of measured rounds, after one warm-up round.
        decode: how our pipeline decodes JPEGs.
        growth: also measure the time to the first batch with 1, 64 and 256 shards, and rates by boxes per image and
            image size.
        output: JSON file to write.

    Returns:
        Rates, ratios, stages.
    """
    if output is not None:
        files.check_writable(output)
    if min(batch_size, rounds) < 1 or num_images < batch_size:
        raise UserError(
            f"`batch_size` is {batch_size}, `rounds` is {rounds} and `num_images` is {num_images}; the first two must "
            "be at least 1, and the last at least `batch_size`."
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
    """Opens the records, or generates temporary ones that are deleted after the block."""
    if location:
        yield store.open_records(location, split)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_coco_folder(folder / "images", {"train": 64}, (480, 640), seed=0)
        conversion.convert("coco", folder / "images", output=folder / "records", num_workers=1, val_fraction=0)
        yield store.open_records(str(folder / "records"), "train")


def _describe(opened: store.Records, image_size: tuple[int, int], batch_size: int) -> dict[str, Any]:
    """Describes the images, from the first 256."""
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
    """Reads the first image files in training order."""
    dataset = pipeline.training_files(opened, batch_size=count, seed=0, start_step=0, stop_step=1)
    return [file["encoded"] for file in dataset.as_numpy_iterator()]


def _datasets(
    opened: store.Records, image_size: tuple[int, int], batch_size: int, num_steps: int, decode: Decode
) -> dict[str, Any]:
    """Creates the measured datasets of `num_steps` batches."""
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
    """Creates the function that reads a dataset and returns images/s; appends the CPU time per image, s, to a list."""

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
    """Computes the time that each stage adds, ms per image: median over the rounds of differences within a round."""
    until = np.array([times["ours" if name == "batch" else name] for name in _STAGES])
    added = np.median(np.diff(until, axis=0, prepend=0), axis=1)
    return {name: round(float(value), 3) for name, value in zip(_STAGES, added, strict=True)}
