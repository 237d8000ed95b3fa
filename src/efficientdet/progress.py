"""Progress of long work: a bar with rate and remaining time on a terminal, otherwise a line every ten seconds."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from efficientdet.errors import one_line

# Results go to standard output and progress to standard error, so that `--json` output stays clean.
console = Console(stderr=True, highlight=False)

_SECONDS_BETWEEN_LINES = 10.0


class Tracker:
    """Counts finished work and shows it. Created by `track`."""

    def __init__(self, label: str, total: int | None, unit: str, start: int, bar: Progress | None):
        """Starts counting at `start` of `total` units."""
        self._label, self._total, self._unit, self._start = one_line(label), total, unit, start
        self._done, self._bar, self._note = start, bar, ""
        self._began: float | None = None  # start of the rate: end of the first advance, which may include compilation
        self._shown = time.monotonic()
        self._task = None if bar is None else bar.add_task(self._label, total=total, completed=start, note="", rate="")

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Adds `amount` units; `note` is shown after the bar until the next note."""
        self._done += amount
        self._note = self._note if note is None else one_line(note)
        if self._began is None:
            self._began, self._start = time.monotonic(), self._done
        seconds = time.monotonic() - self._began
        rate = (self._done - self._start) / seconds if self._done > self._start else 0.0
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, note=self._note, rate=self._rate_text(rate))
        elif time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._shown = time.monotonic()
            parts = [self._done_text(), self._rate_text(rate)]
            if rate and self._total is not None and self._done < self._total:
                parts.append(f"{_clock((self._total - self._done) / rate)} left")
            text = ", ".join(part for part in (*parts, self._note) if part)
            console.print(f"{self._label}: {text}", soft_wrap=True, markup=False)

    def _done_text(self) -> str:
        if self._unit != "bytes":
            return f"{self._done}/{'?' if self._total is None else self._total}"
        total = "?" if self._total is None else f"{self._total / 1e6:.1f}"
        return f"{self._done / 1e6:.1f}/{total} MB"

    def _rate_text(self, rate: float) -> str:
        """Formats the rate; empty before the second advance, when it is unknown."""
        if not rate:
            return ""
        return f"{rate / 1e6:.1f} MB/s" if self._unit == "bytes" else f"{rate:.1f} {self._unit}/s"


@contextlib.contextmanager
def track(label: str, total: int | None, *, unit: str = "images", start: int = 0) -> Iterator[Tracker]:
    """Shows the progress of `total` units of work while the block runs.

    Args:
        label: what is being done.
        total: number of units; None if unknown.
        unit: what is counted; bytes are shown as MB.
        start: units done earlier (in a resumed run).
    """
    if not console.is_terminal:
        yield Tracker(label, total, unit, start, None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn() if unit == "bytes" else MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        yield Tracker(label, total, unit, start, bar)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
