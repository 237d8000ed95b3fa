"""Whole runs on data or with settings that need a word: what they say, write and do."""

import dataclasses
import json

import pytest

from efficientdet.config import DataConfig, ExperimentConfig, TrainingConfig
from efficientdet.data import conversion, synthetic
from efficientdet.errors import UserError
from efficientdet.training.run import train

pytestmark = [
    pytest.mark.usefixtures("uncompiled"),
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`"),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Four training images with boxes and two validation images without."""
    folder = tmp_path_factory.mktemp("warned")
    synthetic.write_coco_folder(folder / "images", {"train": 4, "val": 2}, (48, 64), seed=0)
    path = folder / "images" / "annotations" / "instances_val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    conversion.convert("coco", folder / "images", output=folder / "records", num_workers=1)
    return folder / "records"


@pytest.fixture
def config(tiny, tmp_path, converted):
    return ExperimentConfig(
        preset="tiny",
        run_dir=str(tmp_path / "run"),
        model=dataclasses.replace(tiny, image_size=(64, 64)),
        data=DataConfig(train=str(converted)),
        training=TrainingConfig(batch_size=8, epochs=1, recalibrate_images=0),
    )


def test_validation_without_boxes_has_losses_and_no_ap(config, tmp_path):
    summary = train(config)
    said = (tmp_path / "run" / "log.txt").read_text()
    assert " warning: the 2 validation images have no boxes: losses are computed, but AP stays `-`" in said
    assert " warning: `training.batch_size` is 8, more than the 4 training images" in said
    assert " epoch 2.0: AP -, AP50 -" in said
    assert summary.best_ap is None
    assert summary.metrics["loss"] > 0
    assert summary.metrics["AP"] is None
    assert [path.name for path in (tmp_path / "run" / "weights").iterdir()] == ["last.safetensors"]
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["warnings"] == [line.split("warning: ")[1] for line in said.splitlines() if "warning: " in line]


def test_a_training_split_without_boxes_is_refused_for_what_it_is(config, converted, tmp_path):
    no_boxes = dataclasses.replace(config, data=DataConfig(train=str(converted), train_split="val"))
    with pytest.raises(UserError) as caught:
        train(no_boxes)
    assert str(caught.value) == (
        f"`data.train` is {converted}, whose split `val` has 2 images but no boxes, so there is nothing to learn. "
        "Convert it again with its annotations, or use a split with boxes (`--data.train-split`)."
    )
    files = dataclasses.replace(config, data=DataConfig(train=str(converted / "val-*.tfrecord")))
    with pytest.raises(UserError, match=r"2 images but no boxes, so there is nothing to learn\. Recreate the records"):
        train(files)
    assert not (tmp_path / "run").exists()


def test_patience_needs_validation_boxes(config):
    patient = dataclasses.replace(config, training=dataclasses.replace(config.training, patience=2))
    with pytest.raises(UserError, match="no validation images with boxes to measure AP on"):
        train(patient)
