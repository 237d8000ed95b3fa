"""The training step: it learns, it is pure, and a bad batch leaves no trace."""

import dataclasses

import keras
import numpy as np
import pytest

from efficientdet import backend
from efficientdet.config import ExperimentConfig, OptimizerConfig
from efficientdet.model import anchors
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.training import loss_scale, losses, targets
from efficientdet.training import step as training_step
from efficientdet.training.distributed import engine, replicas

_COUNTERS = {"step", "updates", "bad_steps", "loss_scale", "good_steps"}
_SCHEDULE = {"peak": 0.02, "start": 0.01, "warmup_steps": 4.0, "total_steps": 1000.0}


def _batch(num_boxes=(1, 2), seed=0):
    """Two images of 64 x 64 with up to two boxes; float32 boxes may be changed."""
    rng = np.random.default_rng(seed)
    boxes = np.array([[[8, 8, 40, 40], [30, 30, 62, 62]], [[20, 4, 50, 36], [4, 30, 28, 60]]], np.float32)
    return {
        "images": rng.integers(0, 256, (2, 64, 64, 3), np.uint8),
        "valid_size": np.array([[64, 64], [64, 50]], np.int32),
        "boxes": boxes,
        "labels": np.array([[0, 1], [2, 0]], np.int32),
        "num_boxes": np.array(num_boxes, np.int32),
    }


class _Trainer:
    """A model, its first state, and its step on NumPy arrays."""

    def __init__(self, config, precision="float32", is_compiled=False, is_fixed=False, **optimizer):
        keras.utils.set_random_seed(0)
        self.model = EfficientDet(config, precision=precision)
        experiment = ExperimentConfig(model=config, optimizer=OptimizerConfig(average_decay=0.99, **optimizer))
        step = training_step.make_step(
            self.model, anchors.anchor_boxes(config), experiment, _SCHEDULE, replicas.OneDevice(), is_fixed=is_fixed
        )
        self.compiled = backend.compile_function(step) if is_compiled else step
        self.first = training_step.first_state(self.model, experiment.optimizer.method)

    def step(self, state, batch):
        state, logs = self.compiled(engine.to_device(state), engine.to_device(batch))
        return engine.to_host(state), {name: float(value) for name, value in engine.to_host(logs).items()}


@pytest.fixture(scope="module")
def config(tiny):
    return dataclasses.replace(tiny, image_size=(64, 64), batch_norm_momentum=0.9)


@pytest.fixture(scope="module")
def trainer(config):
    """Compiled once for all tests below: tracing takes longer than any of them."""
    return _Trainer(config, is_compiled=True)


@pytest.fixture(scope="module")
def after_one(trainer):
    return trainer.step(trainer.first, _batch())


def _assert_equal(a, b, keys):
    for key in keys:
        for left, right in zip(a[key], b[key], strict=True) if isinstance(a[key], list) else [(a[key], b[key])]:
            np.testing.assert_array_equal(left, right, err_msg=key)


def test_the_loss_falls_on_one_batch(trainer):
    state, losses = trainer.first, []
    for _ in range(15):
        state, logs = trainer.step(state, _batch())
        losses.append(logs["loss"])
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
    assert (int(state["step"]), int(state["updates"]), int(state["bad_steps"])) == (15, 15, 0)


def test_the_same_inputs_give_the_same_outputs(trainer, after_one):
    before = {
        key: np.copy(value) if not isinstance(value, list) else [v.copy() for v in value]
        for key, value in trainer.first.items()
    }
    again, logs = trainer.step(trainer.first, _batch())
    _assert_equal(trainer.first, before, before)
    _assert_equal(again, after_one[0], before)
    assert logs == after_one[1]


def test_a_step_leaves_the_model_s_own_variables_alone(trainer, after_one):
    _assert_equal(
        {"v": [v.numpy() for v in trainer.model.trainable_variables]}, {"v": trainer.first["trainable"]}, ["v"]
    )


def test_a_step_changes_every_kernel_and_every_batch_statistic(trainer, after_one):
    state, logs = after_one
    assert logs["ok"] == 1
    for variable, old, new in zip(
        trainer.model.trainable_variables, trainer.first["trainable"], state["trainable"], strict=True
    ):
        # Not every bias: one right before batch normalisation does nothing. test_layers looks at all gradients.
        if variable.path.endswith("kernel"):
            assert np.any(old != new), variable.path
    pairs = zip(trainer.first["non_trainable"], state["non_trainable"], strict=True)
    assert all(np.any(old != new) for old, new in pairs)


def _bad_batches():
    not_a_number, infinite = _batch(), _batch()
    not_a_number["boxes"][1, 0, 2] = np.nan
    infinite["boxes"][0, 0, 3] = np.inf
    return {"NaN": not_a_number, "infinity": infinite}


