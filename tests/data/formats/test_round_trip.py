"""Round trip: the blood cells, written in every format that is read, become the same records and train alike."""

import dataclasses
import hashlib
import json
import os

import little_formats
import numpy as np
import pytest

import efficientdet
from efficientdet import presets
from efficientdet.data import conversion
from efficientdet.data.formats import voc
from efficientdet.data.records import store, tfrecord
from efficientdet.training.dataset import open_dataset

_HEIGHT, _WIDTH = 480, 640
_EVERY = 6
"""One image of so many is written; 1, all of them, takes minutes and passes as well."""


@pytest.fixture(scope="module")
def cells(shared):
    """Name below the folder of images -> class and box, yxyx px, of each object; and the file of each image."""
    source = voc.read(shared / "data" / "bccd")
    images, paths = {}, {}
    for split, examples in source.splits.items():
        for example in examples[::_EVERY]:
            boxes = np.clip(np.round(example.boxes), 0, [_HEIGHT, _WIDTH] * 2).astype(int).tolist()
            labels = [source.categories[label].name for label in example.labels]
            name = f"{split}/{example.path.name}"
            images[name] = tuple((label, tuple(box)) for label, box in zip(labels, boxes, strict=True) if _area(box))
            paths[example.path.name] = example.path
    assert len(paths) >= 364 // _EVERY
    return images, paths


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


@pytest.fixture
def written(cells, monkeypatch):
    """Lets the writers of the little dataset write the blood cells."""
    images, paths = cells
    monkeypatch.setattr(little_formats, "IMAGES", images)
    monkeypatch.setattr(little_formats, "HEIGHT", _HEIGHT)
    monkeypatch.setattr(little_formats, "WIDTH", _WIDTH)
    monkeypatch.setattr(little_formats, "draw", lambda path, objects: _link(paths[path.name.split("-")[-1]], path))


def _link(source, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, path) if source.stat().st_dev == path.parent.stat().st_dev else path.symlink_to(source)


def _read(folder, split):
    """Reads image, and class and box in px of each object, of every record in order."""
    opened = store.open_records(str(folder), split)
    names = {category.id: category.name for category in opened.categories}
    for shard, offset, length in zip(opened.shards, opened.offsets, opened.lengths, strict=True):
        with open(opened.paths[shard], "rb") as file:  # noqa: PTH123 - paths are strings
            file.seek(offset)
            record = {name: value.numpy() for name, value in tfrecord.parse(file.read(length)).items()}
        boxes = np.round(record["boxes"] * ([_HEIGHT, _WIDTH] * 2), 3)  # 1e-3 px: float32 fractions of 640 px
        labels = [names[number] for number in record["category_ids"].tolist()]
        found = sorted(zip(labels, map(tuple, boxes.tolist()), strict=True))
        yield hashlib.sha256(record["encoded"]).hexdigest(), found


def _configure(folder, run_dir):
    start = presets.find_preset("demo")
    return dataclasses.replace(
        start,
        run_dir=str(run_dir),
        model=dataclasses.replace(start.model, image_size=(64, 64)),
        data=dataclasses.replace(start.data, train=str(folder), validation="none"),
        training=dataclasses.replace(start.training, batch_size=4, epochs=0.19),
    )


@pytest.mark.slow
def test_the_blood_cells_become_the_same_records_in_every_format_and_train_alike(cells, written, tmp_path):
    images, paths = cells
    expected = {
        split: {
            hashlib.sha256(paths[name.partition("/")[2]].read_bytes()).hexdigest(): sorted(objects)
            for name, objects in images.items()
            if name.startswith(f"{split}/")
        }
        for split in ("train", "val", "test")
    }
    first = None
    for row, (format, write) in little_formats.WRITERS.items():
        source, output = tmp_path / row / "in", tmp_path / row / "out"
        write(source)
        converted = conversion.convert(format, source, output=output, num_workers=1)
        assert [category.name for category in converted.categories] == ["Platelets", "RBC", "WBC"], row
        for split, truth in expected.items():
            assert dict(_read(output, split)) == truth, (row, split)
        batch = next(iter(open_dataset(_configure(output, "")).training_batches(0, 1)))[0]
        first = first or batch
        for name, value in first.items():
            np.testing.assert_array_equal(batch[name], value, err_msg=f"{row}: {name}")
    summary = efficientdet.train(_configure(output, tmp_path / "run"))
    assert summary.steps == 2
    assert np.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["values"]["loss"])
