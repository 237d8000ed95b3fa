"""Checkpoints written in a thread: whole, in order, and what goes wrong is said."""

import resource
import time

import numpy as np
import pytest

from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.training.state import checkpoint
from efficientdet.training.state.checkpoint_writer import CheckpointWriter
from efficientdet.training.state.interruption import Interrupted
from efficientdet.training.step import first_state


@pytest.fixture(scope="module")
def model(tiny):
    return EfficientDet(tiny)


def _state(model, step):
    return {**first_state(model), "step": np.int32(step)}


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_end_waits_for_what_is_being_written(model, tmp_path):
    with CheckpointWriter(tmp_path, model, {"version": "1"}, keep=2) as writer:
        for step in (1, 2, 3):
            writer.write(_state(model, step), {"best_ap": 0.5}, None)
    assert _names(tmp_path) == ["step-00000002.safetensors", "step-00000003.safetensors"]
    state, progress = checkpoint.load(checkpoint.latest(tmp_path), model)
    assert int(state["step"]) == 3
    assert progress == {"best_ap": 0.5}


def test_the_best_checkpoint_stays_beside_the_newest(model, tmp_path):
    with CheckpointWriter(tmp_path, model, {}, keep=1) as writer:
        for step in (1, 2, 3, 4):
            writer.write(_state(model, step), {}, best_step=2 if step >= 2 else None)
    assert _names(tmp_path) == ["step-00000002.safetensors", "step-00000004.safetensors"]


def test_a_checkpoint_says_what_it_belongs_to(model, tmp_path):
    facts = {"config": {"training": {"seed": 3}}, "categories": [{"id": 1, "name": "disk"}], "version": "0.1"}
    with CheckpointWriter(tmp_path, model, facts, keep=1) as writer:
        writer.write(_state(model, 1), {}, None)
    _, found = weights.read_safetensors(checkpoint.latest(tmp_path))
    assert found.keys() == {"format", "progress", "config", "categories", "version"}
    assert found["categories"] == '[{"id": 1, "name": "disk"}]'


@pytest.fixture
def full_disk():
    """Lets no file become larger than 1,000 bytes, as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(model, tmp_path, full_disk):
    with CheckpointWriter(tmp_path, model, {}, keep=1) as writer:
        writer.write(_state(model, 1), {}, None)
        writer.wait()
        full_disk()
        writer.write(_state(model, 2), {}, None)
        with pytest.raises(UserError, match=r"step-00000002\.safetensors` cannot be written: .*too large") as caught:
            writer.wait()
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == ["step-00000001.safetensors"]
    assert int(checkpoint.load(checkpoint.latest(tmp_path), model)[0]["step"]) == 1


def _unwritable(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.write_text("a file where the folder should be")
    return folder


def _write_and_end(model, tmp_path, error=None):
    """Begins a checkpoint that cannot be written, and ends the run."""
    with CheckpointWriter(_unwritable(tmp_path), model, {}, keep=1) as writer:
        writer.write(_state(model, 1), {}, None)
        if error is not None:
            raise error


def test_a_folder_that_cannot_be_written_is_said_at_the_end(model, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        _write_and_end(model, tmp_path)


def test_it_is_said_when_a_scheduler_ends_the_run(model, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        _write_and_end(model, tmp_path, Interrupted())


def test_a_run_that_fails_for_a_reason_of_its_own_says_that_one(model, tmp_path):
    with pytest.raises(UserError, match="diverged"):
        _write_and_end(model, tmp_path, UserError("diverged"))


def _check_until_it_fails(writer):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        writer.check()


def test_the_next_step_learns_of_it(model, tmp_path):
    writer = CheckpointWriter(_unwritable(tmp_path), model, {}, keep=1)
    writer.write(_state(model, 1), {}, None)
    with pytest.raises(UserError, match="cannot be written"):
        _check_until_it_fails(writer)
