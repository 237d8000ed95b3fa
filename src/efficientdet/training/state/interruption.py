"""SIGTERM and SIGUSR1 of a scheduler that wants its machine back, and Ctrl-C: a run finishes its step, saves and ends.

After a scheduler's signal it exits with status 75; after Ctrl-C with 130, as a KeyboardInterrupt. Before the first step
is done there is nothing to save, and the run ends at once; so it does while it converts or compiles. A second signal
ends the process without a word, if it comes a second later or more: a scheduler signals every process of a job, and a
process that waits for another one passes its own signal on. A second Ctrl-C may come sooner; where Python is
interactive, as in a notebook, it raises KeyboardInterrupt and the process stays. Of several processes of a run any may
be asked: all end after the same step.
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
"""Exit status: the same command goes on (EX_TEMPFAIL of sysexits.h). A scheduler can requeue on it."""
STOPPED_STATUS = 128 + signal.SIGINT
"""Exit status after Ctrl-C, the shells' own. The same command goes on, but nobody should requeue."""

_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
# Signals that come closer are one, s.
_TOGETHER_SECONDS = 1.0
_KEYS_TOGETHER_SECONDS = 0.2
_SILENT_SECONDS = 0.5  # in which what can end at once has ended


class Interrupted(SystemExit):
    """Ends the run with status 75."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class Stopped(KeyboardInterrupt):
    """Ends the run after Ctrl-C; what there is to say has been said."""

    def __init__(self) -> None:
        super().__init__("stopped; the same call goes on")


class Interruption:
    """What a scheduler, or somebody at the keyboard, asked for so far."""

    def __init__(self) -> None:
        self.name = ""
        """The signal that came; empty: none."""
        self.saved_step: int | None = None
        """Step that was saved because of it."""
        self.can_wait = False
        """The run looks at `name` by itself; until then a signal ends it at once."""
        self.say: Callable[[str], None] = progress.console.print
        """Shows a line."""

    def receive(self, number: int, frame: Any) -> None:
        """Notes a signal, in the main thread."""
        if not self.name:
            self.name = signal.Signals(number).name
            if not self.can_wait:
                raise self.end()
        elif number == signal.SIGINT and _is_interactive():
            raise KeyboardInterrupt

    def end(self, saved_step: int | None = None) -> BaseException:
        """Returns what to raise.

        Args:
            saved_step: the step whose checkpoint is being written because of the signal.
        """
        self.saved_step = saved_step
        return Stopped() if self.name == "SIGINT" else Interrupted()

    def text(self) -> str:
        """Says that the run stopped, and how it goes on."""
        name = {"SIGINT": "Ctrl-C", "": "a signal"}.get(self.name, self.name)
        status = STOPPED_STATUS if self.name == "SIGINT" else STATUS
        saved = "" if self.saved_step is None else f" after step {self.saved_step}, which is saved"
        return f"{name}: stopped{saved}; the same command goes on (status {status})"

    def announce(self) -> None:
        """Says what the first Ctrl-C does, and the second."""
        now = "finishing this step, then saving" if self.can_wait else "ending as soon as this can be left"
        with contextlib.suppress(UserError):  # log.txt cannot be written; the run will say so
            self.say(f"Ctrl-C: {now}; Ctrl-C again ends at once")

    def is_wanted(self) -> bool:
        """Tells whether this process was asked to end. Several have to agree on it: their step counts who was."""
        return bool(self.name)

    def guard(self, items: Iterable[Any]) -> Iterator[Any]:
        """Gives the items of work that may be left off, and leaves it off when a signal has come."""
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
    """Ends the process when a second signal comes, and answers the first Ctrl-C.

    A thread of its own, since Python's handlers wait as long as the main thread is inside a step or a compiler.
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
    """Says whether the process outlives a KeyboardInterrupt: a prompt, or a notebook (IPython sets `ps1` too)."""
    return hasattr(sys, "ps1")
