"""Does a run that was killed end where one ends that was not? SIGKILL and SIGTERM at chosen moments, bit by bit.

A small model trains on generated images, as records, in the deterministic mode: once without interruption, then once
for each moment, killed there and resumed by the same command. Compared are the last checkpoint (weights, momenta,
averages, batch statistics, states of random generators, counters), the weights written for use, and which lines
metrics.jsonl has. Writes the table as JSON.

    python benchmarks/kills.py --output benchmarks/results/kills.json
"""

import dataclasses
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

import tyro

from efficientdet.benchmarks import report
from efficientdet.data import conversion, synthetic
from efficientdet.model import weights
from efficientdet.storage import files
from efficientdet.training.logs import metrics
from efficientdet.training.state import checkpoint, interruption

_COMMAND = (
    "train demo --data.train {records} --model.image-size 64 64 --model.backbone.width 0.25 "
    "--model.backbone.depth 0.25 --model.backbone.survival 0.8 --model.num-cells 1 --model.head-repeats 1 "
    "--model.feature-channels 8 --training.batch-size 4 --training.epochs {epochs} --training.evaluate-every 2 "
    "--training.checkpoint-every 3 --training.log-every 1 --training.deterministic"
)
_IMAGES = {"train": 32, "val": 64}
_BATCH_SIZE, _EPOCHS_BETWEEN_EVALUATIONS = 4, 2
_WHERE = ("step", "checkpoint", "evaluation")
_SECONDS = 3600.0  # after which a run is taken for stuck


@dataclasses.dataclass(frozen=True)
class _Moment:
    """When to send which signal."""

    signal_name: str
    where: str
    """step, checkpoint or evaluation."""
    step: int
    """From which step on."""
    delay: float
    """Random part: fraction of a step, or of an evaluation."""


def main(
    *,
    output: Path,
    num_kills: int = 12,
    num_terminations: int = 3,
    epochs: int = 6,
    backend: str = "tensorflow",
    seed: int = 0,
) -> None:
    """Runs everything and writes the table; fails if one run ended elsewhere.

    Args:
        output: JSON file to write.
        num_kills: runs that get SIGKILL.
        num_terminations: runs that get SIGTERM.
        epochs: of each run, 8 steps each; evaluated every second one.
        backend: Keras's.
        seed: of the random moments.
    """
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_coco_folder(folder / "images", _IMAGES, (64, 64), seed)
        conversion.convert("coco", folder / "images", output=folder / "records", num_workers=1, val_fraction=0)
        words = [
            sys.executable,
            "-m",
            "efficientdet",
            *_COMMAND.format(records=folder / "records", epochs=epochs).split(),
        ]
        words += ["--backend", backend]
        reference = folder / "uninterrupted"
        _finish(_start(words, reference), 0)
        expected = _digests(reference)
        pace = _pace(reference)
        for number, moment in enumerate(_moments(num_kills, num_terminations, epochs, seed)):
            row = _interrupt_and_resume(words, folder / f"run-{number}", moment, pace)
            found = _digests(folder / f"run-{number}")
            row["different"] = sorted(
                key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
            )
            row["identical"] = not row["different"]
            rows.append(row)
            print(json.dumps(row), flush=True)
            facts = {"arrays": len(expected), "steps": pace["steps"], "seconds": round(time.monotonic() - began)}
            files.write_json(output, _table(rows, facts))
    if not all(row["identical"] for row in rows):
        sys.exit(f"{sum(not row['identical'] for row in rows)} of {len(rows)} runs ended elsewhere; see {output}.")


