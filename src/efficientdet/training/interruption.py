"""SIGTERM and SIGUSR1: a scheduler wants its machine back. The run finishes the step, saves, and exits with status 75.

Before the first step is done there is nothing to save, and the run ends at once; so it does while it converts or
compiles. A second signal ends the process without a word, if it comes a second later or more: a scheduler signals every
process of a job, and a process that waits for another one passes its own signal on. Ctrl-C stays Python's. Of several
processes of a run any may be asked: all end after the same step.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from efficientdet import progress

STATUS = 75
"""Exit status: the same command goes on (EX_TEMPFAIL of sysexits.h). A scheduler can requeue on it."""

_NAMES = ("SIGTERM", "SIGUSR1")
_TOGETHER_SECONDS = 1.0  # signals that come closer are one


class Interrupted(SystemExit):
    """Ends the run with status 75."""

    def __init__(self) -> None:
        """Sets the status."""
        super().__init__(STATUS)


class Interruption:
    """What a scheduler asked for so far."""

    def __init__(self) -> None:
        """Nothing has come."""
        self.name = ""
        """The signal that came; empty: none."""
        self.can_wait = False
        """The run looks at `name` by itself; until then a signal ends it at once."""
        self.say: Callable[[str], None] = progress.console.print
        """Shows a line."""

    def receive(self, number: int, frame: Any) -> None:
        """Notes a signal, in the main thread."""
        if not self.name:
            self.name = signal.Signals(number).name
            if not self.can_wait:
                raise Interrupted

    def is_wanted(self) -> bool:
        """Tells whether this process was asked to end. Several have to agree on it: their step counts who was."""
        return bool(self.name)

    def guard(self, items: Iterable[Any]) -> Iterator[Any]:
        """Gives the items of work that may be left off, and leaves it off when a signal has come."""
        for item in items:
            if self.name:
                raise Interrupted
            yield item


@contextlib.contextmanager
def caught() -> Iterator[Interruption]:
    """Catches the signals while the block runs, if it runs in the main thread; only there Python can."""
    interruption = Interruption()
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows has no SIGUSR1
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    with _ended_by_the_second(numbers):
        before = {number: signal.signal(number, interruption.receive) for number in numbers}
        try:
            yield interruption
        except Interrupted:
            interruption.say(f"{interruption.name or 'a signal'}: stopped; the same command goes on (status {STATUS})")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _ended_by_the_second(numbers: list[int]) -> Iterator[None]:
    """Ends the process when a second signal comes.

    A thread of its own, since Python's handlers wait as long as the main thread is inside a step or a compiler.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        first: float | None = None
        while received := reader.recv(1):
            if received[0] not in numbers:
                continue
            now = time.monotonic()
            first = now if first is None else first
            if now - first >= _TOGETHER_SECONDS:
                os._exit(128 + received[0])

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # ends the thread
        thread.join()
        reader.close()
