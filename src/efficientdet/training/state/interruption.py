"""SIGTERM and SIGUSR1 from a scheduler, and Ctrl-C: the run finishes its step, saves a checkpoint and exits.

After a scheduler's signal it exits with status 75; after Ctrl-C with 130, as a KeyboardInterrupt. Before the first step
is done there is nothing to save, so the run exits at once, as it does while converting or compiling. A second signal
kills the process silently if it comes at least a second later: a scheduler signals every process of a job, and a
process that waits for another one passes on its own signal. A second Ctrl-C may come sooner; if Python is interactive,
as in a notebook, it raises KeyboardInterrupt and the process survives. In a run of several processes any of them may be
signaled; all stop after the same step.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from efficientdet import progress
from efficientdet.errors import UserError

STATUS = 75
"""Exit status of a run that the same command resumes (EX_TEMPFAIL of sysexits.h); a scheduler can requeue on it."""
STOPPED_STATUS = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as in shells. The same command resumes, but a scheduler should not requeue."""

_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
# Signals closer together than this count as one, s.
_TOGETHER_SECONDS = 1.0
_KEYS_TOGETHER_SECONDS = 0.2
_SILENT_SECONDS = 0.5  # after which a run that could exit at once has exited


class Interrupted(SystemExit):
    """Ends the run with status 75."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class Stopped(KeyboardInterrupt):
    """Ends the run after Ctrl-C; the message has already been printed."""

    def __init__(self) -> None:
        super().__init__("stopped; call again to resume")


class Interruption:
    """Signals received so far from a scheduler or from Ctrl-C."""

    def __init__(self) -> None:
        self.name = ""
        """The signal received; empty if none."""
        self.saved_step: int | None = None
        """Step that was saved because of it."""
        self.can_wait = False
        """Whether the run checks `name` itself; until then a signal ends it at once."""
        self.say: Callable[[str], None] = progress.console.print
        """Prints a line."""

    def receive(self, number: int, frame: Any) -> None:
        """Handles a signal in the main thread."""
        if not self.name:
            self.name = signal.Signals(number).name
            if not self.can_wait:
                raise self.end()
        elif number == signal.SIGINT and _is_interactive():
            raise KeyboardInterrupt

    def end(self, saved_step: int | None = None) -> BaseException:
        """Returns the exception to raise.

        Args:
            saved_step: the step whose checkpoint is being written because of the signal.
        """
        self.saved_step = saved_step
        return Stopped() if self.name == "SIGINT" else Interrupted()

    def text(self) -> str:
        """Says that the run stopped and how to resume it."""
        name = {"SIGINT": "Ctrl-C", "": "a signal"}.get(self.name, self.name)
        status = STOPPED_STATUS if self.name == "SIGINT" else STATUS
        saved = "" if self.saved_step is None else f" after saving step {self.saved_step}"
        return f"{name}: stopped{saved}; run the same command to resume (status {status})"

    def announce(self) -> None:
        """Says what the first Ctrl-C does and what a second one would do."""
        now = "finishing this step, then saving" if self.can_wait else "stopping as soon as possible"
        with contextlib.suppress(UserError):  # log.txt cannot be written; the run will report it
            self.say(f"Ctrl-C: {now}; press Ctrl-C again to quit immediately")

    def is_wanted(self) -> bool:
        """Returns whether this process was asked to stop. Several processes agree on it in their step."""
        return bool(self.name)

    def guard(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yields items of work that may be abandoned, and abandons it once a signal has arrived."""
        for item in items:
            if self.name:
                raise self.end()
            yield item


@contextlib.contextmanager
def caught() -> Iterator[Interruption]:
    """Catches the signals while the block runs, if it runs in the main thread; only there Python can."""
    interruption = Interruption()
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows has no SIGUSR1
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    with _ended_by_the_second(numbers, interruption):
        before = {number: signal.signal(number, interruption.receive) for number in numbers}
        try:
            yield interruption
        except (Interrupted, Stopped):
            interruption.say(interruption.text())
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _ended_by_the_second(numbers: list[int], interruption: Interruption) -> Iterator[None]:
    """Ends the process when a second signal arrives, and responds to the first Ctrl-C.

    Runs in its own thread because Python's handlers wait while the main thread is inside a step or a compiler.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        first: float | None = None
        while True:
            try:
                received = reader.recv(1)
            except TimeoutError:
                reader.settimeout(None)
                interruption.announce()
                continue
            if not received:
                return
            now, number = time.monotonic(), received[0]
            if number not in numbers or (number == signal.SIGINT and first is not None and _is_interactive()):
                continue
            if first is None:
                first = now
                reader.settimeout(_SILENT_SECONDS if number == signal.SIGINT else None)
            if now - first >= (_KEYS_TOGETHER_SECONDS if number == signal.SIGINT else _TOGETHER_SECONDS):
                os._exit(128 + number)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # ends the thread
        thread.join()
        reader.close()


def _is_interactive() -> bool:
    """Returns whether the process survives a KeyboardInterrupt: a prompt or a notebook (IPython sets `ps1` too)."""
    return hasattr(sys, "ps1")
