"""Does memory stay flat over a long run? 2,000 steps of a small model, evaluations and checkpoints included.

`efficientdet train` runs once a backend: TensorFlow on records, JAX on generated images. Each line of metrics.jsonl
has the resident memory of the process. A straight line is fitted to what comes after the first 200 steps, in which
everything is compiled and every buffer grows to its size; its slope times 1,800 steps must stay under 20 MB. Writes the
figures as JSON.

    python benchmarks/memory.py --output benchmarks/results/memory-2000-steps.json
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from efficientdet.benchmarks import report
from efficientdet.data import conversion, synthetic
from efficientdet.storage import files
from efficientdet.training.logs import metrics

_COMMAND = (
    "train demo --model.image-size 64 64 --model.backbone.width 0.25 --model.backbone.depth 0.25 "
    "--model.backbone.survival 0.8 --model.num-cells 1 --model.head-repeats 1 --model.feature-channels 8 "
    "--training.batch-size 4 --training.log-every 20 --training.checkpoint-every 100"
)
_IMAGES = {"train": 64, "val": 64}
_STEPS_PER_EPOCH = 16
_LIMIT = 20.0  # MB over the fitted steps


def main(
    *,
    output: Path,
    steps: int = 2000,
    warmup_steps: int = 200,
    evaluate_every: int = 200,
    backends: tuple[str, ...] = ("tensorflow", "jax"),
) -> None:
    """Runs and writes the table; fails if memory grows.

    Args:
        output: JSON file to write.
        steps: of each run.
        warmup_steps: left out of the fit.
        evaluate_every: steps between evaluations.
        backends: Keras's; tensorflow reads records, jax generated images.
    """
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_coco_folder(folder / "images", _IMAGES, (64, 64), 0)
        conversion.convert("coco", folder / "images", output=folder / "records", num_workers=1, val_fraction=0)
        for backend in backends:
            data = str(folder / "records") if backend == "tensorflow" else "synthetic"
            run = folder / backend
            words = [*_COMMAND.split(), "--training.epochs", str(steps / _STEPS_PER_EPOCH)]
            words += ["--training.evaluate-every", str(evaluate_every / _STEPS_PER_EPOCH)]
            words += ["--data.train", data, "--data.synthetic-examples", str(_IMAGES["train"])]
            words += ["--backend", backend, "--run-dir", str(run)]
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "efficientdet", *words], check=True)
            rows[backend] = {"data": data if data == "synthetic" else "records", **_row(run, warmup_steps)}
            rows[backend]["seconds"] = round(time.monotonic() - began)
            files.write_json(output, _table(rows, warmup_steps))
            print(json.dumps({key: value for key, value in rows[backend].items() if key != "resident_mb"}), flush=True)
    if not all(row["is_flat"] for row in rows.values()):
        sys.exit(f"memory grows by {_LIMIT:g} MB or more; see {output}.")


def _row(run: Path, warmup_steps: int) -> dict[str, Any]:
    """Reads the memory of a run from its lines and fits the slope."""
    lines = metrics.read_lines(run / metrics.LINES_FILE)
    points = [(line["step"], line["values"]["resident_memory"]) for line in lines if line["kind"] == "train"]
    steps, resident = np.array([point for point in points if point[0] > warmup_steps]).T
    growth = float(np.polyfit(steps, resident, 1)[0]) * float(steps[-1] - warmup_steps)
    return {
        "steps": int(steps[-1]),
        "evaluations": sum(line["kind"] == "validation" for line in lines),
        "fitted_growth_mb": round(growth, 2),
        "is_flat": growth < _LIMIT,
        "resident_mb": {int(step): round(value, 1) for step, value in points},
    }


def _table(rows: dict[str, Any], warmup_steps: int) -> dict[str, Any]:
    """Arranges what is known so far."""
    return {
        "what": f"resident memory of a run, MB; fitted growth from step {warmup_steps} to the end",
        "rows": rows,
        **report.circumstances(),
    }


if __name__ == "__main__":
    tyro.cli(main)
