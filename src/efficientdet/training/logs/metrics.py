"""The metrics of a run, written to `metrics.jsonl`, TensorBoard, and the services enabled in `logging`.

A line of `metrics.jsonl` is one JSON object: `kind` ("train", "validation"), `step`, `epoch` (a fraction), `time`
(seconds since 1970), `values` (name -> number; null if it was not finite or could not be measured). All other
outputs are made from these lines.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from efficientdet.config import ExperimentConfig
from efficientdet.errors import UserError
from efficientdet.storage import files
from efficientdet.training.distributed import processes
from efficientdet.training.logs import curves, time_log, tracking

LINES_FILE, EVENTS_FOLDER, CURVES_FILE = "metrics.jsonl", "tensorboard", "curves.png"


def open_writer(
    config: ExperimentConfig,
    run_dir: Path,
    resume_step: int = 0,
    *,
    evaluates_again: bool = False,
    num_devices: int = 1,
    say: Callable[[str], None] = print,
) -> "MetricsWriter":
    """Opens all sinks for the metrics of a run and removes lines that an earlier process wrote beyond `resume_step`.

    Only the first process of a run writes; the writers of the others do nothing.

    Args:
        config: config of the run; `logging` selects additional sinks.
        run_dir: run folder; created if missing.
        resume_step: step that the run resumes from; 0 for a new run.
        evaluates_again: whether the evaluation after that step is repeated, so that its line is removed too.
        num_devices: number of devices the run trains on.
        say: prints a line.
    """
    if not processes.is_first():
        return MetricsWriter(run_dir, ())
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / LINES_FILE
    lines = _cut(path, resume_step, resume_step - evaluates_again)
    sinks: list[Sink] = [_LinesFile(path), _Events(run_dir / EVENTS_FOLDER, resume_step)]
    if config.logging.time_log:
        sinks.append(time_log.TimeLog(run_dir, lines, batch_size=config.training.batch_size, num_devices=num_devices))
    sinks += tracking.open_trackers(config, run_dir, is_resumed=resume_step > 0, say=say)
    return MetricsWriter(run_dir, sinks)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`; ignores an unfinished last line left by a killed process.

    Raises:
        UserError: any other line is damaged.
    """
    if not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    lines = []
    for number, text in enumerate(complete, start=1):
        try:
            line = json.loads(text)
            lines.append({name: line[name] for name in ("kind", "step", "epoch", "time", "values")})
        except (ValueError, KeyError, TypeError) as error:
            message = f"`{path}` line {number} is not a valid metrics line; fix it, delete it, or move the file away."
            raise UserError(message) from error
    return lines


def _cut(path: Path, last_step: int, last_evaluation: int) -> list[dict[str, Any]]:
    """Keeps the lines up to these steps."""
    if not path.exists():
        return []
    last = {"validation": last_evaluation}
    kept = [line for line in read_lines(path) if line["step"] <= last.get(line["kind"], last_step)]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    files.write_text(path, text)
    return kept


class Sink(Protocol):
    """A destination for the metrics of a run."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes a line, as returned by `read_lines`."""

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Writes an image: uint8[H, W, 3], RGB."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the contents of `summary.json`; not called if the run was interrupted."""

    def close(self) -> None:
        """Writes what is still in memory."""


class MetricsWriter:
    """Passes the metrics of one run to its sinks."""

    def __init__(self, run_dir: Path, sinks: Sequence[Sink]):
        """Takes open sinks; without sinks it does nothing."""
        self._run_dir, self._sinks = run_dir, sinks

    def write(self, kind: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
            kind: "train" or "validation".
            step: number of steps so far.
            epoch: passes over the training images so far, a fraction.
            values: name -> number, or None if there is nothing to measure.
        """
        numbers = {name: None if value is None else float(value) for name, value in values.items()}
        finite = {
            name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()
        }
        line = {"kind": kind, "step": step, "epoch": round(epoch, 6), "time": round(time.time(), 3), "values": finite}
        for sink in self._sinks:
            sink.write(line)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Passes on an image: uint8[H, W, 3], RGB."""
        for sink in self._sinks:
            sink.image(tag, image, step)

    def save_curves(self) -> None:
        """Plots all lines so far in `curves.png`; a reader sees the old image or the new one, never a partial file."""
        if self._sinks:
            curves.draw_curves(read_lines(self._run_dir / LINES_FILE), self._run_dir / CURVES_FILE)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Passes on how the run ended."""
        for sink in self._sinks:
            sink.finish(summary)

    def close(self) -> None:
        """Closes every sink, even if one fails."""
        with contextlib.ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LinesFile:
    """`metrics.jsonl`; readers see each line as soon as it is written."""

    def __init__(self, path: Path):
        """Appends to existing lines."""
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        with files.explained(self._path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Does nothing; the file holds no images."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Does nothing; `summary.json` has the summary."""

    def close(self) -> None:
        with files.explained(self._path):  # retries a line that could not be written
            self._file.close()


class _Events:
    """TensorBoard: scalars `<kind>/<name>`, and images."""

    def __init__(self, folder: Path, resume_step: int):
        """Tells TensorBoard to drop the steps that a resumed run repeats."""
        # Only training writes TensorBoard events; evaluate and predict should not pay for the import.
        from tensorboardX import SummaryWriter

        purge_step = resume_step + 1 if folder.exists() else None
        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)

    def write(self, line: Mapping[str, Any]) -> None:
        for name, value in line["values"].items():
            if value is not None:
                self._writer.add_scalar(f"{line['kind']}/{name}", value, line["step"])

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        self._writer.add_image(tag, image, step, dataformats="HWC")
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Does nothing; `summary.json` has the summary."""

    def close(self) -> None:
        with files.explained(self._folder):
            self._writer.close()
