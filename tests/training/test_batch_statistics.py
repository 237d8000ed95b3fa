"""Statistics measured over many images are those that inference has to have."""

import dataclasses

import numpy as np
import pytest

from efficientdet.config import TrainingConfig
from efficientdet.data import synthetic
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.training import batch_statistics, dataset, step
from efficientdet.training.beginning import initialization
from efficientdet.training.distributed import engine

_SIZE = (64, 96)


@pytest.fixture(scope="module")
def photos(tiny):
    made = synthetic.batches(batch_size=12, image_size=_SIZE, max_boxes=8, seed=0, num_classes=3)
    batch, _ = next(made)
    return {name: batch[name] for name in ("images", "valid_size")}


@pytest.fixture
def model(tiny):
    backbone = dataclasses.replace(tiny.backbone, survival=0.5)
    return EfficientDet(dataclasses.replace(tiny, image_size=_SIZE, backbone=backbone))


def _state(model):
    first = step.first_state(model)
    return engine.to_device([first["trainable"], first["non_trainable"]])


def _recalibrate(model, photos, batch_size):
    """Measures on 12 images, after a training in batches of `batch_size`."""

    def plain_batches(size, count):
        for start in range(0, size * count, size):
            yield {name: value[start : start + size] for name, value in photos.items()}

    data = dataset.Dataset(
        categories=(),
        num_examples=12,
        num_validation=0,
        training_batches=None,
        plain_batches=plain_batches,
        validation_batches=None,
    )
    training = TrainingConfig(batch_size=batch_size, recalibrate_images=640)
    return engine.to_host(batch_statistics.Recalibration(model, training, data)(*_state(model)))


def _predict(model, non_trainable, photos, **options):
    trainable, _ = _state(model)
    found, _ = model.stateless_call(trainable, engine.to_device(non_trainable), engine.to_device(photos), **options)
    return engine.to_host(found)


def test_inference_then_answers_as_the_batch_that_was_measured_did(model, photos):
    measured = _recalibrate(model, photos, 8)
    with_statistics = _predict(model, measured, photos, training=False)
    for layer in model._flatten_layers():
        if hasattr(layer, "survival"):
            layer.survival = 1.0
    by_batch = _predict(model, measured, photos, training=True)
    as_built = _predict(model, _state(model)[1], photos, training=False)
    for name, expected in by_batch.items():
        np.testing.assert_allclose(with_statistics[name], expected, rtol=1e-3, atol=1e-4)
        assert np.abs(as_built[name] - expected).max() > 1e-2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_mean_and_variance_of_the_stem_are_those_of_all_images(model, photos, batch_size):
    """Its input depends on no statistics, so the size of the batches must not show."""
    found = dict(
        zip(
            (weights.variable_name(variable) for variable in model.non_trainable_variables),
            _recalibrate(model, photos, batch_size),
            strict=True,
        )
    )
    (name,) = (name for name in found if "stem" in name and name.endswith("moving_mean"))
    images, valid_size = engine.to_device([photos["images"], photos["valid_size"]])
    values = engine.to_host(model.backbone.stem(model.normalize(images, valid_size=valid_size)))
    values = values.reshape(-1, values.shape[-1]).astype(np.float64)
    np.testing.assert_allclose(found[name], values.mean(axis=0), rtol=1e-4, atol=1e-5)
    variance = found[name.replace("moving_mean", "moving_variance")]
    np.testing.assert_allclose(variance, values.var(axis=0), rtol=1e-3, atol=1e-6)


def test_frozen_parts_and_random_generators_keep_what_they_have(model, photos):
    initialization.freeze(model, "backbone")
    names = [weights.variable_name(variable) for variable in model.non_trainable_variables]
    before = engine.to_host(_state(model)[1])
    changed = {
        name.split("/")[0]
        for name, old, new in zip(names, before, _recalibrate(model, photos, 1), strict=True)
        if not np.array_equal(old, new)
    }
    assert changed
    assert not any("backbone" in name or "seed" in name for name in changed)


_PLANS = {
    "a demo's": ((8, 1, 640), 1400, (32, 20)),
    "no more than 64 images": ((24, 1, 640), 1400, (64, 10)),
    "a part of a batch is what was normalised": ((16, 4, 640), 1400, (16, 40)),
    "a larger batch stays as it is": ((128, 1, 640), 1400, (128, 5)),
    "all there are": ((8, 1, 640), 50, (32, 1)),
    "fewer than a batch": ((8, 1, 640), 5, (5, 1)),
    "none": ((8, 1, 0), 1400, (0, 0)),
}


@pytest.mark.parametrize("name", _PLANS)
def test_batches_are_as_large_as_memory_allows_and_whole(name):
    (batch_size, parts, wanted), num_examples, expected = _PLANS[name]
    training = TrainingConfig(batch_size=batch_size, accumulate_steps=parts, recalibrate_images=wanted)
    assert batch_statistics.plan(training, num_examples) == expected
