"""Checkpoints written in the background: a step waits for a copy to memory, not for the disk.

At most one checkpoint is being written; the next one waits for it. An error in the thread is raised in the run
unchanged, at the next step or at the end.
"""

import concurrent.futures
from pathlib import Path
from typing import Any, Self

from efficientdet.training.state import checkpoint
from efficientdet.training.step import State


class CheckpointWriter:
    """Writes the checkpoints of one run; as a context manager, it exits once the last one is written."""

    def __init__(self, folder: Path, model: Any, facts: dict[str, Any], keep: int):
        """Starts the thread; writes nothing yet.

        Args:
            folder: folder of the run's checkpoints.
            model: provides the names of the arrays.
            facts: JSON values stored in each checkpoint, for people and programs that have only the file.
            keep: number of newest checkpoints to keep.
        """
        self._folder, self._model, self._facts, self._keep = folder, model, facts, keep
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._current: concurrent.futures.Future[Path] | None = None

    def write(self, state: State, progress: dict[str, Any], best_step: int | None) -> None:
        """Starts writing a checkpoint once the previous one is written.

        Args:
            state: NumPy arrays that nothing else modifies.
            progress: JSON values needed to resume.
            best_step: step of the best checkpoint so far, which is kept.
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
        """Raises the error of a checkpoint that failed; does not wait for one still being written."""
        if self._current is not None and self._current.done():
            self.wait()

    def wait(self) -> None:
        """Waits until no checkpoint is being written.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        current, self._current = self._current, None
        if current is not None:
            current.result()

    def newest(self) -> Path | None:
        """Waits for the checkpoint being written and returns the newest one of the folder, or None."""
        self.wait()
        return checkpoint.newest(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        # If the run already fails with another error, that one is reported.
        if kind is None or issubclass(kind, SystemExit):
            self.wait()
