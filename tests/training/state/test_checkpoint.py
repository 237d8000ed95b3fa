"""Checkpoints: exact, whole, and only as many as asked for."""

import numpy as np
import pytest

from efficientdet import config as configs
from efficientdet.errors import UserError
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.training.state import checkpoint
from efficientdet.training.step import first_state


def _model(channels=8):
    # Survival below 1 adds random generators, whose states belong to a checkpoint.
    backbone = configs.BackboneConfig(width=0.25, depth=1.2, survival=0.8)
    return EfficientDet(
        configs.ModelConfig(num_classes=2, backbone=backbone, feature_channels=channels, num_cells=1, head_repeats=1)
    )


@pytest.fixture(scope="module")
def model():
    return _model()


def _state(model, step, method="sgd"):
    state = first_state(model, method)
    rng = np.random.default_rng(step)
    for key in ("trainable", "momentum", "average_trainable"):
        state[key] = [rng.normal(size=value.shape).astype(np.float32) for value in state[key]]
    return {**state, "step": np.int32(step), "updates": np.int32(step - 1), "loss_scale": np.float32(512)}


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_everything_comes_back_bit_by_bit(model, tmp_path, method):
    state = _state(model, 12, method)
    path = checkpoint.save(tmp_path, state, model, {"best_ap": 0.25, "last_metrics": {"APl": None}}, keep=2)
    loaded, progress = checkpoint.load(path, model)
    assert progress == {"best_ap": 0.25, "last_metrics": {"APl": None}}
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        if not isinstance(value, list):
            value, loaded[key] = [value], [loaded[key]]
        for before, after in zip(value, loaded[key], strict=True):
            assert np.asarray(before).dtype == after.dtype
            np.testing.assert_array_equal(before, after)


def test_states_of_random_generators_are_kept(model):
    assert any(value.dtype != np.float32 for value in first_state(model)["non_trainable"])


def test_only_the_newest_are_kept(model, tmp_path):
    for step in (1, 2, 30):
        checkpoint.save(tmp_path, _state(model, step), model, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000030.safetensors",
    ]
    assert checkpoint.latest(tmp_path).name == "step-00000030.safetensors"


def test_what_a_killed_writer_left_is_no_checkpoint(model, tmp_path):
    (tmp_path / ".partial-abc.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_one_line(model, tmp_path):
    path = checkpoint.save(tmp_path, _state(model, 1), model, {}, keep=1)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"step-00000001\.safetensors` is not a complete"):
        checkpoint.load(path, model)


def test_a_checkpoint_of_another_model_is_refused(model, tmp_path):
    smaller = EfficientDet(
        configs.ModelConfig(
            num_classes=2, backbone=configs.BackboneConfig(width=0.25), feature_channels=8, num_cells=1, head_repeats=1
        )
    )
    path = checkpoint.save(tmp_path, _state(smaller, 1), smaller, {}, keep=1)
    with pytest.raises(UserError, match="belongs to a different model"):
        checkpoint.load(path, model)
