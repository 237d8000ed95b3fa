"""What a run writes about itself: whole lines, no step twice."""

import json
import math
import resource

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from efficientdet.config import ExperimentConfig
from efficientdet.errors import UserError
from efficientdet.training.logs import metrics


def _open(run_dir, resume_step=0, *, evaluates_again=False):
    return metrics.open_writer(ExperimentConfig(), run_dir, resume_step, evaluates_again=evaluates_again)


def _write(run_dir, steps, resume_step=0, **values):
    with _open(run_dir, resume_step) as writer:
        for step in steps:
            writer.write("train", step=step, epoch=step / 10, values={"loss": 1 / step, **values})


def _steps(run_dir):
    return [line["step"] for line in metrics.read_lines(run_dir / "metrics.jsonl")]


def _events(run_dir):
    """Reads TensorBoard's record format: length uint64, its checksum, the event, its checksum."""
    events = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            events.append(Event.FromString(content[position + 12 : position + 12 + length]))
            position += 16 + length
    return events


def test_a_line_holds_kind_step_epoch_time_and_values(tmp_path):
    with _open(tmp_path) as writer:
        writer.write("train", step=20, epoch=0.5, values={"loss": np.float32(1.5), "num_boxes": 3})
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line.pop("time") > 1.7e9
    assert line == {"kind": "train", "step": 20, "epoch": 0.5, "values": {"loss": 1.5, "num_boxes": 3.0}}


def test_a_line_can_be_read_while_the_run_goes_on(tmp_path):
    with _open(tmp_path) as writer:
        writer.write("train", step=1, epoch=0.1, values={"loss": 1.0})
        assert _steps(tmp_path) == [1]


def test_what_is_not_finite_keeps_its_name(tmp_path):
    with _open(tmp_path) as writer:
        values = {"loss": math.nan, "norm": math.inf, "box_loss": -math.inf, "APs": None, "AP": 0.5}
        writer.write("validation", step=1, epoch=0.1, values=values)
    text = (tmp_path / "metrics.jsonl").read_text()
    expected = {"loss": None, "norm": None, "box_loss": None, "APs": None, "AP": 0.5}
    assert json.loads(text, parse_constant=pytest.fail)["values"] == expected


def test_a_resumed_run_has_no_step_twice(tmp_path):
    _write(tmp_path, range(1, 9))
    _write(tmp_path, range(6, 11), resume_step=5)
    assert _steps(tmp_path) == list(range(1, 11))


def test_a_new_run_in_an_old_folder_starts_over(tmp_path):
    _write(tmp_path, range(1, 5))
    _write(tmp_path, range(1, 3))
    assert _steps(tmp_path) == [1, 2]


def test_a_torn_last_line_is_cut_away(tmp_path):
    _write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert _steps(tmp_path) == [1, 2]
    _write(tmp_path, [3], resume_step=2)
    assert _steps(tmp_path) == [1, 2, 3]
    assert not path.with_name("metrics.jsonl.new").exists()


@pytest.mark.parametrize("text", ["not json", "[1, 2]", '{"kind": "train"}', "7"])
def test_a_damaged_line_is_named(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{text}\n{{"kind": "train"}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl` line 1 "):
        metrics.read_lines(path)


def test_tensorboard_shows_numbers_and_images(tmp_path):
    with _open(tmp_path) as writer:
        writer.write("validation", step=7, epoch=0.5, values={"AP": 0.25, "APs": None})
        writer.image("validation/detections", np.full((20, 30, 3), 200, np.uint8), step=7)
    values = {value.tag: (event.step, value) for event in _events(tmp_path) for value in event.summary.value}
    assert set(values) == {"validation/AP", "validation/detections"}
    assert values["validation/AP"][0] == 7
    assert values["validation/AP"][1].simple_value == 0.25
    photo = values["validation/detections"][1].image
    assert (photo.height, photo.width) == (20, 30)


def test_tensorboard_forgets_what_a_resumed_run_repeats(tmp_path):
    _write(tmp_path, range(1, 9))
    _write(tmp_path, [6], resume_step=5)
    starts = [event.step for event in _events(tmp_path) if event.HasField("session_log")]
    assert starts == [6]


def test_a_run_draws_its_curves(tmp_path):
    with _open(tmp_path) as writer:
        writer.write("train", step=1, epoch=0.1, values={"loss": 1.0})
        writer.save_curves()
    assert (tmp_path / "curves.png").exists()


def test_an_evaluation_that_comes_again_is_not_written_twice(tmp_path):
    with _open(tmp_path) as writer:
        for kind in ("train", "validation"):
            for step in (4, 8):
                writer.write(kind, step=step, epoch=1.0, values={"loss": 1.0})
    with _open(tmp_path, 8, evaluates_again=True):
        pass
    lines = [(line["kind"], line["step"]) for line in metrics.read_lines(tmp_path / "metrics.jsonl")]
    assert lines == [("train", 4), ("train", 8), ("validation", 4)]


def test_a_full_disk_is_one_line(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl` cannot be written: .*too large") as caught:
            _write_until_full(tmp_path, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)


def _write_until_full(run_dir, hard):
    """Lets no file become larger than 100 bytes, as on a disk without room."""
    with _open(run_dir) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        for step in (1, 2):
            writer.write("train", step=step, epoch=1.0, values={"loss": 1.0})
