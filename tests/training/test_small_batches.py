"""Batches of an image or two: they train, also on images without boxes, and what they cannot do is said."""

import dataclasses

import keras
import numpy as np
import pytest

from efficientdet import backend
from efficientdet.config import ExperimentConfig, OptimizerConfig, TrainingConfig
from efficientdet.data import synthetic
from efficientdet.model import anchors
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.training import step as training_step
from efficientdet.training.distributed import engine, replicas

_STEPS = 30


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_one_image_at_a_time_trains_without_a_number_that_is_not_finite(tiny, precision):
    config = dataclasses.replace(tiny, image_size=(64, 64), batch_norm_momentum=0.9)
    keras.utils.set_random_seed(0)
    model = EfficientDet(config, precision=precision)
    experiment = ExperimentConfig(model=config, optimizer=OptimizerConfig(average_decay=0.9))
    schedule = {"peak": 0.03, "start": 1e-4, "warmup_steps": 5.0, "total_steps": float(_STEPS)}
    step = training_step.make_step(model, anchors.anchor_boxes(config), experiment, schedule, replicas.OneDevice())
    compiled = backend.compile_function(step)
    state, failed = engine.to_device(training_step.first_state(model)), 0.0
    images = synthetic.batches(batch_size=1, image_size=(64, 64), max_boxes=8, seed=0, num_classes=3, num_images=8)
    for number in range(_STEPS):
        batch, _ = next(images)
        num_boxes = batch["num_boxes"] * (number % 3 > 0)  # every third image has nothing on it
        state, logs = compiled(state, engine.to_device({**batch, "num_boxes": num_boxes.astype(np.int32)}))
        logs = engine.to_host(logs)
        assert np.isfinite(logs["loss"])
        assert (logs["box_loss"] > 0) == (number % 3 > 0)
        failed += 1 - logs["ok"]
        assert logs["ok"] or logs["is_overflow"], "of the loss scale, on the way to the right one"
    assert failed <= (5 if precision == "mixed_float16" else 0)
    state = engine.to_host(state)
    for key in ("trainable", "non_trainable", "average_trainable", "average_non_trainable"):
        assert all(np.isfinite(value).all() for value in state[key])


_LONE = {
    "one image whose coarsest level is one cell": ((1, 1, "global", 1, (128, 128)), True),
    "one image of two cells": ((1, 1, "global", 1, (128, 160)), False),
    "two images": ((2, 1, "global", 1, (128, 128)), False),
    "a part of one image": ((4, 4, "global", 1, (64, 64)), True),
    "an image for each of two devices, statistics over both": ((2, 1, "global", 2, (64, 64)), False),
    "an image for each of two devices, each for itself": ((2, 1, "per_replica", 2, (64, 64)), True),
}


@pytest.mark.parametrize("name", _LONE)
def test_statistics_of_a_single_value_are_pointed_out(tiny, name):
    (batch_size, parts, batch_norm, count, image_size), expected = _LONE[name]
    training = TrainingConfig(batch_size=batch_size, accumulate_steps=parts, batch_norm=batch_norm)
    said = replicas.lone_values(dataclasses.replace(tiny, image_size=image_size), training, count)
    assert (said is not None) == expected
