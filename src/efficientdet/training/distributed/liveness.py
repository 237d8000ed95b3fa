"""Heartbeats: how the processes of a run find out which of them did not start or has died.

A collective operation waits for all processes, forever if one has died, and names none; JAX aborts a process at once
when process 0 dies. So each process writes a heartbeat file to the run folder every two seconds and reads those of the
others. A process is alive while its file changes and dead if it hasn't changed for thirty seconds; no clocks are
compared. A process that exits on its own says so in its last heartbeat.

Uses only the standard library: the process that explains another one's death must start quickly.
"""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from efficientdet.errors import UserError

FOLDER = ".processes"
LOST_STATUS = 75
"""Exit status after another process of the run was lost; the same command resumes (EX_TEMPFAIL, sysexits.h)."""

_BEAT_SECONDS = 2.0
_SILENT_SECONDS = 30.0
_STOPPED_SECONDS = 60.0  # within which the others stop too if a scheduler stopped them all
_ALIVE, _DONE, _STOPPED, _FAILED = "alive", "done", "stopped", "failed"


@dataclasses.dataclass(frozen=True)
class Lost:
    """What is known about a process that was lost."""

    line: str
    """A sentence that names it."""
    status: int
    """Exit status for the remaining processes: 75 if the same command resumes, 1 if an error must be fixed first."""


class Signs:
    """The heartbeats of one process. A thread writes them and reads those of the others."""

    def __init__(self, folder: Path, index: int, count: int):
        """Starts writing heartbeats.

        Args:
            folder: run folder, visible to all processes; created if missing.
            index: number of this process, from 0.
            count: number of processes.

        Raises:
            UserError: the folder cannot be written.
        """
        self._folder, self._count = folder, count
        self._own = folder / FOLDER / str(index)
        self._others = _Others(folder / FOLDER, [number for number in range(count) if number != index])
        self._on_lost: Callable[[Lost], None] | None = None
        self._ended = threading.Event()
        try:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            self._write(_ALIVE, "0")
        except OSError as error:
            raise UserError(f"`{folder}` cannot be written: {error.strerror}; use another `--run-dir`.") from error
        # JAX aborts the others when process 0 dies. Process 0 survives the others and reports a lost one itself.
        self._explainer = _start_explainer(folder, index, count) if index else None
        self._thread = threading.Thread(target=self._live, name="signs of life", daemon=True)
        self._thread.start()

    def wait_for_all(self, seconds: float) -> None:
        """Waits until each process has started, that is, until its heartbeat has changed.

        Raises:
            UserError: some have not started; the message names them.
        """
        deadline = time.monotonic() + seconds
        while missing := self._others.missing():
            if time.monotonic() > deadline:
                who = " and ".join(map(str, missing))
                raise UserError(
                    f"Of {self._count} processes, {who} did not start within {seconds:.0f} s or cannot see "
                    f"`{self._folder}`; all processes need the same run folder. Check their output."
                )
            time.sleep(0.1)

    def watch(self, on_lost: Callable[[Lost], None]) -> None:
        """From now on, calls `on_lost` from a thread when another process is lost."""
        self._others.settle()
        self._on_lost = on_lost

    def find_lost(self, seconds: float) -> Lost | None:
        """Waits up to `seconds` for a lost process to be detected."""
        return _wait_for_lost(self._others, seconds)

    def end(self, *, is_stopped: bool = False, failure: str = "") -> None:
        """Writes the last heartbeat.

        Args:
            is_stopped: whether a scheduler asked the process to stop.
            failure: why the process ends before the run does.
        """
        self._ended.set()
        self._thread.join()
        kind = _STOPPED if is_stopped else _FAILED if failure else _DONE
        with contextlib.suppress(OSError):  # the others will notice the missing heartbeats
            self._write(kind, failure)
        self.quiet()

    def quiet(self) -> None:
        """Dismisses the explainer because this process reports its own end."""
        _dismiss(self._explainer)

    def _live(self) -> None:
        beat = 0
        while not self._ended.wait(_BEAT_SECONDS):
            beat += 1
            with contextlib.suppress(OSError):  # the run reports a full disk, not this thread
                self._write(_ALIVE, str(beat))
            self._others.look()
            lost = self._others.lost()
            if lost and self._on_lost is not None and not self._ended.is_set():
                self._on_lost(lost)

    def _write(self, kind: str, text: str) -> None:
        """Writes in place: on a network file system, a replaced file may look old for a minute."""
        self._own.write_text(f"{kind} {socket.gethostname()}:{os.getpid()} {' '.join(text.split())}")


