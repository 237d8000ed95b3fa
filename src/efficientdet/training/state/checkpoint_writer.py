"""Checkpoints written beside training: the step waits for a copy to memory, not for the disk.

At most one is being written; the next one waits for it. What goes wrong in the thread reaches the run as the same line
that it would have been without, at the next step or at the end.
"""

import concurrent.futures
from pathlib import Path
from typing import Any, Self

from efficientdet.training.state import checkpoint
from efficientdet.training.step import State


class CheckpointWriter:
    """Writes the checkpoints of one run; as a context, it ends when the last one is written."""

    def __init__(self, folder: Path, model: Any, facts: dict[str, Any], keep: int):
        """Writes nothing yet.

        Args:
            folder: checkpoints of the run.
            model: names the arrays.
            facts: JSON values that each checkpoint carries, for people and programs that have only the file.
            keep: newest checkpoints kept.
        """
        self._folder, self._model, self._facts, self._keep = folder, model, facts, keep
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._current: concurrent.futures.Future[Path] | None = None

    def write(self, state: State, progress: dict[str, Any], best_step: int | None) -> None:
        """Begins to write a checkpoint, once the one before is written.

        Args:
            state: NumPy arrays that nobody else changes.
            progress: JSON values that resume needs.
            best_step: step whose checkpoint is kept, because it is the best so far.
        """
        self.wait()
        self._current = self._thread.submit(
            checkpoint.save,
            self._folder,
            state,
            self._model,
            progress,
            self._keep,
            best_step=best_step,
            facts=self._facts,
        )

    def check(self) -> None:
        """Raises what went wrong with a checkpoint that has ended; waits for none."""
        if self._current is not None and self._current.done():
            self.wait()

    def wait(self) -> None:
        """Waits until nothing is being written.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        current, self._current = self._current, None
        if current is not None:
            current.result()

    def newest(self) -> Path | None:
        """Finds the newest checkpoint of the folder, once the one being written is there; none: there is none."""
        self.wait()
        return checkpoint.newest(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        # A run that stops for a reason of its own says that one.
        if kind is None or issubclass(kind, SystemExit):
            self.wait()
