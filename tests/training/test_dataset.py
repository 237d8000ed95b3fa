"""What a run trains and validates on: records, resampled as the model wants them."""

import dataclasses
import typing

import numpy as np
import pytest

from efficientdet.config import (
    AugmentationConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    Resize,
    TrainingConfig,
)
from efficientdet.data import conversion, pipeline, synthetic
from efficientdet.data.records import store
from efficientdet.training import dataset


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    synthetic.write_coco_folder(root / "images", {"train": 4, "val": 3}, (80, 120), seed=0)
    conversion.convert("coco", root / "images", output=root / "records", num_workers=1)
    return str(root / "records")


def test_images_are_resampled_as_the_model_says(converted, tiny):
    training, validation = [], []
    for method in typing.get_args(Resize):
        config = ExperimentConfig(
            model=dataclasses.replace(tiny, resize=method),
            data=DataConfig(train=converted),
            training=TrainingConfig(batch_size=4),
            evaluation=EvaluationConfig(batch_size=3),
        )
        opened = dataset.open_dataset(config)
        options = {"image_size": tiny.image_size, "resize": method}
        train, val = (store.open_records(converted, split) for split in ("train", "val"))
        ((expected, _),) = pipeline.training_batches(
            train,
            batch_size=4,
            seed=0,
            augmentation=AugmentationConfig(),
            decode="fast",
            start_step=0,
            stop_step=1,
            **options,
        )
        training.append(next(iter(opened.training_batches(0, 1)))[0]["images"])
        np.testing.assert_array_equal(training[-1], expected["images"])
        ((expected, _),) = pipeline.evaluation_batches(val, categories=val.categories, batch_size=3, **options)
        validation.append(next(iter(opened.validation_batches()))[0]["images"])
        np.testing.assert_array_equal(validation[-1], expected["images"])
    for images in (training, validation):
        assert all((images[first] != images[second]).any() for first, second in ((0, 1), (0, 2), (1, 2)))
