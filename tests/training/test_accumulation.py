"""A batch in parts: one after the other, on one device or several, the gradient is that of the whole batch.

With batch normalisation frozen an image does not see the others, so that parts and whole are the same function. Run as
a program, this file computes the step in parts on two devices of the backend in KERAS_BACKEND.
"""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from efficientdet import backend
from efficientdet.config import BackboneConfig, ExperimentConfig, ModelConfig, OptimizerConfig, TrainingConfig
from efficientdet.errors import UserError

_IMAGES, _PARTS = 8, 2
_MODEL = ModelConfig(
    image_size=(64, 64),
    num_classes=2,
    backbone=BackboneConfig(width=0.25, depth=0.25),
    feature_channels=8,
    num_cells=1,
    head_repeats=1,
    batch_norm_momentum=0.9,
)
_SCHEDULE = {"peak": 0.1, "start": 0.05, "warmup_steps": 10.0, "total_steps": 100.0}


def _batch():
    """Eight images with none to three boxes, so that parts have different numbers of matched anchors."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (_IMAGES, 3, 2))
    return {
        "images": rng.integers(0, 256, (_IMAGES, 64, 64, 3), np.uint8),
        "valid_size": np.tile(np.array([64, 64], np.int32), (_IMAGES, 1)),
        "boxes": np.concatenate([corners, corners + rng.uniform(12, 32, corners.shape)], -1).astype(np.float32),
        "labels": rng.integers(0, 2, (_IMAGES, 3)).astype(np.int32),
        "num_boxes": np.array([0, 1, 3, 0, 3, 3, 2, 1], np.int32),
    }


class _Trainer:
    """A model whose weights NumPy draws, so that every backend has the same, and its step in parts."""

    def __init__(self, parts, *, is_frozen, devices=0, is_compiled=False):
        """Makes the step. Running it as it is takes TensorFlow less time than compiling it, JAX more."""
        from efficientdet.model import anchors, normalization
        from efficientdet.model.efficientdet import EfficientDet
        from efficientdet.training import step as training_step
        from efficientdet.training.distributed import replicas

        training = TrainingConfig(batch_size=_IMAGES, accumulate_steps=parts, devices=devices)
        experiment = ExperimentConfig(model=_MODEL, training=training, optimizer=OptimizerConfig(average_decay=0.99))
        self.replicas = replicas.make_replicas(training)
        self.model = EfficientDet(_MODEL, kernels=self.replicas.kernels())
        rng = np.random.default_rng(0)
        for variable in self.model.weights:
            noise = rng.normal(size=variable.shape)
            is_positive = variable.path.endswith(("gamma", "variance"))
            fan_in = max(1, np.prod(variable.shape[:-1], dtype=int))
            is_kernel = variable.path.endswith("kernel")
            variable.assign(
                np.exp(0.2 * noise) if is_positive else noise / np.sqrt(fan_in) if is_kernel else 0.1 * noise
            )
        for layer in self.model._flatten_layers():
            if isinstance(layer, normalization.BatchNorm):
                layer.trainable = not is_frozen
        self.replicas.keep_state_of(self.model)
        boxes = anchors.anchor_boxes(_MODEL)
        step = training_step.make_step(self.model, boxes, experiment, _SCHEDULE, self.replicas)
        self._step = self.replicas.compile(step, xla="off") if is_compiled else step
        self.first = training_step.first_state(self.model)

    def step(self, batch):
        """Makes the first step; returns state and logs."""
        from efficientdet.training.distributed import engine

        state = self.replicas.place_state(self.first)
        state, logs = self._step(state, self.replicas.place_batch(batch))
        return engine.to_host((self.replicas.read_state(state), self.replicas.first(logs)))


def _write_step(path):
    """Makes the step in parts on two devices and writes momenta, which are the clipped gradients, and losses."""
    running = backend.choose()
    if running == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        tf.config.run_functions_eagerly(True)
    trainer = _Trainer(_PARTS, is_frozen=True, devices=2, is_compiled=True)
    assert trainer.replicas.count == 2
    state, logs = trainer.step(_batch())
    np.savez(path, *state["momentum"], **logs)


@pytest.fixture(scope="module")
def on_two_devices(tmp_path_factory, quick_jax):
    """Runs both backends, side by side with this process: backend -> its numbers."""
    folder = tmp_path_factory.mktemp("parts")
    started = {}
    for name in ("tensorflow", "jax"):
        settings = {"KERAS_BACKEND": name, "CUDA_VISIBLE_DEVICES": ""}
        if name == "jax":
            flags = f"{quick_jax['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
            settings |= {**quick_jax, "XLA_FLAGS": flags}
        words = [sys.executable, __file__, folder / f"{name}.npz"]
        started[name] = subprocess.Popen(words, env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True)

    def read(name):
        _, errors = started[name].communicate(timeout=600)
        assert started[name].returncode == 0, errors
        with np.load(folder / f"{name}.npz") as file:
            return dict(file)

    return read


@pytest.fixture(scope="module")
def whole(on_two_devices):
    """The whole batch in one, batch normalisation frozen."""
    state, logs = _Trainer(1, is_frozen=True).step(_batch())
    return {**{f"arr_{number}": value for number, value in enumerate(state["momentum"])}, **logs}


def _assert_same_step(found, whole):
    assert found.keys() == whole.keys()
    for name in ("loss", "class_loss", "box_loss", "gradient_norm"):
        assert float(found[name]) == pytest.approx(float(whole[name]), rel=1e-5), name
    momenta = [name for name in whole if name.startswith("arr_")]
    largest = max(np.abs(whole[name]).max() for name in momenta)
    assert largest > 0
    # Measured: 1e-6. The sums are taken in another order.
    assert max(np.abs(found[name] - whole[name]).max() for name in momenta) < 1e-4 * largest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorflow", "jax"])
def test_parts_on_two_devices_make_the_step_of_the_whole_batch(on_two_devices, whole, name):
    _assert_same_step(on_two_devices(name), whole)


@pytest.fixture(scope="module")
def in_parts():
    return _Trainer(_PARTS, is_frozen=False)


@pytest.mark.slow
def test_parts_on_one_device_make_the_step_of_the_whole_batch(whole):
    state, logs = _Trainer(4, is_frozen=True, is_compiled=True).step(_batch())
    _assert_same_step({**{f"arr_{n}": value for n, value in enumerate(state["momentum"])}, **logs}, whole)


@pytest.mark.slow
def test_batch_statistics_move_with_each_part(in_parts):
    state, _ = in_parts.step(_batch())
    statistics = in_parts.first["non_trainable"]
    for part in range(_PARTS):
        rows = slice(part * _IMAGES // _PARTS, (part + 1) * _IMAGES // _PARTS)
        inputs = {name: keras.ops.convert_to_tensor(_batch()[name][rows]) for name in ("images", "valid_size")}
        _, statistics = in_parts.model.stateless_call(in_parts.first["trainable"], statistics, inputs, training=True)
    for found, expected in zip(state["non_trainable"], statistics, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_bad_part_leaves_the_whole_step_out(in_parts):
    batch = _batch()
    batch["boxes"][-1, 0, 2] = np.nan
    state, logs = in_parts.step(batch)
    assert logs["ok"] == 0
    for key in ("trainable", "non_trainable", "momentum", "average_trainable", "average_non_trainable"):
        for found, before in zip(state[key], in_parts.first[key], strict=True):
            np.testing.assert_array_equal(found, before)


def test_a_batch_that_has_no_such_parts_is_refused():
    message = r"`training\.accumulate_steps` is 3; it must evenly divide the 8 images per device"
    with pytest.raises(UserError, match=message):
        _Trainer(3, is_frozen=False)


if __name__ == "__main__":
    _write_step(pathlib.Path(sys.argv[1]))
