"""How speed and memory grow: with the batch, the image's size, its boxes, the number of shards, and the model.

Each network is OpenVINO's, by itself; each training step has a process of its own, whose peak of memory is then its own
too. Writes the figures as JSON and draws them.

    python benchmarks/growth.py --records records/ --output benchmarks/results/growth-cpu.json \
      --image docs/images/growth.png
"""

import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro

from efficientdet import backend, errors, presets, progress
from efficientdet.benchmarks import drawn_weights, input_growth, report, timing
from efficientdet.data.records import store as record_files
from efficientdet.formats.openvino_runtime import OpenVinoRuntime
from efficientdet.storage import files
from efficientdet.training.logs import memory

Part = Literal["networks", "training", "input"]
_TURN = 1.0  # s, one call at least
_ROUNDS = 3
_TRAINING_SIDE = "256"  # px; at 512 px a processor takes seconds an image


def main(
    *,
    records: str,
    output: Path | None = None,
    image: Path | None = None,
    models: tuple[str, ...] = ("d0", "d1", "d2", "d3", "d4"),
    sides: tuple[int, ...] = (256, 384, 512, 768, 1024),
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    training_batches: tuple[int, ...] = (1, 2, 4, 8, 16),
    parts: tuple[Part, ...] = ("networks", "training", "input"),
) -> None:
    """Measures, prints and draws.

    Args:
        records: converted dataset, for the input pipeline.
        output: JSON file to write.
        image: PNG to draw.
        models: whose network is timed, one image at a time, each at its own size.
        sides: px of square images that the first model looks at.
        batches: images a call of the first model, at its own size.
        training_batches: images an update of the first model, at 256 px.
        parts: what to measure; of the others the rows in `output` stay.
    """
    backend.choose("tensorflow")
    measured: dict[str, Iterator[dict[str, Any]]] = {
        "training": (_training(models[0], size) for size in training_batches),
        "input": _input(records),
        "networks": itertools.chain(
            ({"what": "batch", **row} for row in _networks(models[:1], None, batches)),
            ({"what": "side", **row} for row in _networks(models[:1], sides, (1,))),
            ({"what": "model", **row} for row in _networks(models, None, (1,))),
        ),
    }
    rows: list[dict[str, Any]] = []
    with progress.track("Measuring", None) as bar:
        for part in (part for part in measured if part in parts):
            for row in measured[part]:
                rows.append(row)
                bar.advance(note=f"{row['what']}: {row['value']}")
    if output is not None and output.exists():
        found = {row["what"] for row in rows}
        rows += [row for row in json.loads(output.read_text())["rows"] if row["what"] not in found]
    for row in rows:
        print(json.dumps(row))
    if output is not None:
        files.write_json(output, {"rows": rows, **report.circumstances()})
    if image is not None:
        _draw(rows, image)


def _networks(models: tuple[str, ...], sides: tuple[int, ...] | None, batches: tuple[int, ...]) -> Iterator[dict]:
    """Times networks alone, one after the other; `value` is what has several values."""
    for model in models:
        with drawn_weights.weights_of(model) as location:
            for side in sides or (None,):
                runtime = OpenVinoRuntime(location, image_size=side and (side, side))
                memory.trim()
                before = memory.resident() or 0.0
                for batch in batches:
                    shape = (batch, *runtime.image_size, 3)
                    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
                    valid_size = np.array([runtime.image_size] * batch, np.int32)
                    rates = timing.in_turns({"": lambda: _turn(runtime, images, valid_size)}, _ROUNDS)[""]  # noqa: B023
                    value = model if len(models) > 1 else side or batch
                    grown = round((memory.resident() or 0.0) - before, 1)
                    yield {"value": value, "speed": timing.spread(rates), "memory_mb": grown}


def _turn(runtime: OpenVinoRuntime, images: np.ndarray, valid_size: np.ndarray) -> float:
    """Works for a while: images/s."""
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < _TURN:
        runtime.predict(images, valid_size)
        calls += 1
    return len(images) * calls / spent


def _input(records: str) -> Iterator[dict[str, Any]]:
    """Times the input pipeline."""
    for row in input_growth.measure(record_files.open_records(records, "train"), batch_size=16, rounds=_ROUNDS):
        yield {"what": row.pop("what"), "value": row.pop("value"), "speed": row}


def _training(model: str, batch: int) -> dict[str, Any]:
    """Times updates in a process of their own."""
    assert model in presets.MODELS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        words = f"train --preset {model} --image-size {_TRAINING_SIDE} {_TRAINING_SIDE} --batch-sizes {batch}".split()
        rounds = ["--rounds", str(_ROUNDS), "--warmup", "1"]
        command = [sys.executable, "-m", "efficientdet", "benchmark", *words, *rounds, "--output", str(path)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise errors.UserError(f"`{' '.join(command)}` failed: {ended.stderr.strip()[-400:]}")
        row = json.loads(path.read_text())["rows"][0]
    return {
        "what": "training batch",
        "value": batch,
        "speed": row["images_per_second"],
        "memory_mb": row["peak_memory_mb"],
    }


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws one panel for each thing that grows."""
    panels = {
        "model": "D0 to D4, each at its own size",
        "side": "network, px of a side",
        "batch": "network, images a call",
        "training batch": "training at 256 px, images an update",
        "images/s, by image size": "input pipeline, px of a side",
        "images/s, by boxes an image": "input pipeline, boxes an image",
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
