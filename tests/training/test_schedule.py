"""Epochs in steps, and what follows from their number: google/automl's values for COCO, others for small data."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet import config as configs
from efficientdet import presets
from efficientdet.config import ExperimentConfig, ModelConfig, OptimizerConfig, TrainingConfig
from efficientdet.training import optimizer, schedule

_COCO = 118_287
_NAMES = (
    "optimizer.method",
    "optimizer.learning_rate",
    "optimizer.warmup_epochs",
    "model.batch_norm_momentum",
    "training.recalibrate_images",
    "training.fixed_statistics",
)


def _derived(batch_size, epochs, num_examples):
    """From a whole detector, so with SGD."""
    config = ExperimentConfig(training=TrainingConfig(batch_size=batch_size, epochs=epochs), weights="coco")
    return schedule.derive(config, num_examples)[1]


@pytest.mark.parametrize("batch_size", [8, 64, 128, 256, 512])
def test_coco_has_google_s_values_whatever_the_batch(batch_size):
    is_small = batch_size < 32
    expected = ("sgd", 0.08 * batch_size / 64, 1.0, 0.99, 640 if is_small else 0, 0.5 if is_small else 0)
    assert _derived(batch_size, 300.0, _COCO) == dict(zip(_NAMES, expected, strict=True))


# By hand. 900 steps of 8: sqrt(10000 / 900) is over sqrt(64 / 8), so 0.08 sqrt(8 / 64); a tenth is 90 steps; 1 - 1/18.
_SMALL = {
    "300 images, batch 8, 24 epochs": ((8, 24.0, 300), (0.0282843, 2.4, 0.944444, 300, 0.5)),
    # 112.5 steps, so 113; 4.6875 an epoch; a fiftieth of it is below 10.
    "300 images, batch 64, 24 epochs": ((64, 24.0, 300), (0.08, 11.3 / 4.6875, 0.9, 0, 0)),
    # 2500 steps: twice the rate in proportion to the batch; an epoch is 25 steps, the warm-up 100; 1 - 1/50.
    "200 images, batch 8, 100 epochs": ((8, 100.0, 200), (0.02, 4.0, 0.98, 200, 0.5)),
    # 90,000 steps: long enough for a rate in proportion.
    "2,400 images, batch 8, 300 epochs": ((8, 300.0, 2400), (0.01, 1.0, 0.99, 640, 0.5)),
    "one step": ((8, 1.0, 1), (0.0282843, 0.8, 0.9, 1, 0.5)),
}


@pytest.mark.parametrize("name", _SMALL)
def test_small_data_has_values_of_its_own(name):
    arguments, expected = _SMALL[name]
    found = _derived(*arguments)
    assert list(found) == list(_NAMES)
    assert found.pop("optimizer.method") == "sgd"
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("start", "num_examples", "expected"),
    [
        pytest.param({}, 300, "adam", id="random weights, 900 steps"),
        pytest.param({"backbone": "imagenet"}, 300, "adam", id="a backbone that knows images, 900 steps"),
        pytest.param({"weights": "coco"}, 300, "sgd", id="a detector"),
        pytest.param({}, 3400, "sgd", id="random weights, 10,200 steps"),
        pytest.param(
            {"optimizer": OptimizerConfig(learning_rate=0.03)}, 300, "sgd", id="a rate, as published ones are"
        ),
    ],
)
def test_adam_is_for_short_runs_that_start_from_no_detector(start, num_examples, expected):
    config = ExperimentConfig(training=TrainingConfig(batch_size=8, epochs=24), **start)
    assert schedule.derive(config, num_examples)[0].optimizer.method == expected


def test_adam_s_rate_goes_with_the_root_of_the_batch():
    assert schedule.adam_rate(64) == pytest.approx(2 * schedule.adam_rate(16))


def test_adam_s_steps_are_smaller_behind_a_backbone():
    for backbone, expected in (("", 0.01), ("imagenet", 0.004)):
        config = ExperimentConfig(training=TrainingConfig(batch_size=16, epochs=24), backbone=backbone)
        assert schedule.derive(config, 300)[0].optimizer.learning_rate == pytest.approx(expected)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 900), (0.5, 450), (1.0, 0)])
def test_statistics_stay_for_the_last_part_of_a_run(fraction, expected):
    config = ExperimentConfig(training=TrainingConfig(batch_size=8, epochs=24, fixed_statistics=fraction))
    assert schedule.make_schedule(schedule.derive(config, 300)[0], 300).fixed_from == expected


@pytest.mark.parametrize("name", presets.RECIPES)
def test_nvidia_s_recipes_keep_their_values_and_google_s_batch_statistics(name):
    recipe = presets.find_preset(name)
    config, derived = schedule.derive(recipe, _COCO)
    if name.startswith(("d0-amp", "d0-fp32", "d0-tf32")):
        assert derived == {
            "model.batch_norm_momentum": 0.99,
            "training.recalibrate_images": 0,
            "training.fixed_statistics": 0.0,
        }
        assert config.optimizer == recipe.optimizer


@pytest.mark.parametrize("name", ["demo", "d0-cpu"])
def test_presets_for_small_data_leave_nothing_open(name):
    config = presets.find_preset(name)
    assert schedule.derive(config, 300) == (config, {})


def test_an_explicit_value_wins():
    config = ExperimentConfig(
        model=ModelConfig(batch_norm_momentum=0.5),
        optimizer=OptimizerConfig(method="adam", learning_rate=0.3, warmup_epochs=0.0),
        training=TrainingConfig(recalibrate_images=7, fixed_statistics=0.1),
    )
    assert schedule.derive(config, 300) == (config, {})
    one_open = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=None))
    found, derived = schedule.derive(one_open, 300)
    assert list(derived) == ["optimizer.learning_rate"]
    assert dataclasses.replace(found.optimizer, learning_rate=None) == one_open.optimizer


_RUNS = {
    "batch_size": st.integers(1, 4096),
    "epochs": st.floats(0.01, 1000),
    "num_examples": st.integers(1, 10**6),
}


def test_what_is_normalised_together_decides_about_statistics():
    training = TrainingConfig(batch_size=64, accumulate_steps=4)
    _, derived = schedule.derive(ExperimentConfig(training=training), _COCO)
    assert derived["training.recalibrate_images"] == 640


@settings(deadline=None, max_examples=50)
@given(**_RUNS)
def test_derived_values_are_possible(batch_size, epochs, num_examples):
    config = ExperimentConfig(training=TrainingConfig(batch_size=batch_size, epochs=epochs))
    configs.check(schedule.derive(config, num_examples)[0])


@settings(deadline=None, max_examples=50)
@given(**_RUNS)
def test_the_warm_up_takes_no_more_than_a_tenth_of_the_run(batch_size, epochs, num_examples):
    config = ExperimentConfig(training=TrainingConfig(batch_size=batch_size, epochs=epochs))
    config, derived = schedule.derive(config, num_examples)
    steps = schedule.make_schedule(config, num_examples).total_steps
    assert derived["optimizer.warmup_epochs"] * num_examples / batch_size <= steps / 10 * (1 + 1e-9)


@settings(deadline=None, max_examples=50)
@given(batch_size=st.integers(1, 64), steps=st.integers(1, 10**6))
def test_the_rate_lies_between_that_of_the_batch_and_that_of_its_root(batch_size, steps):
    share = batch_size / 64
    rate = schedule.peak_rate(batch_size, steps)
    assert 0.08 * share * (1 - 1e-9) <= rate <= 0.08 * share**0.5 * (1 + 1e-9)
    assert rate >= schedule.peak_rate(batch_size, steps + 1000)


def test_the_weight_average_remembers_a_tenth_of_a_short_run():
    # What is averaged is the number of the update: 1, 2, ..., 1000.
    average = 0.0
    for number in range(1, 1001):
        decay = float(optimizer.average_decay(np.int32(number), OptimizerConfig().average_decay))
        average = decay * average + (1 - decay) * number
    assert 1000 - average == pytest.approx(100, rel=0.02)


def test_the_schedule_is_in_steps():
    training = TrainingConfig(batch_size=8, epochs=24, evaluate_every=8, evaluate_from=10)
    config = ExperimentConfig(training=training, weights="coco")
    found = schedule.make_schedule(schedule.derive(config, 300)[0], 300)
    assert found.total_steps == 900
    assert found.steps_per_epoch == 37.5
    assert found.evaluation_steps == {600, 900}
    assert found.learning_rate == pytest.approx(
        {"peak": 0.08 / 8**0.5, "start": 1e-4, "warmup_steps": 90.0, "total_steps": 900.0}
    )