class _Others:
    """The other processes, as seen by this one."""

    def __init__(self, folder: Path, numbers: list[int]):
        self._folder, self._numbers = folder, numbers
        # Heartbeats left by an earlier run don't count: a process is alive only if its file changes.
        self._texts = {number: self._read(number) for number in numbers}
        self._changed: dict[int, float] = {}
        self._names: dict[int, str] = {}

    def look(self) -> None:
        """Reads all heartbeats once."""
        for number in self._numbers:
            text = self._read(number)
            if text and text != self._texts[number]:
                self._texts[number] = text
                self._changed[number] = time.monotonic()
                self._names.setdefault(number, _parts(text)[1])

    def settle(self) -> None:
        """Takes the processes that are alive now as those of this run."""
        self._names = {number: _parts(self._texts[number])[1] for number in self._changed}

    def missing(self) -> list[int]:
        """Reads the heartbeats and lists the processes that have not started."""
        self.look()
        return [number for number in self._numbers if number not in self._changed]

    def lost(self, *, is_failing: bool = False) -> Lost | None:
        """Returns a process that was lost, or None.

        Args:
            is_failing: whether this process has already failed, so that a stopped process must be the cause.
        """
        for number, since in list(self._changed.items()):  # another thread may call `look`
            kind, name, reason = _parts(self._texts[number])
            silent = time.monotonic() - since
            if name != self._names[number]:
                return Lost(f"process {number} ({self._names[number]}) was restarted as {name}.", LOST_STATUS)
            if kind == _FAILED:
                return Lost(f"process {number} ({name}) failed: {reason}", 1)
            if kind == _STOPPED and (is_failing or silent > _STOPPED_SECONDS):
                return Lost(f"process {number} ({name}) was asked to stop; this one is stopping too.", LOST_STATUS)
            if kind == _ALIVE and silent > _SILENT_SECONDS:
                line = (
                    f"process {number} ({name}) has not responded for {_SILENT_SECONDS:.0f} s; this one is stopping. "
                    f"Start all processes again with the same command; {_start_of(self._folder.parent)}"
                )
                return Lost(line, LOST_STATUS)
        return None

    def _read(self, number: int) -> str:
        try:
            return (self._folder / str(number)).read_text()
        except OSError:
            return ""


def _start_of(run_dir: Path) -> str:
    """Says where the same command would resume."""
    names = sorted(path.name for path in run_dir.glob("checkpoints/step-*"))
    return f"they resume from {names[-1]}." if names else "no checkpoint was saved yet, so they start from step 0."


def _parts(text: str) -> tuple[str, str, str]:
    """Splits a heartbeat into kind, name of the process, and text."""
    kind, _, rest = text.partition(" ")
    name, _, text = rest.partition(" ")
    return kind, name, text


def _wait_for_lost(others: _Others, seconds: float) -> Lost | None:
    deadline = time.monotonic() + seconds
    while not (lost := others.lost(is_failing=True)) and time.monotonic() < deadline:
        time.sleep(0.2)
        others.look()
    return lost


def explain_end(folder: str, index: str, count: str) -> None:
    """Waits until a process ends; if it ended without a message, prints which process of the run was lost.

    Runs as the main function of a separate process: when process 0 dies, JAX aborts all others within milliseconds.

    Args:
        folder: run folder.
        index: number of the watched process.
        count: number of processes.
    """
    others = _Others(Path(folder) / FOLDER, [number for number in range(int(count)) if number != int(index)])
    heard: list[str] = []
    has_ended = threading.Event()

    def listen() -> None:
        heard.append(sys.stdin.read())  # until the process closes it, or dies
        has_ended.set()

    threading.Thread(target=listen, daemon=True).start()
    while not has_ended.wait(_BEAT_SECONDS):
        others.look()
    if _DONE in heard:
        return
    lost = _wait_for_lost(others, _SILENT_SECONDS + 3 * _BEAT_SECONDS)
    if lost is not None:
        print(f"process {index}: {lost.line}", file=sys.stderr, flush=True)


def _start_explainer(folder: Path, index: int, count: int) -> "subprocess.Popen[str] | None":
    """Starts `explain_end` for this process in a new session, out of reach of Ctrl-C."""
    program = "import sys; from efficientdet.training.distributed import liveness; liveness.explain_end(*sys.argv[1:])"
    words = [sys.executable, "-c", program, str(folder), str(index), str(count)]
    try:
        return subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
    except OSError:
        return None  # without it, JAX's own message has to do


def _dismiss(explainer: "subprocess.Popen[str] | None") -> None:
    """Tells the explainer that there is nothing to explain."""
    if explainer is None or explainer.stdin is None or explainer.stdin.closed:
        return
    try:
        explainer.stdin.write(_DONE)
        explainer.stdin.close()
        explainer.wait(timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        explainer.kill()
