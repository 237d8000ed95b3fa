"""A run killed with SIGKILL goes on from its last checkpoint, and no checkpoint is ever torn."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from efficientdet.model import weights
from efficientdet.training import metrics

_COMMAND = (
    "train demo --data.train synthetic --data.synthetic-examples 64 --data.validation none "
    "--model.image-size 64 64 --model.backbone.width 0.25 --model.backbone.depth 0.25 --model.num-cells 1 "
    "--model.head-repeats 1 --model.feature-channels 8 --training.batch-size 2 --training.epochs 3 "
    "--training.evaluate-every 0 --training.checkpoint-every 1 --training.log-every 8 --training.keep-checkpoints 3"
)
_TOTAL_STEPS = 96


def _start(folder):
    words = [sys.executable, "-m", "efficientdet", *_COMMAND.split(), "--run-dir", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _kill_after(folder, step):
    """Starts the run and kills it once it has a checkpoint of `step` or later, at no chosen moment."""
    process = _start(folder)
    deadline = time.monotonic() + 300
    while not any(int(path.stem.split("-")[1]) >= step for path in folder.glob("checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    folder = tmp_path / "run"
    _kill_after(folder, step=20)
    checkpoints = sorted(folder.glob("checkpoints/step-*"))
    for path in checkpoints:
        weights.read_safetensors(path)  # raises if it is torn
    reached = int(checkpoints[-1].stem.split("-")[1])
    assert 20 <= reached < _TOTAL_STEPS
    process = _start(folder)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert f"resumed at step {reached} of {_TOTAL_STEPS}" in said
    assert json.loads((folder / "summary.json").read_text())["steps"] == _TOTAL_STEPS
    steps = [line["step"] for line in metrics.read_lines(folder / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "no step is written down twice"
    assert not list(folder.rglob(".partial-*"))
