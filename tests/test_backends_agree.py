"""TensorFlow and JAX compute the same: forward, targets, losses, detections, one training step.

Run as a program, this file writes the numbers of the backend in KERAS_BACKEND; the tests run it once a backend.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

_SIZE = (64, 64)


def _write_numbers(path):
    """Computes everything from weights and images that NumPy draws, and writes it."""
    from efficientdet import backend

    running = backend.choose()
    from efficientdet.config import BackboneConfig, ExperimentConfig, ModelConfig, OptimizerConfig, PostprocessConfig
    from efficientdet.model import anchors, postprocess
    from efficientdet.model.efficientdet import EfficientDet
    from efficientdet.training import losses, step, targets
    from efficientdet.training.distributed import engine, replicas

    config = ModelConfig(
        image_size=_SIZE,
        num_classes=2,
        backbone=BackboneConfig(width=0.25, depth=0.25),
        feature_channels=8,
        num_cells=1,
        head_repeats=1,
        batch_norm_momentum=0.99,
    )
    experiment = ExperimentConfig(model=config, optimizer=OptimizerConfig(clip_norm=0.0))
    model = EfficientDet(config)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        noise = rng.normal(size=variable.shape)
        is_positive = variable.path.endswith(("gamma", "variance"))
        fan_in = max(1, np.prod(variable.shape[:-1], dtype=int))
        is_kernel = variable.path.endswith("kernel")
        variable.assign(
            np.exp(0.2 * noise) if is_positive else noise / np.sqrt(fan_in) if is_kernel else 0.5 + 0.1 * noise
        )
    batch = {
        "images": rng.integers(0, 256, (2, *_SIZE, 3), np.uint8),
        "valid_size": np.array([[64, 64], [64, 40]], np.int32),
        "boxes": np.array([[[8, 8, 40, 40], [30, 30, 62, 62]], [[20, 4, 50, 36], [0, 0, 0, 0]]], np.float32),
        "labels": np.array([[0, 1], [1, 0]], np.int32),
        "num_boxes": np.array([2, 1], np.int32),
    }
    batch, state = engine.to_device(batch), engine.to_device(step.first_state(model))
    boxes = anchors.anchor_boxes(config)
    schedule = {"peak": 0.1, "start": 0.05, "warmup_steps": 10.0, "total_steps": 100.0}
    training = step.make_step(model, boxes, experiment, schedule, replicas.OneDevice())

    def compute(state, batch):
        raw, _ = model.stateless_call(state["trainable"], state["non_trainable"], batch, training=False)
        wanted = targets.assign(boxes, batch, 0.5)
        found = postprocess.detect(raw, boxes, PostprocessConfig(max_detections=20))
        values = losses.detection_losses(raw, wanted, experiment.loss)
        return {"raw": raw, "targets": wanted, "losses": values, "detections": found}

    # JAX's single operations are each compiled when they run eagerly: one function takes less time. TensorFlow runs
    # them as they are.
    if running == "jax":
        compute, training = backend.compile_function(compute), backend.compile_function(training)
    parts = engine.to_host(compute(state, batch))
    new, logs = engine.to_host(training(state, batch))
    arrays = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    arrays |= {f"logs/{name}": value for name, value in logs.items()}
    for key in ("trainable", "non_trainable", "momentum", "average_trainable", "average_non_trainable"):
        for variable, value in zip(
            model.non_trainable_variables if "non_" in key else model.trainable_variables, new[key], strict=True
        ):
            arrays[f"{key}/{variable.path}"] = value
    other = {"jax": "tensorflow", "tensorflow": "jax"}[running]
    np.savez(path, running=running, imported_the_other=other in sys.modules, **arrays)


def _start(name, path):
    # Without XLA's optimisations JAX compiles in half of the time and computes the same.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0" if name == "jax" else ""
    settings = {"KERAS_BACKEND": name, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": flags}
    environment = {**os.environ, **settings}
    return subprocess.Popen([sys.executable, __file__, path], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Runs both backends, side by side: backend -> name -> array."""
    folder = tmp_path_factory.mktemp("backends")
    processes = {name: _start(name, folder / f"{name}.npz") for name in ("tensorflow", "jax")}
    found = {}
    for name, process in processes.items():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        with np.load(folder / f"{name}.npz") as file:
            found[name] = dict(file)
    return found


def _difference(numbers, prefix):
    """Computes, for each array, the largest difference over the largest value."""
    tensorflow, jax = numbers["tensorflow"], numbers["jax"]
    names = [name for name in tensorflow if name.startswith(prefix)]
    assert names
    return {
        name: float(np.abs(tensorflow[name] - jax[name]).max() / max(1e-3, np.abs(tensorflow[name]).max()))
        for name in names
    }


def test_each_ran_on_its_own_backend(numbers):
    assert {name: str(values["running"]) for name, values in numbers.items()} == {
        "tensorflow": "tensorflow",
        "jax": "jax",
    }


def test_training_on_jax_imports_no_tensorflow(numbers):
    assert not numbers["jax"]["imported_the_other"]


def test_both_name_the_same_arrays(numbers):
    assert set(numbers["tensorflow"]) == set(numbers["jax"])


# Measured: 7e-7. The backends add in other orders; the network is some 40 layers deep.
@pytest.mark.parametrize("part", ["raw", "losses", "logs"])
def test_they_agree_on(numbers, part):
    differences = _difference(numbers, f"{part}/")
    assert max(differences.values()) < 1e-5, differences


def test_they_agree_on_the_targets(numbers):
    tensorflow, jax = numbers["tensorflow"], numbers["jax"]
    assert (tensorflow["targets/labels"] >= 0).any()
    np.testing.assert_array_equal(tensorflow["targets/labels"], jax["targets/labels"])
    np.testing.assert_allclose(tensorflow["targets/box_deltas"], jax["targets/box_deltas"], atol=1e-6)


def test_they_agree_on_the_detections(numbers):
    tensorflow, jax = numbers["tensorflow"], numbers["jax"]
    assert tensorflow["detections/num_detections"].min() > 5
    np.testing.assert_array_equal(tensorflow["detections/labels"], jax["detections/labels"])
    np.testing.assert_allclose(tensorflow["detections/scores"], jax["detections/scores"], rtol=1e-4)
    np.testing.assert_allclose(tensorflow["detections/boxes"], jax["detections/boxes"], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("part", ["trainable", "non_trainable", "average_trainable", "average_non_trainable"])
def test_they_agree_on_the_state_after_a_step(numbers, part):
    # Measured: 8e-6, in weights that are near zero and get a large gradient.
    differences = _difference(numbers, f"{part}/")
    assert max(differences.values()) < 1e-4, max(differences, key=differences.get)


def test_they_agree_on_the_gradients(numbers):
    # The first momentum is the gradient. Measured against the largest gradient of all, since those of biases before
    # batch normalisation are rounding noise.
    tensorflow, jax = numbers["tensorflow"], numbers["jax"]
    names = [name for name in tensorflow if name.startswith("momentum/")]
    largest = max(np.abs(tensorflow[name]).max() for name in names)
    assert max(np.abs(tensorflow[name] - jax[name]).max() for name in names) < 1e-4 * largest


if __name__ == "__main__":
    _write_numbers(pathlib.Path(sys.argv[1]))