@pytest.mark.parametrize("name", _bad_batches())
def test_a_batch_with_broken_boxes_changes_nothing_but_counters(trainer, after_one, name):
    state = after_one[0]
    after, logs = trainer.step(state, _bad_batches()[name])
    assert logs["ok"] == 0
    _assert_equal(after, state, set(state) - _COUNTERS)
    assert (int(after["step"]), int(after["updates"]), int(after["bad_steps"])) == (2, 1, 1)
    assert after["loss_scale"] == 1


def test_a_broken_batch_statistic_alone_makes_a_step_bad(trainer):
    # Training does not read the running statistics, so loss and gradients stay finite.
    state = {**trainer.first, "non_trainable": [v.copy() for v in trainer.first["non_trainable"]]}
    state["non_trainable"][0][0] = np.inf
    after, logs = trainer.step(state, _batch())
    assert np.isfinite(logs["loss"])
    assert logs["ok"] == 0
    _assert_equal(after, state, set(state) - _COUNTERS)


def test_bad_steps_are_counted_in_a_row_and_forgotten_after_a_good_one(trainer):
    bad, counts, state = _bad_batches()["NaN"], [], trainer.first
    for batch in (bad, bad, _batch(), bad):
        state, logs = trainer.step(state, batch)
        counts.append(int(state["bad_steps"]))
        assert logs["bad_steps"] == counts[-1]
    assert counts == [1, 2, 0, 1]


def test_images_without_boxes_are_fine(trainer):
    state, logs = trainer.step(trainer.first, _batch(num_boxes=(0, 0)))
    assert logs["ok"] == 1
    assert logs["box_loss"] == 0
    assert all(np.isfinite(value).all() for value in state["trainable"])


def test_boxes_beyond_num_boxes_do_not_matter(trainer):
    other = _batch()
    other["boxes"][0, 1] = np.nan
    _assert_equal(trainer.step(trainer.first, other)[0], trainer.step(trainer.first, _batch())[0], trainer.first)


def test_the_first_average_moves_by_nine_elevenths(trainer, after_one):
    state = after_one[0]
    for name in ("trainable", "non_trainable"):
        for average, old, new in zip(state[f"average_{name}"], trainer.first[name], state[name], strict=True):
            np.testing.assert_allclose(average, old + (1 - 2 / 11) * (new - old), rtol=1e-5, atol=1e-7)


def test_the_average_includes_the_batch_statistics(trainer, after_one):
    paths = [v.path for v in trainer.model.non_trainable_variables]
    assert {path.rsplit("/", 1)[1] for path in paths} == {"moving_mean", "moving_variance"}
    assert all(
        np.any(average != old)
        for average, old in zip(after_one[0]["average_non_trainable"], trainer.first["non_trainable"], strict=True)
    )


def test_the_logs_hold_the_parts_of_the_loss(after_one):
    _, logs = after_one
    assert logs["loss"] == pytest.approx(logs["class_loss"] + 50 * logs["box_loss"], rel=1e-6)
    assert logs["learning_rate"] == pytest.approx(0.01)
    assert logs["gradient_norm"] <= 10 * (1 + 1e-5)


def test_l2_is_half_the_decay_times_the_squares_of_the_kernels(trainer, after_one):
    kernels = [
        value
        for variable, value in zip(trainer.model.trainable_variables, trainer.first["trainable"], strict=True)
        if variable.path.endswith("kernel")
    ]
    squares = sum((kernel.astype(np.float64) ** 2).sum() for kernel in kernels)
    assert after_one[1]["l2_loss"] == pytest.approx(0.5 * 4e-5 * squares, rel=1e-5)


def test_l2_adds_the_decay_times_each_kernel_to_its_gradient(config):
    # The first momentum is the gradient itself, where nothing is clipped.
    gradients = {}
    for decay in (0.0, 0.5):
        trainer = _Trainer(config, weight_decay=decay, clip_norm=0.0)
        gradients[decay] = trainer.step(trainer.first, _batch())[0]["momentum"]
    for variable, weight, without, decayed in zip(
        trainer.model.trainable_variables, trainer.first["trainable"], gradients[0.0], gradients[0.5], strict=True
    ):
        expected = 0.5 * weight if variable.path.endswith("kernel") else np.zeros_like(weight)
        # Gradients of a hundred or so, in float32, in two runs of their own.
        scale = max(1.0, np.abs(without).max())
        np.testing.assert_allclose(decayed - without, expected, atol=1e-4 * scale, err_msg=variable.path)


