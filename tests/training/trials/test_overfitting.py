"""Memorizing a few images: the same images are trained on and evaluated, and nothing disturbs them."""

import dataclasses
import json

import numpy as np
import pytest

from efficientdet import config as configs
from efficientdet import presets
from efficientdet.config import AugmentationConfig, DataConfig, EvaluationConfig, ExperimentConfig, TrainingConfig
from efficientdet.data import conversion, synthetic
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.training import dataset
from efficientdet.training.run import train
from efficientdet.training.state import checkpoint
from efficientdet.training.trials import overfitting


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("overfitting")
    synthetic.write_coco_folder(root / "images", {"train": 7, "val": 2}, (80, 120), seed=0)
    conversion.convert("coco", root / "images", output=root / "records", num_workers=1)
    return str(root / "records")


def _config(tiny, train, **changes):
    augmentation = AugmentationConfig(policy="v1", mosaic=0.5, mixup=0.5, hue=0.1, grid_mask=0.5)
    config = ExperimentConfig(
        model=tiny,
        data=DataConfig(train=train, validation="none"),
        augmentation=augmentation,
        evaluation=EvaluationConfig(batch_size=4),
        overfit=5,
    )
    return overfitting.adapt(dataclasses.replace(config, **changes))


@pytest.mark.parametrize("name", ["d0", "lite0", "demo", "d0-amp-8xa100"])
def test_a_training_without_it_is_left_alone(name):
    preset = presets.find_preset(name)
    assert overfitting.adapt(preset) == preset


@pytest.mark.parametrize("name", ["d0", "lite0", "demo", "d0-amp-8xa100"])
def test_a_run_s_own_config_makes_the_same_run(name):
    config = overfitting.adapt(dataclasses.replace(presets.find_preset(name), overfit=8))
    assert overfitting.adapt(config) == config
    assert config.training.batch_size == 8
    assert config.model.backbone.survival == 1


def test_the_weights_themselves_are_evaluated(tiny):
    # An average with decay 0 is the newest value.
    assert _config(tiny, "x").optimizer.average_decay == 0


@pytest.mark.parametrize(("every", "expected"), [(5.0, 30.0), (40.0, 40.0), (0.0, 0.0)])
def test_evaluations_are_a_tenth_of_the_run_apart_at_least(tiny, every, expected):
    training = TrainingConfig(epochs=300, evaluate_every=every)
    assert _config(tiny, "x", training=training).training.evaluate_every == expected


def test_images_of_records_are_trained_on_as_they_are_evaluated(tiny, converted):
    opened = dataset.open_dataset(_config(tiny, converted))
    assert (opened.num_examples, opened.num_validation) == (5, 5)
    trained, evaluated = {}, {}
    for batch, ids in opened.training_batches(0, 2):  # two epochs, each in an order of its own
        assert len(set(ids.tolist())) == 5
        trained |= {int(id): {name: value[row] for name, value in batch.items()} for row, id in enumerate(ids)}
    for batch, originals in opened.validation_batches():
        for row, id in enumerate(originals["ids"].tolist()):
            evaluated[id] = {name: value[row] for name, value in batch.items()}
    evaluated.pop(-1)
    assert trained.keys() == evaluated.keys()
    for id, photo in trained.items():
        for name, value in photo.items():
            if name == "boxes":  # by way of fractions of another size: the last bit
                np.testing.assert_allclose(value, evaluated[id][name], rtol=1e-5, err_msg=f"{id} {name}")
            else:
                np.testing.assert_array_equal(value, evaluated[id][name], err_msg=f"{id} {name}")


@pytest.mark.parametrize("count", [1, 5, 6])
def test_generated_images_are_trained_on_as_they_are_evaluated(tiny, count):
    opened = dataset.open_dataset(_config(tiny, "synthetic", overfit=count))
    assert (opened.num_examples, opened.num_validation) == (count, count)
    trained = {
        int(id): batch["images"][row] for batch, ids in opened.training_batches(0, 3) for row, id in enumerate(ids)
    }
    evaluated = {}
    for batch, originals in opened.validation_batches():
        assert not evaluated.keys() & set(originals["ids"].tolist())
        evaluated |= {int(id): batch["images"][row] for row, id in enumerate(originals["ids"])}
    assert sorted(trained) == sorted(evaluated) == list(range(count))
    for id, image in trained.items():
        np.testing.assert_array_equal(image, evaluated[id])


@pytest.mark.slow
def test_a_run_evaluates_its_own_images_with_its_newest_weights(tiny, tmp_path, uncompiled):
    config = ExperimentConfig(
        run_dir=str(tmp_path / "run"),
        model=dataclasses.replace(tiny, image_size=(64, 64)),
        data=DataConfig(train="synthetic", synthetic_classes=2),
        training=TrainingConfig(epochs=2, evaluate_every=0),
        overfit=2,
    )
    summary = train(config)
    assert (summary.steps, summary.epochs) == (2, 2)
    written = json.loads(next((tmp_path / "run" / "evaluation").glob("*.json")).read_text())
    assert written["num_images"] == 2
    arrays = weights.load(tmp_path / "run" / "weights" / "last.safetensors").arrays
    state, _ = weights.read_safetensors(checkpoint.latest(tmp_path / "run" / "checkpoints"))
    newest = {name.removeprefix("trainable/"): value for name, value in state.items() if name.startswith("trainable/")}
    assert newest.keys() <= arrays.keys()
    for name, value in newest.items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-6, atol=1e-7)
    assert overfitting.adapt(configs.load(tmp_path / "run" / "config.json")) == configs.load(
        tmp_path / "run" / "config.json"
    )


def test_more_images_than_there_are_is_refused(tiny, converted):
    with pytest.raises(UserError, match=r"`overfit` is 8, but the split `train` has only 7 images\."):
        dataset.open_dataset(_config(tiny, converted, overfit=8))
