"""`curves.png`: losses, learning rate and AP of a run by epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.storage import files

_MANY_POINTS = 60  # curves with at least this many points are smoothed, on top of the faint raw curve
_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#475569")


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plots losses, learning rate and AP by epoch as a PNG, written to a temporary file and renamed.

    Args:
        lines: as returned by `metrics.read_lines`.
        path: path of the image.
    """
    # The object-oriented interface needs no window system and no global state. Importing matplotlib takes a second.
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
    """Draws each name in one color: training as a line, validation dashed with a mark at each point."""
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
                # With a single name, validation can have its own color.
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
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", color="grey")


def _series(lines: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Collects epochs and values of one curve, float64[n] each; skips null values."""
    found = [(line["epoch"], line["values"].get(name)) for line in lines if line["kind"] == kind]
    points = np.array([point for point in found if point[1] is not None], np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Averages each value with its neighbors, over a fiftieth of the curve; over fewer at the ends."""
    reach = max(2, len(values) // 100)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    first, last = np.maximum(positions - reach, 0), np.minimum(positions + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _use_logarithm(axes: Any) -> None:
    """Gives a panel a log scale with plain tick labels if all values are above 0."""
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
