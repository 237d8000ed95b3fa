"""A run is resumed on the data that it began with, wherever they lie, and on no other."""

import dataclasses
import json
import os
import shutil

import pytest

from efficientdet.config import DataConfig, ExperimentConfig, TrainingConfig
from efficientdet.data import conversion, synthetic
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.training import dataset
from efficientdet.training.run import train
from efficientdet.training.state import run_directory

pytestmark = [
    pytest.mark.usefixtures("uncompiled"),
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`"),
]


def _convert(folder, seed, **options):
    """Converts generated images, always as many."""
    synthetic.write_coco_folder(folder / f"images-{seed}", {"train": 3, "val": 2}, (48, 64), seed=seed)
    conversion.convert("coco", folder / f"images-{seed}", output=folder / "records", num_workers=1, **options)
    return folder / "records"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two datasets of equal size and classes."""
    return [_convert(tmp_path_factory.mktemp("data"), seed) for seed in (0, 1)]


@pytest.fixture
def converted(two, tmp_path):
    """A copy of the first that may be moved or changed."""
    return shutil.copytree(two[0], tmp_path / "rec" / "x")


@pytest.fixture
def claim(tiny, tmp_path):
    """Claims the run directory for a training on these data; the run that is there has a checkpoint."""

    def claim(train, validation=""):
        config = ExperimentConfig(
            run_dir=str(tmp_path / "run"),
            model=tiny,
            data=DataConfig(train=str(train), validation=str(validation)),
        )
        opened = dataset.open_dataset(config)
        with run_directory.released(tmp_path / "run"):
            run_directory.claim(run_directory.facts(config, opened, {}))
        (tmp_path / "run" / "checkpoints" / "step-00000001.safetensors").touch()

    return claim


def test_a_dataset_is_the_same_however_its_path_is_spelt(converted, claim, tmp_path, monkeypatch):
    claim(converted)
    monkeypatch.chdir(tmp_path)
    for spelling in ("rec/x", "rec/x/", "./rec/../rec/x", str(converted) + os.sep):
        claim(spelling)
    moved = converted.rename(tmp_path / "elsewhere")
    claim(moved)
    claim(moved, validation=moved)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["data"]["train"] == str(moved)


def test_other_data_of_equal_size_at_the_same_path_are_refused(two, converted, claim):
    claim(converted)
    shutil.rmtree(converted)
    shutil.copytree(two[1], converted)
    with pytest.raises(UserError, match=r"`data\.train` differs from the data that the run in `.*run` was") as e:
        claim(converted)
    then, now = (store.open_records(str(folder), "train").checksum[:8] for folder in two)
    assert f"`{converted}`, 3 images (checksum {now}) now, `{converted}`, 3 images (checksum {then}) then" in str(
        e.value
    )
    assert "use another `--run-dir`" in str(e.value)
    assert "\n" not in str(e.value)


def test_other_validation_data_are_refused(two, claim):
    claim(two[0])
    with pytest.raises(UserError, match=r"`data\.validation` differs from .* was validated on: `.*` \(checksum"):
        claim(two[0], validation=two[1])
    with pytest.raises(UserError, match=r"`data\.validation` .* was validated on: no data now"):
        claim(two[0], validation="none")


def test_records_in_another_order_are_other_data(two, claim, tmp_path):
    claim(two[0])
    with pytest.raises(UserError, match=r"in the same order"):
        claim(_convert(tmp_path, 0, num_shards=2))


def test_records_of_others_are_known_by_their_content_too(two, claim, tmp_path):
    for folder, dataset_folder in zip(("a", "b", "c"), (two[0], two[0], two[1]), strict=True):
        (tmp_path / folder).mkdir()
        for path in dataset_folder.glob("train-*"):
            shutil.copy(path, tmp_path / folder / "x.tfrecord")
    claim(tmp_path / "a" / "x.tfrecord")
    claim(str(tmp_path / "b" / "*.tfrecord"))
    with pytest.raises(UserError, match=r"`data\.train` differs from the data"):
        claim(tmp_path / "c" / "x.tfrecord")


def test_a_run_that_did_not_note_its_data_is_refused_with_a_reason(two, claim, tmp_path):
    claim(two[0])
    path = tmp_path / "run" / "config.json"
    before = json.loads(path.read_text())
    del before["dataset"]["train"]
    path.write_text(json.dumps(before))
    with pytest.raises(UserError, match=r"run of an earlier version.*or use another `--run-dir`; `--weights .*run`"):
        claim(two[0])


def test_a_training_goes_on_with_data_that_were_moved(tiny, converted, tmp_path):
    config = ExperimentConfig(
        run_dir=str(tmp_path / "run"),
        model=dataclasses.replace(tiny, image_size=(64, 64)),
        data=DataConfig(train=str(converted), validation="none"),
        training=TrainingConfig(batch_size=3, epochs=1, recalibrate_images=0),
    )
    assert train(config).steps == 1
    (tmp_path / "run" / "summary.json").unlink()
    moved = converted.rename(tmp_path / "elsewhere")
    assert train(dataclasses.replace(config, data=DataConfig(train=str(moved), validation="none"))).steps == 1
    assert "resumed at step 1 of 1" in (tmp_path / "run" / "log.txt").read_text()


def test_of_two_presets_the_data_are_not_named_first(two, claim, tmp_path):
    claim(two[0])
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"preset": "d0"', '"preset": "d1"'))
    with pytest.raises(UserError, match="preset = 'd1'"):
        claim(two[1])
