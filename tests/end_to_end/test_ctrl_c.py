"""Ctrl-C on a run in a process of its own: it saves and ends with a line, and the same command goes on."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from efficientdet.training.state import checkpoint

_COMMAND = (
    "train demo --data.train synthetic --data.synthetic-examples 60000 --data.validation none "
    "--model.image-size 64 64 --model.backbone.width 0.25 --model.backbone.depth 0.25 --model.num-cells 1 "
    "--model.head-repeats 1 --model.feature-channels 8 --training.batch-size 2 --training.epochs 1 "
    "--training.evaluate-every 0 --training.checkpoint-every 1000 --training.recalibrate-images 0"
)
_SECONDS = 300
_LAST_LINE = re.compile(
    r"^Ctrl-C: stopped after saving step (\d+); run the same command to resume \(status 130\)$", re.M
)


class _Run:
    """A run whose output is read while it goes on."""

    def __init__(self, folder):
        self.output = folder.with_name("output.txt")
        words = [sys.executable, "-m", "efficientdet", *_COMMAND.split(), "--run-dir", str(folder)]
        # A shell without job control starts what is in the background with Ctrl-C switched off.
        restore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=os.environ, **restore)

    @property
    def said(self):
        return self.output.read_text()

    def wait_for(self, words):
        deadline = time.monotonic() + _SECONDS
        while words not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def ctrl_c(self):
        self.process.send_signal(signal.SIGINT)

    def status(self):
        return self.process.wait(_SECONDS)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sends signals")
def test_ctrl_c_saves_and_says_how_to_go_on_and_the_same_command_does(tmp_path):
    folder = tmp_path / "run"
    run = _Run(folder)
    run.wait_for("compiling")
    time.sleep(0.2)
    run.ctrl_c()
    assert run.status() == 130, run.said
    assert "Ctrl-C: stopped; run the same command to resume (status 130)" in run.said, "there was nothing to save"
    assert not list(folder.glob("checkpoints/*"))

    run = _Run(folder)
    run.wait_for("the first step took")
    run.ctrl_c()
    assert run.status() == 130, run.said
    assert "Traceback" not in run.said
    assert "interrupted" not in run.said
    saved = int(_LAST_LINE.search(run.said)[1])
    assert run.said.endswith("(status 130)\n")
    assert [checkpoint.step_of(path) for path in folder.glob("checkpoints/*")] == [saved]
    assert "Ctrl-C: stopped after saving step" in (folder / "log.txt").read_text()

    run = _Run(folder)
    run.wait_for(f"resumed at step {saved} of 30000")
    run.wait_for("the first step took")
    run.ctrl_c()
    assert run.status() == 130
    assert int(_LAST_LINE.search(run.said)[1]) > saved
