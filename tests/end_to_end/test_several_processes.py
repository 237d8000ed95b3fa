"""Two processes on JAX, connected by gloo, train as one does; one that is asked to end or is gone ends the other."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from efficientdet.model import weights
from efficientdet.training.logs import metrics
from efficientdet.training.state import checkpoint

_COMMAND = (
    "train demo --backend jax --data.train synthetic --data.synthetic-classes 2 --model.image-size 64 64 "
    "--model.backbone.width 0.25 --model.backbone.depth 0.25 --model.num-cells 1 --model.head-repeats 1 "
    "--model.feature-channels 8 --training.batch-size 8 --training.epochs 1 --training.log-every 1 "
    "--training.checkpoint-every 2 --training.keep-checkpoints 99 --optimizer.learning-rate 0.002 "
    "--evaluation.batch-size 4 --evaluation.max-images 12"
)
_SECONDS = 900
# From the middle on, batch statistics are fixed. The larger number leaves time for a signal. The schedule is compiled
# into the step, so runs with the same number share what was compiled.
_STEPS, _MANY_STEPS = 8, 100
# Where the processes end is the same, and a backbone that does not learn is compiled in a fraction of the time.
_QUICK = {"training__freeze": "all_but_heads"}


def _start(settings, folder, steps, index=None, port=0, **changes):
    """Starts one process; with an index, the first or second of two."""
    environment = os.environ | settings
    if index is not None:
        environment |= {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
        }
    words = [sys.executable, "-m", "efficientdet", *_COMMAND.split(), "--run-dir", str(folder)]
    words += ["--data.synthetic-examples", str(8 * steps)]
    for name, value in changes.items():
        words += [f"--{name.replace('__', '.').replace('_', '-')}", str(value)]
    with folder.with_name(f"{folder.name}-{index}.txt").open("a") as output:
        return subprocess.Popen(words, env=environment, stdout=output, stderr=subprocess.STDOUT)


def _start_both(settings, folder, steps, **changes):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    return [_start(settings, folder, steps, index, port, **changes) for index in range(2)]


def _said(folder, index):
    return folder.with_name(f"{folder.name}-{index}.txt").read_text()


def _lines(folder, kind):
    return [line for line in metrics.read_lines(folder / metrics.LINES_FILE) if line["kind"] == kind]


def _wait_for_step(folder, step, process):
    deadline = time.monotonic() + _SECONDS
    while not any(line["step"] >= step for line in metrics.read_lines(folder / metrics.LINES_FILE)):
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _newest(folder):
    return max(folder.glob("checkpoints/step-*"), key=checkpoint.step_of)


@pytest.fixture(scope="module")
def two(quick_jax, tmp_path_factory):
    """Eight steps of two processes: the folder of their run."""
    folder = tmp_path_factory.mktemp("two") / "run"
    processes = _start_both(quick_jax, folder, _STEPS)
    statuses = [process.wait(_SECONDS) for process in processes]
    assert statuses == [0, 0], [_said(folder, index) for index in range(2)]
    return folder


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(quick_jax, two, tmp_path):
    folder = tmp_path / "run"
    assert _start(quick_jax, folder, _STEPS).wait(_SECONDS) == 0, _said(folder, None)
    alone, together = (_lines(run, "train") for run in (folder, two))
    assert [line["step"] for line in together] == list(range(1, _STEPS + 1))
    for name in ("loss", "class_loss", "box_loss", "gradient_norm"):
        values = [[line["values"][name] for line in lines] for lines in (alone, together)]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4, err_msg=name)
    one, both = (json.loads(next(run.glob("evaluation/*.json")).read_text()) for run in (folder, two))
    assert one["num_images"] == both["num_images"] == 12
    assert one["metrics"]["AP"] == pytest.approx(both["metrics"]["AP"], abs=1e-3)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(quick_jax, two, tmp_path):
    """On another number of devices: from their checkpoint in the middle, with the same losses to the end."""
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    for path in folder.glob("checkpoints/step-*"):
        if checkpoint.step_of(path) > _STEPS // 2:
            path.unlink()
    assert _start(quick_jax, folder, _STEPS).wait(_SECONDS) == 0, _said(folder, None)
    assert f"resumed at step {_STEPS // 2} of {_STEPS}" in _said(folder, None)
    one, both = (_lines(run, "train") for run in (folder, two))
    assert [line["step"] for line in one] == list(range(1, _STEPS + 1))
    losses = [[line["values"]["loss"] for line in lines] for lines in (one, both)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_the_processes_check_themselves_and_end_with_the_same_weights(two):
    assert "2 processes, 2 devices: same versions and settings, correct test sum" in _said(two, 0)
    assert "all 2 processes have bit-identical weights" in _said(two, 0)


@pytest.mark.slow
def test_a_signal_to_one_ends_both_after_the_same_step_and_the_same_command_goes_on(quick_jax, tmp_path):
    folder = tmp_path / "run"
    processes = _start_both(quick_jax, folder, _MANY_STEPS, **_QUICK)
    _wait_for_step(folder, 2, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(_SECONDS) for process in processes] == [75, 75], [_said(folder, i) for i in range(2)]
    last = _lines(folder, "train")[-1]["step"]
    assert checkpoint.step_of(_newest(folder)) == last < _MANY_STEPS
    processes = _start_both(quick_jax, folder, _MANY_STEPS, **_QUICK)
    _wait_for_step(folder, last + 2, processes[0])
    processes[0].send_signal(signal.SIGINT)
    assert [process.wait(_SECONDS) for process in processes] == [130, 75], [_said(folder, i) for i in range(2)]
    assert last < checkpoint.step_of(_newest(folder)) < _MANY_STEPS
    processes = _start_both(quick_jax, folder, _MANY_STEPS, **_QUICK)
    assert [process.wait(_SECONDS) for process in processes] == [0, 0]
    assert [line["step"] for line in _lines(folder, "train")] == list(range(1, _MANY_STEPS + 1))


@pytest.fixture(scope="module")
def killed(quick_jax, tmp_path_factory):
    """Two runs, of which one loses process 0, one process 1, waited for together since silence has to last.

    Victim -> the folder, the status of the other process, and how long it took to name the victim, s; no number if it
    did not in a minute.
    """
    folders = [tmp_path_factory.mktemp("killed") / "run" for _ in range(2)]
    runs = [_start_both(quick_jax, folder, _MANY_STEPS, **_QUICK) for folder in folders]
    at, names, seconds = {}, {}, {}
    for victim, (folder, processes) in enumerate(zip(folders, runs, strict=True)):
        _wait_for_step(folder, 3, processes[0])  # beyond the first checkpoint
        processes[victim].kill()
        processes[victim].wait()
        at[victim] = time.monotonic()
        who = f"{socket.gethostname()}:{processes[victim].pid}"
        names[victim] = f"process {1 - victim}: process {victim} ({who}) has not responded"
    while waiting := [victim for victim in at if victim not in seconds and time.monotonic() - at[victim] < 60]:
        for victim in waiting:  # JAX aborts when process 0 is gone; then another process explains it
            if names[victim] in _said(folders[victim], 1 - victim):
                seconds[victim] = time.monotonic() - at[victim]
        time.sleep(0.2)
    statuses = [processes[1 - victim].wait(_SECONDS) for victim, processes in enumerate(runs)]
    return [(folders[victim], statuses[victim], seconds.get(victim)) for victim in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_names_it_within_a_minute(killed, victim):
    folder, status, seconds = killed[victim]
    assert status != 0
    assert seconds is not None, _said(folder, 1 - victim)
    weights.read_safetensors(_newest(folder))  # raises if it is torn


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named(quick_jax, tmp_path):
    process = _start(quick_jax, tmp_path / "run", _STEPS, index=0, port=1, training__join_seconds=3)
    assert process.wait(_SECONDS) == 1
    assert "Of 2 processes, 1 did not start within 3 s" in _said(tmp_path / "run", 0)


@pytest.mark.slow
def test_processes_with_other_settings_are_refused_by_the_knob(quick_jax, tmp_path):
    folder = tmp_path / "run"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    processes = [
        _start(quick_jax, folder, _STEPS, 0, port),
        _start(quick_jax, folder, _STEPS, 1, port, optimizer__momentum=0.5),
    ]
    assert [process.wait(_SECONDS) for process in processes] == [1, 1]
    expected = (
        "Process 1 was started with `optimizer.momentum` 0.5, but process 0 was started with 0.9; all processes must "
        "use the same value."
    )
    for index in range(2):
        assert expected in _said(folder, index)
