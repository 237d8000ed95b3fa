"""A run that was killed, or ended by a scheduler, goes on from its last checkpoint, and no checkpoint is ever torn."""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

import pytest

from efficientdet.model import weights

_COMMAND = (
    "train demo --data.train synthetic --data.synthetic-examples 64 --data.validation none "
    "--model.image-size 64 64 --model.backbone.width 0.25 --model.backbone.depth 0.25 --model.num-cells 1 "
    "--model.head-repeats 1 --model.feature-channels 8 --training.batch-size 2 --training.epochs 3 "
    "--training.evaluate-every 0 --training.checkpoint-every 1 --training.log-every 8 --training.keep-checkpoints 3"
)


def _start(folder, **changes):
    words = [sys.executable, "-m", "efficientdet", *_COMMAND.split(), "--run-dir", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **changes)


def _uncounted():
    """Returns the environment without what makes the coverage tool write a file of its own when a process ends."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}


def _wait_for_checkpoint(process, folder, step):
    """Waits until the run has a checkpoint of `step` or later."""
    deadline = time.monotonic() + 300
    while not any(int(path.stem.split("-")[1]) >= step for path in folder.glob("checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit for another process")
def test_a_full_disk_ends_the_run_with_one_line_and_leaves_the_last_checkpoint(tmp_path):
    folder = tmp_path / "run"
    process = _start(folder, env=_uncounted())
    _wait_for_checkpoint(process, folder, step=5)
    # No file may become larger than a thousand bytes, as on a disk without room.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1, said
    assert re.search(r"^efficientdet: `\S+` cannot be written: .*$", said, re.MULTILINE)
    assert "Traceback" not in said
    kept = sorted(folder.glob("checkpoints/step-*"))
    assert kept
    for path in kept:
        weights.read_safetensors(path)  # raises if it is torn


@pytest.mark.slow
def test_runs_that_were_killed_and_resumed_end_with_the_same_bits(tmp_path):
    """The short form of the benchmark: a SIGKILL and a SIGTERM."""
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "kills.py"
    output = tmp_path / "kills.json"
    words = [sys.executable, script, "--output", output, "--num-kills", "1", "--num-terminations", "1", "--epochs", "4"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [(row["signal"], row["status"], row["different"]) for row in rows] == [
        ("SIGKILL", -9, []),
        ("SIGTERM", 75, []),
    ]
    assert rows[1]["newest_checkpoint"] == rows[1]["last_step"], "saved after the step in which the signal came"
