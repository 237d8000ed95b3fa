"""Every export format in every precision: size, AP, and speed on this machine, measured alternately with Keras."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from efficientdet import progress
from efficientdet.benchmarks import drawn_weights, report, timing
from efficientdet.config import ExportFormat, ExportPrecision
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.evaluation import measuring
from efficientdet.exporters import exports
from efficientdet.formats import calibration, loading
from efficientdet.formats import keras as keras_runtime
from efficientdet.result import Result
from efficientdet.storage import files

_IMAGES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportsBenchmark(Result):
    """Size, AP and speed of each export of a model."""

    what: str
    rows: list[dict[str, Any]]
    """For each export: format, precision, answer, megabytes, AP, latency in ms, images/s, and differences from Keras;
    or why it was rejected."""

    def table(self) -> Table:
        """Formats the rows for a terminal."""
        table = Table(title=self.what, title_justify="left")
        for heading in ("format", "precision", "answer"):
            table.add_column(heading)
        for heading in ("MB", "AP %", "images/s", "p50 ms", "p99", "score diff.", "box diff. px"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            if "refused" in row:
                table.add_row(row["format"], row["precision"], "refused")
                continue
            found = row["agreement"]
            table.add_row(
                row["format"],
                row["precision"],
                row["answer"],
                f"{row['megabytes']:.1f}",
                "-" if row["ap"] is None else f"{100 * row['ap']:.1f}",
                f"{row['images_per_second']['median']:.4g}",
                *(f"{row['latency_ms'][name]:.4g}" for name in ("p50", "p99")),
                f"{found['score_difference']:.1e}" if found else "",
                f"{found['box_difference']:.2g}" if found else "",
            )
        return table


@dataclasses.dataclass(eq=False)
class _Loaded:
    """A runtime that is timed alternately with others."""

    runtime: loading.Runtime
    samples: list[calibration.Sample]
    row: dict[str, Any]
    seconds: list[float] = dataclasses.field(default_factory=list)

    def turn(self, turn_seconds: float) -> float:
        """Detects for `turn_seconds` with one image per call and returns images/s."""

        def detect(number: int) -> None:
            sample = self.samples[number % len(self.samples)]
            self.runtime.detect(sample.images, sample.valid_size)

        spent = timing.repeat(detect, turn_seconds)
        self.seconds += spent
        return len(spent) / sum(spent)


def benchmark_exports(
    model: str = "d0",
    /,
    *,
    data: str = "",
    split: str = "val",
    images: Path | None = None,
    calibration_images: int = 200,
    formats: tuple[ExportFormat, ...] = ("saved_model", "onnx", "litert", "openvino"),
    precisions: tuple[ExportPrecision, ...] = ("float32", "float16", "int8"),
    max_ap_loss: float = 0.01,
    rounds: int = 5,
    turn_seconds: float = 1.0,
    output: Path | None = None,
) -> ExportsBenchmark:
    """Exports a model in every format and precision, verifies each export, and measures size, AP and speed.

    Each call runs the network and suppression on one letterboxed image. The exports take turns.

    Args:
        model: weights file, run, published name, or a preset (with random weights).
        data: records to measure AP on; without them int8 is skipped, since it cannot be verified.
        split: split of those records.
        images: folder of photographs to compare and measure with; default: generated images.
        calibration_images: number of images to calibrate int8 with, from the train split of `data`.
        formats: saved_model, onnx, litert, openvino.
        precisions: float32, float16, bfloat16, int8; each format skips those it does not support.
        max_ap_loss: largest AP loss of int8; an export that loses more is listed as refused.
        rounds: number of measured rounds, after one warm-up round.
        turn_seconds: how long each export runs per round, s; at least one call.
        output: JSON file for the result.

    Raises:
        UserError: the model, the data or a runtime cannot be used.
    """
    if rounds < 1:
        raise UserError(f"`rounds` is {rounds}; it must be at least 1.")
    if output is not None:
        files.check_writable(output)
    wanted = [
        (name, precision) for name in formats for precision in precisions if precision in exports.PRECISIONS[name]
    ]
    wanted = [pair for pair in wanted if data or pair[1] != "int8"]
    for pair in wanted:
        exports.require(*pair)
    with drawn_weights.weights_of(model) as location, tempfile.TemporaryDirectory() as folder:
        keras = keras_runtime.KerasRuntime(location)
        samples = _samples(keras, images)
        row: dict[str, Any] = {"format": "weights", "precision": "float32", "answer": "Keras", "agreement": None}
        row |= {"megabytes": round(keras.path.stat().st_size / 1e6, 2), "ap": _ap(keras, data, split)}
        loaded, refused = [_Loaded(keras, samples, row)], []
        for name, precision in wanted:
            target = Path(folder) / f"{name}-{precision}"
            try:
                made = exports.export(
                    Path(location),
                    format=name,
                    precision=precision,
                    output=target,
                    images=images,
                    data=data if precision == "int8" else "",
                    split=split,
                    calibration_images=calibration_images,
                    max_ap_loss=max_ap_loss,
                )
            except UserError as error:
                refused.append({"format": name, "precision": precision, "refused": str(error)})
                progress.console.print(f"refused: {error}", markup=False)
                continue
            runtime = loading.load_runtime(target)
            row = {"format": name, "precision": precision, "answer": made.answer, "agreement": made.agreement}
            ap = made.agreement["ap"] if precision == "int8" else _ap(runtime, data, split)
            row |= {"megabytes": round(made.num_bytes / 1e6, 2), "ap": ap}
            loaded.append(_Loaded(runtime, samples, row))
        rows = _measure(loaded, rounds, turn_seconds)
        size = keras.image_size
    what = f"{model} at {size[0]} x {size[1]} px, one image per call, {'photographs' if images else 'generated'}"
    result = ExportsBenchmark(what=what, rows=rows + refused)
    if output is not None:
        files.write_json(output, {**result.to_dict(), **report.circumstances()})
    return result


def _samples(keras: keras_runtime.KerasRuntime, images: Path | None) -> list[calibration.Sample]:
    """Returns the images used for timing."""
    if images is not None:
        return calibration.from_folder(images, keras.model, _IMAGES, "images")
    return list(calibration.generated(keras.model, _IMAGES))


def _ap(runtime: loading.Runtime, data: str, split: str) -> float | None:
    """Measures AP if there are records."""
    if not data:
        return None
    return measuring.evaluate_runtime(runtime, store.open_records(data, split)).result().metrics["AP"]


def _measure(loaded: list[_Loaded], rounds: int, turn_seconds: float) -> list[dict[str, Any]]:
    """Times everything alternately; single times of the warm-up round are discarded."""
    calls: dict[str, Callable[[], float]] = {
        str(number): lambda one=one: one.turn(turn_seconds)  # type: ignore[misc]
        for number, one in enumerate(loaded)
    }
    with progress.track("benchmark exports", rounds + 1, unit="rounds") as bar:
        timing.in_turns(calls, 1, warmup=0)
        bar.advance()
        for one in loaded:
            one.seconds.clear()
        rates: timing.Rates = {name: [] for name in calls}
        for _ in range(rounds):
            for name, found in timing.in_turns(calls, 1, warmup=0).items():
                rates[name] += found
            bar.advance()
    return [
        {
            **one.row,
            "images_per_second": timing.spread(rates[str(number)]),
            "latency_ms": timing.percentiles(one.seconds),
        }
        for number, one in enumerate(loaded)
    ]
