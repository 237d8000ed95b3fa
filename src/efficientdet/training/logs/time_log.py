"""`time_log.txt`: a log in the format of NVIDIA's training, for tools that read it (DLLogger's JSON lines).

A line is `DLLL ` and one JSON object: METADATA with the unit of a number, or LOG with `step` and `data`:

- step "PARAMETER": `Latency` ("x.xx seconds", of the steps since the last such line), `fps` (images/s), `steps`
  [from, to];
- step [] for an evaluation: `epoch` (whole), `validation_accuracy_mAP` (AP in percent, 2 decimals);
- step [] at the end: `avg_fps_training`, `avg_fps_training_per_GPU` (images/s), `avg_latency_training` (s per step),
  `training_loss`, `e2e_training_time` (s).

It is made from the lines of `metrics.jsonl`: a PARAMETER line is written every `training.log_every` steps (NVIDIA:
every step) and excludes evaluations. As in NVIDIA's log, the averages skip the first tenth of the lines. Ours differs
in three ways: `avg_latency_training` is per step, even if a line covers several; `training_loss` excludes L2 and is
the mean over the lines of the last epoch; and a resumed run, which in NVIDIA's training empties the file, keeps the
lines of the whole run, with `elapsedtime` (s) since its first start. `e2e_training_time` covers the last process only.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.storage import files

FILE = "time_log.txt"

_UNITS = {
    "avg_fps_training": "images/s",
    "avg_fps_training_per_GPU": "images/s",
    "avg_latency_training": "s",
    "training_loss": None,
    "e2e_training_time": "s",
}
_SKIPPED = 0.1  # share of the lines at the start that the averages skip


class TimeLog:
    """Writes `time_log.txt` of one run."""

    def __init__(self, run_dir: Path, lines: Sequence[Mapping[str, Any]], *, batch_size: int, num_devices: int):
        """Rewrites the file with the lines that the run has so far.

        Args:
            run_dir: run folder.
            lines: lines of `metrics.jsonl` if the run is resumed.
            batch_size: images per step, over all devices.
            num_devices: number of devices the run trains on.
        """
        self._path, self._batch_size, self._num_devices = run_dir / FILE, batch_size, num_devices
        self._last_step = 0
        self._last_time = datetime.datetime.min
        self._trained: list[Mapping[str, Any]] = []
        self._began = self._beginning(lines)
        texts = [_metadata(self._began, name, unit) for name, unit in _UNITS.items()]
        for line in lines:
            texts += self._texts(line)
        files.write_text(self._path, "".join(texts))
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes the speed of steps, or the AP of an evaluation."""
        self._append(self._texts(line))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Does nothing; the file holds no images."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the averages."""
        kept = self._trained[int(_SKIPPED * len(self._trained)) :]
        data: dict[str, Any] = {}
        if kept:
            rates = [line["values"]["images_per_second"] for line in kept]
            last_epoch = [line for line in self._trained if line["epoch"] > self._trained[-1]["epoch"] - 1]
            losses = [line["values"]["loss"] for line in last_epoch]
            found = [loss for loss in losses if loss is not None]
            data["avg_fps_training"] = float(np.mean(rates))
            data["avg_fps_training_per_GPU"] = data["avg_fps_training"] / self._num_devices
            data["avg_latency_training"] = float(np.mean([self._batch_size / rate for rate in rates]))
            data["training_loss"] = float(np.mean(found)) if found else None
        data["e2e_training_time"] = summary["seconds"]
        # The last line's time is rounded, so it may be slightly in the future.
        now = max(datetime.datetime.now(), self._last_time)
        self._append([self._log(now, (), data)])

    def close(self) -> None:
        """Closes the file; retries a line that could not be written."""
        with files.explained(self._path):
            self._file.close()

    def _append(self, texts: list[str]) -> None:
        with files.explained(self._path):
            self._file.writelines(texts)
            self._file.flush()

    def _texts(self, line: Mapping[str, Any]) -> list[str]:
        """Converts a line of `metrics.jsonl` to at most one line of this log."""
        values = line["values"]
        self._last_time = _time_of(line)
        if line["kind"] == "train":
            steps = (self._last_step, line["step"])
            latency = f"{self._latency(line):.2f} seconds"
            self._last_step = line["step"]
            self._trained.append(line)
            data = {"Latency": latency, "fps": values["images_per_second"], "steps": steps}
            return [self._log(_time_of(line), "PARAMETER", data)]
        if values.get("AP") is None:  # the validation images have no boxes
            return []
        data = {"epoch": int(line["epoch"]), "validation_accuracy_mAP": round(100 * values["AP"], 2)}
        return [self._log(_time_of(line), (), data)]

    def _beginning(self, lines: Sequence[Mapping[str, Any]]) -> datetime.datetime:
        """Returns when the run began: now, or before the steps of its first line."""
        if not lines:
            return datetime.datetime.now()
        seconds = self._latency(lines[0]) if lines[0]["kind"] == "train" else 0.0
        return _time_of(lines[0]) - datetime.timedelta(seconds=seconds)

    def _latency(self, line: Mapping[str, Any]) -> float:
        """Computes the time that the steps of a line took, s."""
        num_steps = line["step"] - self._last_step
        return float(num_steps * self._batch_size / line["values"]["images_per_second"])

    def _log(self, time: datetime.datetime, step: str | tuple[()], data: dict[str, Any]) -> str:
        elapsed = str((time - self._began).total_seconds())
        stamps = {"timestamp": str(time.timestamp()), "datetime": str(time), "elapsedtime": elapsed}
        return _line({**stamps, "type": "LOG", "step": step, "data": data})


def _metadata(time: datetime.datetime, metric: str, unit: str | None) -> str:
    stamps = {"timestamp": str(time.timestamp()), "elapsedtime": "0.0", "datetime": str(time)}
    return _line({**stamps, "type": "METADATA", "metric": metric, "metadata": {"unit": unit}})


def _line(values: dict[str, Any]) -> str:
    return f"DLLL {json.dumps(values)}\n"


def _time_of(line: Mapping[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(line["time"])