def test_with_fixed_statistics_weights_learn_and_statistics_stay(config):
    trainer = _Trainer(config, is_fixed=True)
    state, logs = trainer.step(trainer.first, _batch())
    assert logs["ok"] == 1
    _assert_equal(state, trainer.first, ["non_trainable", "average_non_trainable"])
    for variable, gradient in zip(trainer.model.trainable_variables, state["momentum"], strict=True):
        if "backbone" in variable.path:  # a level of the heads may have no box
            assert np.any(gradient != 0), variable.path


def test_with_fixed_statistics_the_loss_is_that_of_inference(config):
    """What is trained is what is used: the consistency that an exploding image lacks."""
    trainer = _Trainer(config, is_fixed=True)
    rng = np.random.default_rng(0)
    state = {**trainer.first}
    state["non_trainable"] = [value + rng.uniform(0, 0.5, value.shape) for value in trainer.first["non_trainable"]]
    state["non_trainable"] = [value.astype(np.float32) for value in state["non_trainable"]]
    _, logs = trainer.step(state, _batch())
    inputs = {name: _batch()[name] for name in ("images", "valid_size")}
    arrays = engine.to_device([state["trainable"], state["non_trainable"]])
    raw, _ = trainer.model.stateless_call(*arrays, engine.to_device(inputs), training=False)
    batch = engine.to_device(_batch())
    wanted = targets.assign(anchors.anchor_boxes(config), batch, 0.5)
    expected = losses.detection_losses(raw, wanted, ExperimentConfig().loss)
    assert logs["loss"] == pytest.approx(float(expected["loss"]), rel=1e-4)


def test_adam_moves_every_weight_by_about_the_rate_in_its_first_step(config):
    trainer = _Trainer(config, method="adam", weight_decay=0.0)
    state, logs = trainer.step(trainer.first, _batch())
    assert logs["ok"] == 1
    for old, new, gradient in zip(trainer.first["trainable"], state["trainable"], state["momentum"], strict=True):
        moved = np.abs(new - old)[np.abs(gradient) > 1e-3]
        np.testing.assert_allclose(moved, logs["learning_rate"], rtol=2e-3)


@pytest.fixture(scope="module")
def half(config):
    return _Trainer(config, precision="mixed_float16")


def test_float16_starts_with_a_loss_scale(half, trainer):
    assert half.first["loss_scale"] == 2**15
    assert trainer.first["loss_scale"] == 1


def test_the_loss_scale_halves_after_an_overflow(half):
    # 2^40 times any gradient is beyond float16's 65504.
    state = {**half.first, "loss_scale": np.float32(2.0**40), "good_steps": np.int32(5)}
    after, logs = half.step(state, _batch())
    assert logs["ok"] == 0
    assert after["loss_scale"] == 2.0**39
    assert (int(after["bad_steps"]), int(after["good_steps"]), int(after["updates"])) == (0, 0, 0)
    assert logs["is_overflow"] == 1
    _assert_equal(after, state, set(state) - _COUNTERS)


def test_an_overflow_neither_counts_as_a_bad_step_nor_forgets_the_ones_before(half):
    state = {**half.first, "loss_scale": np.float32(2.0**40), "bad_steps": np.int32(3)}
    assert int(half.step(state, _batch())[0]["bad_steps"]) == 3


def test_a_loss_that_is_not_finite_is_the_batch_s_fault_at_any_loss_scale(half):
    after, logs = half.step(half.first, _bad_batches()["NaN"])
    assert (logs["ok"], logs["is_overflow"], int(after["bad_steps"])) == (0, 0, 1)
    assert after["loss_scale"] == half.first["loss_scale"]


def test_at_the_least_loss_scale_what_is_not_finite_counts_as_a_bad_step(half):
    state = {**half.first, "non_trainable": [v.copy() for v in half.first["non_trainable"]]}
    state["non_trainable"][0][0] = np.inf  # the loss stays finite
    after, logs = half.step({**state, "loss_scale": np.float32(loss_scale.LEAST)}, _batch())
    assert (logs["ok"], logs["is_overflow"], int(after["bad_steps"])) == (0, 0, 1)
    assert after["loss_scale"] == loss_scale.LEAST


def test_the_loss_scale_doubles_after_2000_good_steps(half):
    state = {**half.first, "loss_scale": np.float32(64.0), "good_steps": np.int32(1999)}
    after, logs = half.step(state, _batch())
    assert logs["ok"] == 1
    assert after["loss_scale"] == 128
    assert int(after["good_steps"]) == 0


def test_float16_makes_nearly_the_same_step(half, after_one):
    # From a smaller scale, so that this first step is not lost to finding it.
    state, logs = half.step({**half.first, "loss_scale": np.float32(64.0)}, _batch())
    assert logs["ok"] == 1
    assert {value.dtype for value in state["trainable"]} == {np.dtype(np.float32)}
    assert logs["loss"] == pytest.approx(after_one[1]["loss"], rel=0.05)
