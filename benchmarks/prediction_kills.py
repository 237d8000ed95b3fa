"""Does `predict` on a folder, killed and run again, write what it writes when left alone? SIGKILL at random times.

Random weights of the preset `demo` look at small images, for each format once without interruption, then killed when a
number of sources that was drawn is done, and a random fraction of a second later; the same command goes on each time.
The files of the two output directories are compared byte by byte, of predictions.jsonl the lines of sources. Writes the
table as JSON.

    python benchmarks/prediction_kills.py --output benchmarks/results/prediction-kills.json
"""

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from efficientdet import backend
from efficientdet.benchmarks import drawn_weights, report
from efficientdet.inference import journal
from efficientdet.storage import files

_SECONDS = 1800.0  # after which a process is taken for stuck
_LATEST = 0.2  # s; of the random part


def main(
    *,
    output: Path,
    num_images: int = 2000,
    formats: tuple[str, ...] = ("json", "coco", "yolo", "voc", "labelme", "csv"),
    num_kills: int = 2,
    seed: int = 0,
) -> None:
    """Runs everything and writes the table; fails if one directory is another.

    Args:
        output: JSON file to write.
        num_images: of 64 x 64 px, as JPEG.
        formats: of `predict`, a round each.
        num_kills: of each round.
        seed: of the images and the moments.
    """
    backend.choose("tensorflow")
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, drawn_weights.weights_of("demo") as weights:
        folder = Path(name)
        _write_images(folder / "in", num_images, seed)
        # The first command converts the weights for the others.
        _finish(_start([str(weights), str(folder / "in" / "00000.jpg")], folder / "first", "json"))
        for form in formats:
            words = [str(weights), str(folder / "in")]
            rows.append(_round(words, folder / form, form, rng, num_kills=num_kills, num_images=num_images))
            print(json.dumps(rows[-1]), flush=True)
            what = "output of `predict` that was killed and run again, against one that was not"
            identical = sum(row["identical"] for row in rows)
            table = {"what": what, "images": num_images, "identical": identical, "rows": rows}
            files.write_json(output, table | report.circumstances())
    if not all(row["identical"] for row in rows):
        sys.exit(f"{sum(not row['identical'] for row in rows)} of {len(rows)} rounds differ; see {output}.")


def _write_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir()
    drawn = np.random.default_rng(seed)
    for number in range(count):
        pixels = drawn.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")


def _round(
    words: list[str], folder: Path, form: str, rng: random.Random, *, num_kills: int, num_images: int
) -> dict[str, Any]:
    """Runs the command undisturbed, then killed, and compares."""
    began = time.monotonic()
    _finish(_start(words, folder / "whole", form))
    seconds = time.monotonic() - began
    killed_at = [
        _kill(words, folder / "killed", form, lines, rng.uniform(0, _LATEST))
        for lines in sorted(rng.randrange(num_images) for _ in range(num_kills))
    ]
    _finish(_start(words, folder / "killed", form))
    whole, killed = (_digests(folder / name / "out") for name in ("whole", "killed"))
    different = sorted(key for key in whole.keys() | killed.keys() if whole.get(key) != killed.get(key))
    return {
        "format": form,
        "seconds": round(seconds, 1),
        "killed_at_lines": killed_at,
        "files": len(whole),
        "identical": not different,
        "different": different[:20],
    }


def _kill(words: list[str], folder: Path, form: str, lines: int, delay: float) -> int:
    """Starts the command, kills it a moment after its journal has so many lines, and counts those that it leaves."""
    journal_path = folder / "out" / journal.NAME
    process = _start(words, folder, form)
    while process.poll() is None and _count_lines(journal_path) < lines:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        sys.exit(f"`predict` ended with status {process.returncode} before it could be killed; give it more images.")
    return _count_lines(journal_path)


def _start(words: list[str], folder: Path, form: str) -> subprocess.Popen:
    """Starts the command; both runs write into `out`, since results say where drawings are."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--output", "out", "--format", form, "--score-threshold", "0", "--max-detections", "5"]
    with (folder / "output.txt").open("a") as text:
        return subprocess.Popen(
            [sys.executable, "-m", "efficientdet", "predict", *words, *options],
            cwd=folder,
            stdout=text,
            stderr=subprocess.STDOUT,
        )


def _finish(process: subprocess.Popen) -> None:
    if process.wait(_SECONDS):
        sys.exit(f"`{' '.join(map(str, process.args))}` ended with status {process.returncode}.")  # type: ignore[arg-type]


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _digests(folder: Path) -> dict[str, str]:
    """Hashes each file; of the journal its lines as a set, without the notes of where a command ended."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.name == journal.NAME:
                content = b"\n".join(sorted(line for line in content.splitlines() if b'"finished"' not in line))
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


if __name__ == "__main__":
    tyro.cli(main)
