"""Two processes on JAX, connected by gloo, train as one does; and notice when the other is gone."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from efficientdet.training import metrics

# Each process trains a tiny network, and writes down a digest of the weights that it ended with.
_PROGRAM = """
from pathlib import Path
from efficientdet import backend
backend.choose("jax")
from efficientdet import config as c
from efficientdet.training import processes, run
folder, steps = sys.argv[1], int(sys.argv[2])
finish = run._Run.finish
def finish_and_sign(self):
    digest = hashlib.sha256()
    for name, array in sorted(self._averages().items()):
        digest.update(array.tobytes())
    Path(folder).with_name(f"digest-{processes.index()}").write_text(digest.hexdigest())
    return finish(self)
run._Run.finish = finish_and_sign
run.train(c.ExperimentConfig(
    preset="tiny",
    run_dir=folder,
    model=c.ModelConfig(
        name="tiny", image_size=(64, 64), num_classes=2, feature_channels=8, num_cells=1, head_repeats=1,
        backbone=c.BackboneConfig(name="tiny", width=0.25, depth=0.25), max_level=6,
    ),
    data=c.DataConfig(train="synthetic", synthetic_examples=8 * steps, synthetic_classes=2),
    optimizer=c.OptimizerConfig(learning_rate=0.002),
    training=c.TrainingConfig(batch_size=8, epochs=1, log_every=1, checkpoint_every=5),
    evaluation=c.EvaluationConfig(batch_size=4, max_images=12),
))
"""
_SECONDS = 600


def _start(folder, steps, index=None, count=2, port=0):
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "KERAS_BACKEND": "jax"}
    if index is not None:
        environment |= {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
        }
    command = [sys.executable, "-c", _PROGRAM, str(folder), str(steps)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def _free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def _lines(folder, kind):
    return [line for line in metrics.read_lines(folder / metrics.LINES_FILE) if line["kind"] == kind]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    port = _free_port()
    both = [_start(tmp_path / "two" / "run", 20, index, port=port) for index in range(2)]
    said = [process.communicate(timeout=_SECONDS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one = _start(tmp_path / "one" / "run", 20)
    text, _ = one.communicate(timeout=_SECONDS)
    assert one.returncode == 0, text

    runs = [tmp_path / name / "run" for name in ("one", "two")]
    alone, together = ([line["values"]["loss"] for line in _lines(run, "train")] for run in runs)
    assert len(alone) == 20
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    digests = [(tmp_path / "two" / f"digest-{index}").read_text() for index in range(2)]
    assert digests[0] == digests[1]
    evaluations = [json.loads(next((run / "evaluation").glob("*.json")).read_text()) for run in runs]
    assert evaluations[0]["num_images"] == evaluations[1]["num_images"] == 12
    assert [line["step"] for line in _lines(runs[1], "train")] == list(range(1, 21))
