"""What a run writes about itself: `metrics.jsonl`, TensorBoard events, `curves.png`.

A line of `metrics.jsonl` is one JSON object: `kind` ("train", "validation"), `step`, `epoch` (a fraction), `time`
(seconds since 1970), `values` (name -> number; null where it was not finite or could not be measured).
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from efficientdet import files
from efficientdet.errors import UserError

LINES_FILE, EVENTS_FOLDER, CURVES_FILE = "metrics.jsonl", "tensorboard", "curves.png"

_MANY_POINTS = 60  # from here on a curve is drawn smoothed over its faint self
_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#475569")


class MetricsWriter:
    """Writes the metrics of one run. Of the processes of a run, one writes; the others' writers are silent."""

    def __init__(self, run_dir: Path, resume_step: int = 0, *, evaluates_again: bool = False, is_silent: bool = False):
        """Opens the files; what an earlier process wrote beyond `resume_step` is cut away, so no step appears twice.

        Args:
            run_dir: made where it is missing.
            resume_step: last step whose results the run goes on from; 0: a run from the beginning.
            evaluates_again: the evaluation after that step comes again; its line goes too.
            is_silent: write nothing.
        """
        self._run_dir = run_dir
        self._events: Any = None
        self._lines: Any = None
        if is_silent:
            return
        # TensorBoard events are a convenience of training alone; evaluate and predict do not pay for the import.
        from tensorboardX import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        _cut(run_dir / LINES_FILE, resume_step, resume_step - evaluates_again)
        events = run_dir / EVENTS_FOLDER
        purge_step = resume_step + 1 if events.exists() else None
        self._events = SummaryWriter(str(events), purge_step=purge_step, flush_secs=10)
        self._lines = (run_dir / LINES_FILE).open("a", encoding="utf-8")

    def write(self, kind: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Appends one line, and its finite numbers as TensorBoard scalars `<kind>/<name>`.

        Args:
            kind: "train" or "validation".
            step: updates done.
            epoch: passes over the training pictures done, a fraction.
            values: name -> number, or none where there is nothing to measure.
        """
        if self._lines is None or self._events is None:
            return
        numbers = {name: None if value is None else float(value) for name, value in values.items()}
        finite = {
            name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()
        }
        line = {"kind": kind, "step": step, "epoch": round(epoch, 6), "time": round(time.time(), 3), "values": finite}
        with files.explained(self._run_dir / LINES_FILE):
            self._lines.write(json.dumps(line, allow_nan=False) + "\n")
            self._lines.flush()
        for name, value in finite.items():
            if value is not None:
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Adds a picture (uint8[H, W, 3], RGB) to the TensorBoard events."""
        if self._events is not None:
            self._events.add_image(tag, image, step, dataformats="HWC")
            self._events.flush()

    def save_curves(self) -> None:
        """Draws all lines so far into `curves.png`; a reader finds the old picture or the new one, never half of it."""
        if self._lines is None:
            return
        draw_curves(read_lines(self._run_dir / LINES_FILE), self._run_dir / CURVES_FILE)

    def close(self) -> None:
        """Writes what is still in memory and closes the files."""
        with files.explained(self._run_dir / LINES_FILE):  # a line that could not be written is tried again
            for file in (self._events, self._lines):
                if file is not None:
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            message = f"`{path}` line {number} is not a line of metrics; mend it, remove it, or move the file away."
            raise UserError(message) from error
    return lines


def _cut(path: Path, last_step: int, last_evaluation: int) -> None:
    """Keeps the lines up to these steps; written aside and renamed, so that no moment shows half a file."""
    if path.exists():
        last = {"validation": last_evaluation}
        kept = [line for line in read_lines(path) if line["step"] <= last.get(line["kind"], last_step)]
        aside = path.with_name(path.name + ".new")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws losses, learning rate and AP over epochs as a PNG, written aside and renamed.

    Args:
        lines: as `read_lines` gives them.
        path: of the picture.
    """
    # The object-oriented interface: no window system, no global state. matplotlib takes a second to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2)
    names = list(dict.fromkeys(name for line in lines for name in line["values"]))
    _draw_panel(panels[0, 0], "loss", ["loss"], lines)
    _draw_panel(panels[0, 1], "average precision", ["AP", "AP50"], lines)
    _draw_panel(panels[1, 0], "parts of the loss", [name for name in names if name.endswith("_loss")], lines)
    _draw_panel(panels[1, 1], "learning rate", ["learning_rate"], lines)
    for panel in panels[0, 0], panels[1, 0]:
        _use_logarithm(panel)
    last_epoch = max((line["epoch"] for line in lines), default=1.0)
    for panel in panels.flat:
        panel.set_xlim(0, last_epoch * 1.02 or 1)
    panels[0, 1].set_ylim(0, 1)
    panels[1, 1].set_ylim(bottom=0)
    files.write_aside(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_panel(axes: Any, title: str, names: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    """Draws each name as one colour: training as a line, validation dashed with a mark at each point."""
    kinds = list(dict.fromkeys(line["kind"] for line in lines))
    for number, name in enumerate(names):
        colour = _COLOURS[number % len(_COLOURS)]
        for kind in kinds:
            epochs, values = _series(lines, kind, name)
            if not len(values):
                continue
            label = kind if len(names) == 1 else f"{name}, {kind}"
            style = {"color": colour, "label": label, "linewidth": 1.6}
            if kind != "train":
                marker = "o" if len(values) < _MANY_POINTS else None
                # A single name has room for a second colour.
                colour_of_kind = _COLOURS[1] if len(names) == 1 else colour
                axes.plot(
                    epochs, values, **style | {"color": colour_of_kind}, linestyle="--", marker=marker, markersize=4
                )
            elif len(values) < _MANY_POINTS or name == "learning_rate":
                axes.plot(epochs, values, **style, marker="o" if len(values) < 3 else None, markersize=4)
            else:
                axes.plot(epochs, values, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(epochs, _smooth(values), **style)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epochs")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    else:
        axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", color="grey")


def _series(lines: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Collects epochs and values of one curve, float64[n] each; what is null is left out."""
    found = [(line["epoch"], line["values"].get(name)) for line in lines if line["kind"] == kind]
    points = np.array([point for point in found if point[1] is not None], np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Averages each value with its neighbours, a fiftieth of the curve together; fewer at the ends."""
    reach = max(2, len(values) // 100)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    first, last = np.maximum(positions - reach, 0), np.minimum(positions + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _use_logarithm(axes: Any) -> None:
    """Scales a panel of losses by the logarithm, with plain numbers beside it, where all values are above 0."""
    values = [value for line in axes.lines for value in line.get_ydata()]
    if not values or min(values) <= 0:
        return
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    wide = max(values) / min(values) > 30
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
