"""NVIDIA's log: the same lines as DLLogger writes, its averages, and one history of a run that was resumed."""

import datetime
import json
import re

import pytest

from efficientdet.config import ExperimentConfig, LoggingConfig, TrainingConfig
from efficientdet.training.logs import metrics

_CONFIG = ExperimentConfig(logging=LoggingConfig(time_log=True), training=TrainingConfig(batch_size=8))


def _read(run_dir):
    """Reads the objects as a tool does: what follows `DLLL ` in a line."""
    lines = (run_dir / "time_log.txt").read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def _train(writer, steps, rate=16.0):
    """Writes a line for each step of `steps`, ten of them an epoch, at `rate` images/s."""
    for step in steps:
        writer.write("train", step=step, epoch=step / 10, values={"loss": 1 / step, "images_per_second": rate})


def _logged(run_dir, step):
    return [line["data"] for line in _read(run_dir) if line["type"] == "LOG" and line["step"] == step]


def test_it_is_written_on_request_only(tmp_path):
    with metrics.open_writer(ExperimentConfig(), tmp_path) as writer:
        _train(writer, [2])
    assert not (tmp_path / "time_log.txt").exists()


def test_the_first_lines_say_the_units(tmp_path):
    with metrics.open_writer(_CONFIG, tmp_path):
        pass
    lines = _read(tmp_path)
    assert [list(line) for line in lines] == [
        ["timestamp", "elapsedtime", "datetime", "type", "metric", "metadata"]
    ] * 5
    assert {line["metric"]: line["metadata"] for line in lines} == {
        "avg_fps_training": {"unit": "images/s"},
        "avg_fps_training_per_GPU": {"unit": "images/s"},
        "avg_latency_training": {"unit": "s"},
        "training_loss": {"unit": None},
        "e2e_training_time": {"unit": "s"},
    }


def test_a_line_of_training_has_latency_speed_and_steps(tmp_path):
    with metrics.open_writer(_CONFIG, tmp_path) as writer:
        _train(writer, [2, 5])
    *_, line = _read(tmp_path)
    assert list(line) == ["timestamp", "datetime", "elapsedtime", "type", "step", "data"]
    assert line["step"] == "PARAMETER"
    assert line["data"] == {"Latency": "1.50 seconds", "fps": 16.0, "steps": [2, 5]}, "3 steps of 8 images"
    when = datetime.datetime.fromisoformat(line["datetime"])
    assert float(line["timestamp"]) == when.timestamp()
    assert re.fullmatch(r"\d+\.\d+", line["elapsedtime"])


def test_an_evaluation_has_the_epoch_and_ap_in_percent(tmp_path):
    with metrics.open_writer(_CONFIG, tmp_path) as writer:
        writer.write("validation", step=20, epoch=2.0, values={"AP": 0.343851, "loss": 1.0})
        writer.write("validation", step=31, epoch=3.1, values={"AP": None, "loss": 1.0})
    assert _logged(tmp_path, []) == [{"epoch": 2, "validation_accuracy_mAP": 34.39}], "nothing where there is no box"


def test_the_averages_leave_out_the_first_tenth(tmp_path):
    with metrics.open_writer(_CONFIG, tmp_path, num_devices=4) as writer:
        _train(writer, [1, 2], rate=1.0)  # int(0.1 * 20) lines
        _train(writer, range(3, 12), rate=16.0)
        _train(writer, range(12, 21), rate=32.0)
        writer.finish({"seconds": 90.5})
    (found,) = _logged(tmp_path, [])
    assert found["avg_fps_training"] == 24
    assert found["avg_fps_training_per_GPU"] == 6
    assert found["avg_latency_training"] == pytest.approx((8 / 16 + 8 / 32) / 2)
    assert found["training_loss"] == pytest.approx(sum(1 / step for step in range(11, 21)) / 10), "of the last epoch"
    assert found["e2e_training_time"] == 90.5


def test_a_resumed_run_has_each_step_once_and_the_averages_of_all(tmp_path):
    with metrics.open_writer(_CONFIG, tmp_path) as writer:
        _train(writer, [2, 4, 6], rate=16.0)
        writer.write("validation", step=4, epoch=0.4, values={"AP": 0.1})
    with metrics.open_writer(_CONFIG, tmp_path, 4, evaluates_again=True) as writer:
        writer.write("validation", step=4, epoch=0.4, values={"AP": 0.2})
        _train(writer, [6, 8], rate=8.0)
        writer.finish({"seconds": 1.0})
    assert [data["steps"] for data in _logged(tmp_path, "PARAMETER")] == [[0, 2], [2, 4], [4, 6], [6, 8]]
    evaluation, end = _logged(tmp_path, [])
    assert evaluation["validation_accuracy_mAP"] == 20
    assert end["avg_fps_training"] == 12
    elapsed = [float(line["elapsedtime"]) for line in _read(tmp_path)]
    assert elapsed == sorted(elapsed)
    assert elapsed[5] == pytest.approx(1.0, abs=1e-3), "2 steps of 8 images at 16 images/s"
