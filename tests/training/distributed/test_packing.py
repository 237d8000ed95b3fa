"""Arrays joined into vectors come apart as they were, and a step with them is the step without."""

import dataclasses

import numpy as np
import pytest
from keras import ops

from efficientdet import config as configs
from efficientdet import presets
from efficientdet.data import synthetic
from efficientdet.model import anchors
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.training import step as training_step
from efficientdet.training.distributed import engine, packing, replicas

_SHAPES = [(2, 3), (), (4,), (1, 1, 5), (2,)]
_KINDS = ["kernel", "other", "other", "kernel", "seed"]
_SCHEDULE = {"peak": 0.01, "start": 0.001, "warmup_steps": 2.0, "total_steps": 10.0}


@pytest.mark.parametrize("is_on_device", [False, True])
def test_joined_arrays_come_apart_as_they_were(rng, is_on_device):
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in _SHAPES]
    arrays[-1] = arrays[-1].astype(np.uint32)
    given = engine.to_device(arrays) if is_on_device else arrays
    kept = packing.Joined(_SHAPES, _KINDS)
    packed = kept.pack(given)
    assert [(tuple(vector.shape), "float" in str(vector.dtype)) for vector in packed] == [
        ((11,), True),
        ((5,), True),
        ((2,), False),
    ]
    for found, array in zip(kept.unpack(packed), arrays, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(found), array)
    for found, array in zip(kept.unpack(kept.join(kept.pieces(packed))), arrays, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(found), array)


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_a_step_with_joined_arrays_is_the_step_without(method):
    model_config = dataclasses.replace(presets.MODELS["demo"], image_size=(64, 64), num_cells=1, head_repeats=1)
    config = configs.ExperimentConfig(
        model=model_config,
        # Adam divides by gradients, and some are rounding errors.
        optimizer=configs.OptimizerConfig(method=method, weight_decay=0.1, clip_norm=0.5),
    )
    model = EfficientDet(model_config)
    batch, _ = next(synthetic.batches(batch_size=4, image_size=(64, 64), max_boxes=8, seed=0, num_classes=6))
    found = []
    for kept in (None, packing.joined(model)):
        device = replicas.OneDevice(kept)
        step = device.compile(
            training_step.make_step(model, anchors.anchor_boxes(model_config), config, _SCHEDULE, device), xla="off"
        )
        state = device.place_state(training_step.first_state(model, method))
        for _ in range(2):
            state, logs = step(state, device.place_batch(batch))
        found.append((engine.to_host(device.read_state(state)), engine.to_host(logs)))
    (state, logs), (joined_state, joined_logs) = found
    for name in ("loss", "l2_loss", "gradient_norm"):
        np.testing.assert_allclose(joined_logs[name], logs[name], rtol=1e-5, err_msg=name)
    assert joined_state.keys() == state.keys()
    for name in ("momentum", "average_trainable", "non_trainable"):
        assert [array.shape for array in joined_state[name]] == [array.shape for array in state[name]]
        # The gradient of a bias before a normalisation is 0; what is computed is the rounding of far larger numbers.
        largest = max(np.abs(array).max(initial=0) for array in state[name])
        for one, other in zip(joined_state[name], state[name], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * max(largest, 1))
