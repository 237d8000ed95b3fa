"""The recipes: NVIDIA's published rates at their epochs, and that each starts with its real schedule."""

import dataclasses
import json

import numpy as np
import pytest

from efficientdet import backend, presets
from efficientdet import config as configs
from efficientdet.config import DataConfig, EvaluationConfig
from efficientdet.errors import UserError
from efficientdet.training import optimizer
from efficientdet.training.run import train

# batch, steps an epoch of 120,000 images, peak, warm-up epochs, schedule, average, momentum, rate at epoch 300
_TABLE = {
    "d0-amp-8xa100": (1600, 75, 2.2, 25, 400, 0.999, 0.93, 0.36396, "mixed_float16"),
    "d0-tf32-8xa100": (832, 145, 1.1, 25, 400, 0.999, 0.93, 0.18198, "tf32"),
    "d0-amp-8xv100": (512, 235, 0.7, 5, 300, 0.9999, 0.9, 0.0, "mixed_float16"),
    "d0-fp32-8xv100": (320, 375, 0.4, 5, 300, 0.9999, 0.9, 0.0, "float32"),
    "d0-amp-32xv100": (2048, 59, 1.5, 90, 350, 0.999, 0.95, 0.13276, "mixed_float16"),
    "d0-fp32-32xv100": (1280, 94, 1.0, 90, 350, 0.999, 0.95, 0.08851, "float32"),
}


@pytest.mark.parametrize("name", _TABLE)
def test_a_recipe_has_nvidia_s_values(name):
    batch, _, peak, warmup, schedule, average, momentum, _, precision = _TABLE[name]
    recipe = presets.find_preset(name)
    assert recipe.training.batch_size == batch
    assert recipe.training.precision == precision
    assert recipe.training.epochs == 300
    settings = recipe.optimizer
    found = (settings.learning_rate, settings.warmup_epochs, settings.schedule_epochs)
    assert found == (peak, warmup, schedule)
    assert (settings.average_decay, settings.momentum) == (average, momentum)


@pytest.mark.parametrize("name", _TABLE)
@pytest.mark.parametrize("epoch", [0, "warm", 300])
def test_the_rate_at_an_epoch_is_nvidia_s(name, epoch):
    _, steps, peak, warmup, schedule, _, _, at_300, _ = _TABLE[name]
    expected = {0: 1e-4, "warm": peak, 300: at_300}[epoch]
    step = np.int32(steps * (warmup if epoch == "warm" else epoch))
    found = optimizer.learning_rate(
        step, peak=peak, start=1e-4, warmup_steps=warmup * steps, total_steps=schedule * steps
    )
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", _TABLE)
def test_a_recipe_starts_and_logs_its_rates(name, tiny, tmp_path, uncompiled):
    """The real schedule with a shrunken network: an epoch is one step, the first six are made."""
    recipe = presets.find_preset(name)
    batch, _, peak, warmup, _, *_ = _TABLE[name]
    config = dataclasses.replace(
        recipe,
        backbone="",
        run_dir=str(tmp_path / "run"),
        model=dataclasses.replace(tiny, image_size=(32, 32), feature_channels=8),
        data=DataConfig(train="synthetic", validation="none", synthetic_examples=batch // 64, synthetic_classes=2),
        training=dataclasses.replace(recipe.training, batch_size=batch // 64, epochs=6, log_every=1),
        evaluation=EvaluationConfig(batch_size=4),
    )
    train(config)
    backend.use_precision("float32")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["values"]["learning_rate"] for line in lines if line["kind"] == "train"]
    expected = [1e-4 + (peak - 1e-4) * step / warmup for step in range(6)]
    if warmup == 5:
        expected[5] = peak
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize("name", presets.RECIPES)
def test_a_recipe_has_no_impossible_value(name):
    configs.check(presets.find_preset(name))
    assert presets.find_preset(name).preset == name


def test_a_schedule_may_not_end_before_the_run():
    recipe = presets.find_preset("d0-amp-8xa100")
    short = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, schedule_epochs=200.0))
    with pytest.raises(UserError, match=r"`optimizer\.schedule_epochs` is 200"):
        configs.check(short)


def test_tf32_is_another_arithmetic_than_float32():
    import tensorflow as tf

    assert backend.use_precision("tf32") == "float32"
    assert tf.config.experimental.tensor_float_32_execution_enabled()
    assert backend.use_precision("float32") == "float32"
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
