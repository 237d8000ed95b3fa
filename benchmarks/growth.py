"""How speed and memory grow: with the batch, the picture's size, its boxes, the number of shards, and the model.

Runs `efficientdet benchmark` again and again, each time in a process of its own, whose memory is then its own too;
writes the figures as JSON and draws them.

    python benchmarks/growth.py --records records/ --output benchmarks/results/growth-cpu.json \
      --picture docs/images/growth.png
"""

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tyro

from efficientdet import errors, files, progress
from efficientdet.benchmarks import report

_BATCHES = ("1", "4", "16")
_TRAINING_BATCHES = ("1", "4", "16")
_TRAINING_SIDE = "256"  # px; at 512 px a processor takes seconds a picture
_SIDES = ("256", "512", "1024")
_MODELS = ("d0", "d1", "d2", "d3", "d4")
_SHORT = ("--rounds", "3")


def main(
    *,
    records: str = "",
    output: Path | None = None,
    picture: Path | None = None,
    models: tuple[str, ...] = _MODELS,
    sides: tuple[str, ...] = _SIDES,
    batches: tuple[str, ...] = _BATCHES,
    training_batches: tuple[str, ...] = _TRAINING_BATCHES,
) -> None:
    """Measures, prints and draws.

    Args:
        records: converted dataset for the input pipeline; generated pictures if not given.
        output: JSON file to write.
        picture: PNG to draw.
        models: whose network is timed, one picture at a time, each at its own size.
        sides: px of square pictures that the first model looks at.
        batches: pictures a call of the first model, at its own size.
        training_batches: pictures an update of the first model, at 256 px.
    """
    inference = ["inference", *_SHORT, "--runtimes", "openvino", "--precisions", "float32", "--turn-seconds", "0.5"]
    commands: list[tuple[str, str, list[str]]] = [
        *(("model", name, [*inference[:1], name, *inference[1:]]) for name in models),
        *(("side", side, ["inference", models[0], *inference[1:], "--image-size", side, side]) for side in sides),
        *(("batch", size, ["inference", models[0], *inference[1:], "--batch-sizes", size]) for size in batches),
        *(
            ("training batch", size, ["train", "--preset", models[0], *_SHORT, "--warmup", "1", "--batch-sizes", size])
            for size in training_batches
        ),
        ("input", "", ["input", *([records] if records else []), *_SHORT, "--growth"]),
    ]
    rows: list[dict[str, Any]] = []
    with progress.track("Measuring", len(commands)) as bar:
        for what, value, words in commands:
            if what == "training batch":
                words += ["--image-size", _TRAINING_SIDE, _TRAINING_SIDE]
            rows += _rows(what, value, _run(words))
            bar.advance(note=f"{what} {value}")
    for row in rows:
        print(json.dumps(row))
    if output is not None:
        files.write_json(output, {"rows": rows, **report.circumstances()})
    if picture is not None:
        _draw(rows, picture)


def _run(words: list[str]) -> dict[str, Any]:
    """Runs a benchmark in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "efficientdet", "benchmark", *words, "--output", str(path)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise errors.UserError(f"`{' '.join(command)}` failed: {ended.stderr.strip()[-400:]}")
        return json.loads(path.read_text())


def _rows(what: str, value: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Takes out of a result what grows."""
    if what == "input":
        return [{"what": row.pop("what"), "value": row.pop("value"), "speed": row} for row in result["growth"]]
    if what == "training batch":
        row = result["rows"][0]
        memory = row["peak_memory_mb"]
    else:
        row = next(row for row in result["rows"] if row["part"] == "network")
        memory = result["resident_mb"].get("openvino float32")
    key: Any = int(value) if value.isdigit() else value
    return [{"what": what, "value": key, "speed": row["images_per_second"], "memory_mb": memory}]


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws one panel for each thing that grows."""
    panels = {
        "model": "D0 to D4, each at its own size",
        "side": "network, px of a side",
        "batch": "network, pictures a call",
        "training batch": "training at 256 px, pictures an update",
        "images/s, by image size": "input pipeline, px of a side",
        "images/s, by boxes a picture": "input pipeline, boxes a picture",
    }
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for (what, title), axis in zip(panels.items(), axes.flat, strict=True):
        found = [row for row in rows if row["what"] == what]
        places = range(len(found))
        middle = [row["speed"]["median"] for row in found]
        spread = [
            [m - row["speed"]["min"] for m, row in zip(middle, found, strict=True)],
            [row["speed"]["max"] - m for m, row in zip(middle, found, strict=True)],
        ]
        axis.errorbar(places, middle, spread, marker="o", capsize=3, color="tab:blue")
        axis.set_xticks(list(places), [str(row["value"]) for row in found])
        axis.set_ylim(0)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("images/s", color="tab:blue")
        axis.grid(alpha=0.3)
        if what in ("batch", "training batch"):
            right = axis.twinx()
            right.plot(places, [row["memory_mb"] for row in found], marker="s", color="tab:orange")
            right.set_ylim(0)
            right.set_ylabel("memory, MB", color="tab:orange")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    files.write_aside(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


if __name__ == "__main__":
    tyro.cli(main)
