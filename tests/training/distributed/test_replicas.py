"""One step on two devices: the whole batch's statistics, or each device's own; the same on both as on one.

Run as a program, this file makes the step on two devices of the backend in KERAS_BACKEND.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from efficientdet import backend
from efficientdet.config import BackboneConfig, ExperimentConfig, ModelConfig, OptimizerConfig, TrainingConfig
from efficientdet.errors import UserError

_IMAGES = 4
_MODES = ("global", "per_replica")
_MODEL = ModelConfig(
    image_size=(64, 64),
    num_classes=2,
    backbone=BackboneConfig(width=0.25, depth=0.25),
    feature_channels=8,
    num_cells=1,
    head_repeats=1,
    max_level=6,
    batch_norm_momentum=0.9,
)
_SCHEDULE = {"peak": 0.1, "start": 0.05, "warmup_steps": 10.0, "total_steps": 100.0}


def _batch(rows=slice(None)):
    """Four images, two of which are dark, so that the statistics of the halves differ."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (_IMAGES, 3, 2))
    images = rng.integers(0, 256, (_IMAGES, 64, 64, 3), np.uint8)
    images[2:] //= 4
    batch = {
        "images": images,
        "valid_size": np.tile(np.array([64, 64], np.int32), (_IMAGES, 1)),
        "boxes": np.concatenate([corners, corners + rng.uniform(12, 32, corners.shape)], -1).astype(np.float32),
        "labels": rng.integers(0, 2, (_IMAGES, 3)).astype(np.int32),
        "num_boxes": np.array([1, 3, 0, 2], np.int32),
    }
    return {name: values[rows] for name, values in batch.items()}


class _Trainer:
    """A model whose weights NumPy draws, so that every backend has the same, and its step."""

    def __init__(self, mode, *, images=_IMAGES, devices=0):
        from efficientdet.model import anchors
        from efficientdet.model.efficientdet import EfficientDet
        from efficientdet.training import step as training_step
        from efficientdet.training.distributed import replicas

        training = TrainingConfig(batch_size=images, devices=devices, batch_norm=mode)
        experiment = ExperimentConfig(model=_MODEL, training=training, optimizer=OptimizerConfig(average_decay=0.99))
        self.replicas = replicas.make_replicas(training)
        model = EfficientDet(_MODEL, kernels=self.replicas.kernels())
        self.replicas.keep_state_of(model)
        rng = np.random.default_rng(0)
        for variable in model.weights:
            noise = rng.normal(size=variable.shape)
            is_positive = variable.path.endswith(("gamma", "variance"))
            fan_in = max(1, np.prod(variable.shape[:-1], dtype=int))
            is_kernel = variable.path.endswith("kernel")
            variable.assign(
                np.exp(0.2 * noise) if is_positive else noise / np.sqrt(fan_in) if is_kernel else 0.1 * noise
            )
        step = training_step.make_step(model, anchors.anchor_boxes(_MODEL), experiment, _SCHEDULE, self.replicas)
        self._step = self.replicas.compile(step, xla="off") if self.replicas.count > 1 else step
        self._first = training_step.first_state(model)

    def step(self, batch):
        """Makes the first step; returns arrays by name: of the state, and logs."""
        from efficientdet.training.distributed import engine

        state = self.replicas.place_state(self._first)
        state, logs = self._step(state, self.replicas.place_batch(batch))
        state, logs = engine.to_host((self.replicas.read_state(state), self.replicas.first(logs)))
        lists = {"momentum": state["momentum"], "non_trainable": state["non_trainable"]}
        return {**logs, **{f"{key}/{n}": array for key, arrays in lists.items() for n, array in enumerate(arrays)}}


def _write_step(folder, mode):
    """Makes the step in one mode on two devices."""
    if backend.choose() == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        tf.config.run_functions_eagerly(True)
    trainer = _Trainer(mode, devices=2)
    assert trainer.replicas.count == 2
    np.savez(folder / f"{backend.running()}-{mode}.npz", **trainer.step(_batch()))


@pytest.fixture(scope="module")
def on_two_devices(tmp_path_factory, quick_jax):
    """Runs both backends, side by side with this process: (backend, mode) -> its arrays."""
    folder = tmp_path_factory.mktemp("replicas")
    started = {}
    for name in ("tensorflow", "jax"):
        settings = {"KERAS_BACKEND": name, "CUDA_VISIBLE_DEVICES": ""}
        if name == "jax":
            flags = f"{quick_jax['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
            settings |= {**quick_jax, "XLA_FLAGS": flags}
        # A process a mode: TensorFlow mixes up the sums of two strategies.
        for modes in [_MODES] if name == "jax" else [(mode,) for mode in _MODES]:
            words = [sys.executable, __file__, folder, *modes]
            process = subprocess.Popen(words, env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True)
            started |= {(name, mode): process for mode in modes}

    def read(name, mode):
        process = started[name, mode]
        if not process.stderr.closed:
            _, errors = process.communicate(timeout=900)
            assert process.returncode == 0, errors
        with np.load(folder / f"{name}-{mode}.npz") as file:
            return dict(file)

    return read


@pytest.fixture(scope="module")
def halves(on_two_devices):
    """Each half of the batch on one device, for itself."""
    return [_Trainer("global", images=2).step(_batch(rows)) for rows in (slice(0, 2), slice(2, 4))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorflow", "jax"])
def test_with_statistics_of_the_whole_batch_two_devices_make_the_step_of_one(on_two_devices, name):
    found, whole = on_two_devices(name, "global"), _Trainer("global").step(_batch())
    assert found.keys() == whole.keys()
    for log in ("loss", "class_loss", "box_loss", "gradient_norm"):
        assert float(found[log]) == pytest.approx(float(whole[log]), rel=1e-5), log
    for key in ("momentum", "non_trainable"):
        names = [each for each in whole if each.startswith(f"{key}/") and whole[each].dtype.kind == "f"]
        largest = max(np.abs(whole[each]).max() for each in names)
        # Sums are taken in another order.
        assert max(np.abs(found[each] - whole[each]).max() for each in names) < 1e-4 * largest, key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorflow", "jax"])
def test_with_statistics_per_replica_each_device_normalises_its_own_part(on_two_devices, halves, name):
    found = on_two_devices(name, "per_replica")
    for key in (each for each in found if each.startswith("non_trainable/") and found[each].dtype.kind == "f"):
        expected = np.mean([half[key] for half in halves], axis=0)
        np.testing.assert_allclose(found[key], expected, rtol=1e-4, atol=1e-5, err_msg=key)
    whole = on_two_devices(name, "global")
    assert abs(float(found["class_loss"]) - float(whole["class_loss"])) > 1e-4, "the halves are not alike"


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"`training\.devices` is 99"):
        _Trainer("global", devices=99)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        _write_step(pathlib.Path(sys.argv[1]), each)
