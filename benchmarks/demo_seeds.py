"""How good is `efficientdet demo` from one seed to the next, and how long does it take?

    python benchmarks/demo_seeds.py --output benchmarks/results/demo.json

Each seed draws its own images and trains its own detector; each is a process of its own. Demos that are done are kept
in `--work` and not run again. Minutes mean something only if nothing else runs on the machine.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import tyro

from efficientdet import backend
from efficientdet.benchmarks import report
from efficientdet.storage import files


def main(*, output: Path, work: Path = Path("demos"), seeds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
    """Runs the demo from each seed and writes AP, AP50 and minutes.

    Args:
        output: JSON file to write.
        work: folder for the demos.
        seeds: of images and training.
    """
    backend.choose()
    rows = []
    for seed in seeds:
        folder = work / f"seed-{seed}"
        if not _is_done(folder):
            words = ["demo", "--output", str(folder), "--seed", str(seed)]
            subprocess.run([sys.executable, "-m", "efficientdet", *words], check=True)
        rows.append({"seed": seed, **_read(folder)})
    table = {
        "what": "`efficientdet demo`: AP on 400 test images that training never saw, other images for each seed",
        **{name: _spread([row[name] for row in rows]) for name in ("AP", "AP50", "minutes")},
        "rows": rows,
        **report.circumstances(),
    }
    files.write_json(output, table)
    print(json.dumps({name: table[name] for name in ("AP", "AP50", "minutes")}, indent=1))


def _is_done(folder: Path) -> bool:
    file = folder / "demo.json"
    return file.is_file() and "evaluation" in json.loads(file.read_text())


def _read(folder: Path) -> dict[str, object]:
    """Reads what a demo found."""
    found = json.loads((folder / "demo.json").read_text())
    evaluation, summary = found["evaluation"], json.loads((folder / "run" / "summary.json").read_text())
    return {
        "AP": evaluation["metrics"]["AP"],
        "AP50": evaluation["metrics"]["AP50"],
        "AP50_interval": evaluation["intervals"]["AP50"],
        "images": evaluation["num_images"],
        "steps": summary["steps"],
        "minutes": found["seconds"] / 60,
        "warnings": summary["warnings"],
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    tyro.cli(main)
