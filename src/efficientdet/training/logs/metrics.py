"""What a run measures, to everything that takes it: `metrics.jsonl`, TensorBoard, and what `logging` asks for.

A line of `metrics.jsonl` is one JSON object: `kind` ("train", "validation"), `step`, `epoch` (a fraction), `time`
(seconds since 1970), `values` (name -> number; null where it was not finite or could not be measured). Every other
form is made from these lines.
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
    """Opens all that takes the metrics of a run; what an earlier process wrote beyond `resume_step` is cut away.

    Of the processes of a run, the first one writes; the others' writers are silent.

    Args:
        config: of the run; `logging` says where else the lines go.
        run_dir: made where it is missing.
        resume_step: last step whose results the run goes on from; 0: a run from the beginning.
        evaluates_again: the evaluation after that step comes again; its line goes too.
        num_devices: the run trains on.
        say: shows a line.
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
    """Reads `metrics.jsonl`; an unfinished last line, which a killed process leaves, is not counted.

    Raises:
        UserError: another line is damaged.
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
            message = f"`{path}` line {number} is not a line of metrics; mend it, remove it, or move the file away."
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
    """Something that takes what a run measures."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes a line, as `read_lines` gives them."""

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Takes an image: uint8[H, W, 3], RGB."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Takes how the run ended, as `summary.json` has it; is not called when the run was interrupted."""

    def close(self) -> None:
        """Writes what is still in memory."""


class MetricsWriter:
    """Gives the metrics of one run to its sinks."""

    def __init__(self, run_dir: Path, sinks: Sequence[Sink]):
        """Takes open sinks; none: it is silent."""
        self._run_dir, self._sinks = run_dir, sinks

    def write(self, kind: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
            kind: "train" or "validation".
            step: updates done.
            epoch: passes over the training images done, a fraction.
            values: name -> number, or none where there is nothing to measure.
        """
        numbers = {name: None if value is None else float(value) for name, value in values.items()}
        finite = {
            name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()
        }
        line = {"kind": kind, "step": step, "epoch": round(epoch, 6), "time": round(time.time(), 3), "values": finite}
        for sink in self._sinks:
            sink.write(line)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Hands an image on: uint8[H, W, 3], RGB."""
        for sink in self._sinks:
            sink.image(tag, image, step)

    def save_curves(self) -> None:
        """Draws all lines so far into `curves.png`; a reader finds the old image or the new one, never half of it."""
        if self._sinks:
            curves.draw_curves(read_lines(self._run_dir / LINES_FILE), self._run_dir / CURVES_FILE)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hands on how the run ended."""
        for sink in self._sinks:
            sink.finish(summary)

    def close(self) -> None:
        """Closes every sink, also after one that fails."""
        with contextlib.ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LinesFile:
    """`metrics.jsonl`; a reader sees each line as soon as it is written."""

    def __init__(self, path: Path):
        """Goes on behind the lines that are there."""
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        with files.explained(self._path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Has no place for images."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Leaves the end to `summary.json`."""

    def close(self) -> None:
        with files.explained(self._path):  # a line that could not be written is tried again
            self._file.close()


class _Events:
    """TensorBoard: scalars `<kind>/<name>`, and images."""

    def __init__(self, folder: Path, resume_step: int):
        """Tells TensorBoard to forget what a resumed run repeats."""
        # TensorBoard events are a convenience of training alone; evaluate and predict do not pay for the import.
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
        """Leaves the end to `summary.json`."""

    def close(self) -> None:
        with files.explained(self._folder):
            self._writer.close()
