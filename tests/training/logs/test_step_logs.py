"""What the steps say: means of good steps, speed without what is not training, memory."""

import time
from pathlib import Path

import numpy as np
import pytest

from efficientdet.config import ExperimentConfig, TrainingConfig
from efficientdet.errors import UserError
from efficientdet.training.logs import metrics, step_logs


def _logs(**changed):
    names = ("loss", "class_loss", "box_loss", "learning_rate", "bad_steps", "is_overflow")
    return {**{name: np.float32(0) for name in names}, "ok": np.float32(1), **changed}


@pytest.fixture
def write(tmp_path):
    """Makes two steps, with something done between them, and returns the line and the seconds it all took."""

    def write(between=lambda logs: None, **changed):
        with metrics.open_writer(ExperimentConfig(), tmp_path) as writer:
            began = time.monotonic()
            logs = step_logs.StepLogs(TrainingConfig(batch_size=4), writer, pytest.fail, lambda: None)
            logs.add(1, _logs(loss=np.float32(1)), np.zeros(4, np.int64))
            between(logs)
            logs.add(2, _logs(loss=np.float32(3), **changed), np.zeros(4, np.int64))
            logs.write(0.5, skipped_steps=0)
            seconds = time.monotonic() - began
        (line,) = metrics.read_lines(tmp_path / "metrics.jsonl")
        return line, seconds

    return write


def test_a_line_has_means_speed_and_memory(write):
    line, seconds = write()
    assert (line["step"], line["values"]["loss"]) == (2, 2)
    assert line["values"]["images_per_second"] >= 8 / seconds
    assert line["values"]["resident_memory"] > 10
    assert {"input_wait", "device_memory", "skipped_steps"} <= set(line["values"])


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (None, r"\(images 4, \.\.\.\); no checkpoint was saved yet\. Start a new `--run-dir` with a lower `--opt"),
        (Path("run/step-00000006.safetensors"), "the newest checkpoint, step-00000006.safetensors, has finite weights"),
    ],
)
def test_a_run_that_stops_says_what_is_left_of_it(tmp_path, path, kept):
    with metrics.open_writer(ExperimentConfig(), tmp_path) as writer:
        logs = step_logs.StepLogs(TrainingConfig(max_bad_steps=1), writer, lambda text: None, lambda: path)
        logs.add(1, _logs(ok=np.float32(0), bad_steps=np.float32(1)), np.array([4]))
        with pytest.raises(UserError, match=kept):
            logs.add(2, _logs(), np.array([5]))


def test_a_step_whose_scale_overflowed_is_no_part_of_the_means(write):
    line, _ = write(ok=np.float32(0), is_overflow=np.float32(1))
    assert line["values"]["loss"] == 1


def test_an_evaluation_is_left_out_of_the_speed(write):
    def evaluate(logs):
        with logs.paused():
            time.sleep(0.3)

    line, seconds = write(evaluate)
    assert 8 / line["values"]["images_per_second"] <= seconds - 0.3


def test_the_wait_for_input_is_a_share_of_the_time(write):
    def wait(logs):
        with logs.waiting():
            time.sleep(0.2)

    line, seconds = write(wait)
    assert 0.2 / seconds <= line["values"]["input_wait"] <= 1
