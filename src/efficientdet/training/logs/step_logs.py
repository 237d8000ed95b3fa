"""The logs of training steps: read one step late; bad steps are reported at once, means at regular intervals."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.config import TrainingConfig
from efficientdet.errors import UserError
from efficientdet.training.logs import memory
from efficientdet.training.logs.metrics import MetricsWriter

_COUNTERS = ("ok", "is_overflow", "bad_steps", "step", "asked_to_end")  # logs that are not averaged
_SHOWN_IMAGES = 8


class StepLogs:
    """The logs since the last line of metrics.jsonl.

    The arrays of a step are read after the next one has been started, so the device never waits for the host.
    """

    def __init__(
        self,
        training: TrainingConfig,
        metrics: MetricsWriter,
        say: Callable[[str], None],
        newest_checkpoint: Callable[[], Path | None],
    ):
        """Starts empty.

        Args:
            training: `batch_size`, `max_bad_steps`.
            metrics: receives the lines.
            say: prints a line.
            newest_checkpoint: finds the checkpoint that a failed run can fall back on.
        """
        self._training, self._metrics, self._say = training, metrics, say
        self._newest_checkpoint = newest_checkpoint
        self._pending: list[dict[str, Any]] = []
        self._newest: dict[str, float] = {}
        self._waited = 0.0
        self._began = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in the block as time the device waits for input."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time in the block, such as an evaluation, from the speed."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

    def add(self, step: int, logs: dict[str, Any], ids: np.ndarray) -> None:
        """Adds the logs of a step that has been started, and reads those of the step before.

        Args:
            step: number of the step, from 1.
            logs: float32[] each, as returned by the step of `step.make_step`; on the device.
            ids: int64[B], ids of the images in the batch.

        Raises:
            UserError: too many steps in a row were not finite.
        """
        previous = self._pending[-1] if self._pending else None
        self._pending.append({**logs, "ids": ids, "step": step})
        if previous is not None:
            self._read(previous)

    def _read(self, logs: dict[str, Any]) -> None:
        """Reads the logs of a step; reports its images if it was not finite, and stops the run after too many."""
        self._newest = {name: float(value) for name, value in logs.items() if name != "ids"}
        if self._newest["ok"] or self._newest["is_overflow"]:
            return
        limit, count = self._training.max_bad_steps, int(self._newest["bad_steps"])
        images = list(map(str, logs["ids"].tolist()))
        self._say(
            f"step {logs['step']}: skipped because the loss or a gradient is not finite ({count} in a row); "
            f"images {', '.join(images)}"
        )
        if count >= limit:
            raise UserError(
                f"`training.max_bad_steps`: the loss or a gradient was not finite in {limit} steps in a row (images "
                f"{', '.join(images[:_SHOWN_IMAGES])}, ...); {self._kept()}. Start a new `--run-dir` with a lower "
                "`--optimizer.learning-rate`, or check the boxes of these images."
            )

    def _kept(self) -> str:
        """Describes what is left of a run that stops; steps that were not finite changed no weights."""
        path = self._newest_checkpoint()
        return f"the newest checkpoint, {path.name}, has finite weights" if path else "no checkpoint was saved yet"

    def write(self, epoch: float, skipped_steps: int) -> list[float]:
        """Writes the means since the last line, speed, memory, and the share of time the device waited for input.

        Args:
            epoch: passes over the training images so far.
            skipped_steps: number of skipped steps in the whole run.

        Returns:
            The finite losses of the steps since the last line.
        """
        self._read(self._pending[-1])
        rows = [{name: float(value) for name, value in logs.items() if name != "ids"} for logs in self._pending]
        good = [row for row in rows if row["ok"]] or rows
        seconds = time.monotonic() - self._began
        values: dict[str, float | None] = {
            name: float(np.mean([row[name] for row in good])) for name in rows[0] if name not in _COUNTERS
        }
        values |= {
            "learning_rate": rows[-1]["learning_rate"],
            "skipped_steps": skipped_steps,
            "images_per_second": len(rows) * self._training.batch_size / seconds,
            "input_wait": self._waited / seconds,
            "resident_memory": memory.resident(),
            "device_memory": memory.device_peak(),
        }
        self._metrics.write("train", step=int(rows[-1]["step"]), epoch=epoch, values=values)
        self._pending, self._waited, self._began = [], 0.0, time.monotonic()
        return [row["loss"] for row in rows if row["ok"]]

    @property
    def is_asked_to_end(self) -> bool:
        """Whether any process had been asked to stop when the newest step read began; the same in all processes."""
        return bool(self._newest.get("asked_to_end"))

    @property
    def note(self) -> str:
        """Losses and learning rate of the newest step read; empty at first."""
        values = self._newest
        if not values:
            return ""
        losses = f"loss {values['loss']:.3f} (class {values['class_loss']:.3f}, box {values['box_loss']:.4f})"
        return f"{losses}, lr {values['learning_rate']:.2e}"