def _table(rows: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Arranges what is known so far; written after each run, since all of them take long."""
    return {
        "what": "where runs end that were interrupted and resumed, against one that was not",
        "identical": sum(row["identical"] for row in rows),
        "rows": rows,
        **facts,
        **report.circumstances(),
    }


def _moments(num_kills: int, num_terminations: int, epochs: int, seed: int) -> list[_Moment]:
    """Draws the moments; each signal goes through steps, checkpoints and evaluations in turn."""
    rng = random.Random(seed)
    steps_between = _EPOCHS_BETWEEN_EVALUATIONS * _IMAGES["train"] // _BATCH_SIZE
    last = epochs * _IMAGES["train"] // _BATCH_SIZE
    moments = []
    for name, count in (("SIGKILL", num_kills), ("SIGTERM", num_terminations)):
        for number in range(count):
            where = _WHERE[number % len(_WHERE)]
            step = rng.randrange(1, last - 3)
            if where == "evaluation":
                step = steps_between * rng.randrange(1, epochs // _EPOCHS_BETWEEN_EVALUATIONS)
            moments.append(_Moment(name, where, step, rng.random()))
    return moments


def _interrupt_and_resume(words: list[str], folder: Path, moment: _Moment, pace: dict[str, float]) -> dict[str, Any]:
    """Interrupts a run at a moment and resumes it to its end; tells what it left behind."""
    process = _start(words, folder)
    _wait_for(moment, folder, process, pace)
    process.send_signal(signal.Signals[moment.signal_name])
    status = _finish(process, None)
    newest = max((folder / "checkpoints").glob("step-*"), key=checkpoint.step_of, default=None)
    lines = metrics.read_lines(folder / "metrics.jsonl")
    row = {
        "signal": moment.signal_name,
        "during": moment.where,
        "status": status,
        "last_step": max((line["step"] for line in lines if line["kind"] == "train"), default=0),
        "newest_checkpoint": newest and checkpoint.step_of(newest),
        "half_a_checkpoint_left": any((folder / "checkpoints").glob(".partial-*")),
        "evaluation_cut_off": newest is not None and _evaluation_is_due(newest),
    }
    expected = -signal.SIGKILL if moment.signal_name == "SIGKILL" else interruption.STATUS
    if status != expected:
        sys.exit(f"status {status} after {moment.signal_name}, expected {expected}; see {folder}/output.txt")
    _finish(_start(words, folder), 0)
    return row


def _evaluation_is_due(path: Path) -> bool:
    """Reads from a checkpoint whether the run was inside an evaluation, or just before."""
    return bool(json.loads(weights.read_safetensors(path)[1]["progress"])["evaluation_is_due"])


def _start(words: list[str], folder: Path) -> subprocess.Popen:
    """Starts the run, its words in a file beside the folder."""
    with folder.with_suffix(".txt").open("a") as output:
        return subprocess.Popen([*words, "--run-dir", str(folder)], stdout=output, stderr=subprocess.STDOUT)


def _finish(process: subprocess.Popen, expected: int | None) -> int:
    """Waits for the end of a process, and checks its status."""
    status = process.wait(_SECONDS)
    if expected is not None and status != expected:
        output = Path(process.args[-1]).with_suffix(".txt").read_text()  # type: ignore[index,arg-type]
        sys.exit(f"`{' '.join(map(str, process.args))}` ended with status {status}:\n{output}")  # type: ignore[arg-type]
    return status


def _wait_for(moment: _Moment, folder: Path, process: subprocess.Popen, pace: dict[str, float]) -> None:
    """Waits until the run is where it shall be interrupted."""
    deadline = time.monotonic() + _SECONDS
    while _last_step(folder) < moment.step:
        _check(process, deadline)
        time.sleep(0.005)
    if moment.where == "checkpoint":
        while not any((folder / "checkpoints").glob(".partial-*")):
            _check(process, deadline)
        return
    time.sleep(moment.delay * pace[moment.where])


def _check(process: subprocess.Popen, deadline: float) -> None:
    if process.poll() is not None or time.monotonic() > deadline:
        process.kill()
        sys.exit(f"the run ended with status {process.poll()} before it could be interrupted")


def _last_step(folder: Path) -> int:
    """Reads how far a run is, from its last whole line."""
    path = folder / metrics.LINES_FILE
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def _pace(folder: Path) -> dict[str, float]:
    """Measures how long a step and an evaluation take, s."""
    lines = metrics.read_lines(folder / metrics.LINES_FILE)
    rates = sorted(line["values"]["images_per_second"] for line in lines if line["kind"] == "train")
    seconds = sorted(line["values"]["evaluation_seconds"] for line in lines if line["kind"] == "validation")
    return {"step": _BATCH_SIZE / rates[len(rates) // 2], "evaluation": seconds[0], "steps": lines[-1]["step"]}


def _digests(folder: Path) -> dict[str, str]:
    """Computes a digest of each array of the last checkpoint and of the weights for use, and of the lines' steps."""
    digests = {}
    last = max((folder / "checkpoints").glob("step-*"), key=checkpoint.step_of)
    for path in (last, folder / "weights" / "last.safetensors", folder / "weights" / "best.safetensors"):
        for name, array in weights.read_safetensors(path)[0].items():
            content = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
            digests[f"{path.stem}/{name}"] = hashlib.sha256(content).hexdigest()
    lines = metrics.read_lines(folder / metrics.LINES_FILE)
    digests["lines"] = str([(line["kind"], line["step"]) for line in lines])
    digests["AP"] = str([line["values"]["AP"] for line in lines if line["kind"] == "validation"])
    return digests


if __name__ == "__main__":
    tyro.cli(main)
