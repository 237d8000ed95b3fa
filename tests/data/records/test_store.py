"""Converted and foreign records are opened by one function, and damage is named."""

import json
import shutil
import struct

import little_datasets
import numpy as np
import pytest
import tensorflow as tf

from efficientdet.data import conversion
from efficientdet.data.records import foreign, store, tfrecord
from efficientdet.errors import UserError
from efficientdet.structures import Category


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def converted(tmp_path):
    source = little_datasets.write_yolo(tmp_path / "source")
    shutil.copy(source / "images" / "train" / "a.jpg", source / "images" / "train" / "c.jpg")
    (source / "labels" / "val").mkdir()
    (source / "labels" / "val" / "b.txt").write_text("1 .5 .5 1 1")
    conversion.convert("yolo", source, output=tmp_path / "out", num_shards=2, num_workers=1)
    return tmp_path / "out"


def _feature(**lists):
    kinds = {bytes: "bytes_list", float: "float_list", int: "int64_list"}
    features = {}
    for key, values in lists.items():
        kind = kinds[type(values[0])] if values else "int64_list"
        message = {"bytes_list": tf.train.BytesList, "float_list": tf.train.FloatList, "int64_list": tf.train.Int64List}
        features["image/" + key.replace("__", "/")] = tf.train.Feature(**{kind: message[kind](value=values)})
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _foreign_record(labels=(1, 3), texts=(b"cat", b"dog"), **changes):
    """Writes a record with the keys that the TF Object Detection API's converters write."""
    sides = {f"object__bbox__{side}": [0.25] * len(labels) for side in ("ymin", "xmin")}
    sides |= {f"object__bbox__{side}": [0.75] * len(labels) for side in ("ymax", "xmax")}
    return _feature(
        **{"encoded": [b"jpeg"], "source_id": [b"2007_000032.jpg"], "height": [4], "width": [5]}
        | sides
        | {"object__class__label": list(labels), "object__class__text": list(texts)}
        | changes
    )


def _write(path, *payloads):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


def _payloads(opened):
    for shard, offset, length in zip(opened.shards, opened.offsets, opened.lengths, strict=True):
        with open(opened.paths[shard], "rb") as file:  # noqa: PTH123 - paths are strings
            file.seek(offset)
            yield file.read(length)


def test_the_index_of_a_converted_split_leads_to_its_records(converted):
    opened = store.open_records(str(converted), "train")
    assert (len(opened), opened.num_boxes, opened.max_boxes, len(opened.paths)) == (2, 2, 2, 2)
    assert opened.categories == (Category(id=0, name="cat"), Category(id=1, name="dog"))
    names = [
        tf.train.Example.FromString(p).features.feature["image/filename"].bytes_list.value[0] for p in _payloads(opened)
    ]
    assert names == [b"images/train/a.jpg", b"images/train/c.jpg"]


def test_a_split_knows_its_content_and_the_boxes_of_each_class(converted, tmp_path):
    train, val = (store.open_records(str(converted), split) for split in ("train", "val"))
    assert (train.boxes_per_class, val.boxes_per_class) == ((1, 1), (0, 1))
    assert train.checksum != val.checksum
    moved = shutil.copytree(converted, tmp_path / "moved")
    assert store.open_records(str(moved), "train").checksum == train.checksum
    scanned = store.open_records(str(converted / "train-*.tfrecord"), "train")
    assert scanned.boxes_per_class == train.boxes_per_class
    moved_scan = store.open_records(str(moved / "train-*.tfrecord"), "train")
    assert moved_scan.checksum == scanned.checksum
    shards = sorted(moved.glob("train-*.tfrecord"))
    content = bytearray(shards[0].read_bytes())
    shards[0].write_bytes(shards[1].read_bytes())
    shards[1].write_bytes(content)
    assert store.open_records(str(moved / "train-*.tfrecord"), "train").checksum != scanned.checksum


def test_a_record_names_its_image(converted, tmp_path):
    train = store.open_records(str(converted), "train")
    names = [tfrecord.file_name(store.read(train, number)) for number in range(2)]
    assert names == ["images/train/a.jpg", "images/train/c.jpg"]
    foreign_records = store.open_records(str(_write(tmp_path / "x.record", _foreign_record())), "train")
    assert tfrecord.file_name(store.read(foreign_records, 0)) == "2007_000032.jpg"


def test_a_dataset_of_an_earlier_version_does_not_know_the_boxes_of_its_classes(converted):
    _change_manifest(converted, lambda manifest: manifest["splits"]["train"].pop("boxes_per_class"))
    assert store.open_records(str(converted), "train").boxes_per_class is None


def test_a_scan_of_the_same_shards_finds_the_same_index(converted):
    opened = store.open_records(str(converted), "train")
    scanned = store.open_records(str(converted / "train-*.tfrecord"), "train")
    for name in ("shards", "offsets", "lengths"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(scanned, name))
        assert getattr(opened, name).dtype == getattr(scanned, name).dtype
    assert (opened.num_boxes, opened.max_boxes, opened.categories) == (
        scanned.num_boxes,
        scanned.max_boxes,
        scanned.categories,
    )


def test_records_of_the_object_detection_api_are_read(tmp_path):
    path = _write(tmp_path / "voc.record", _foreign_record(), _foreign_record((3,), (b"dog",)), _foreign_record((), ()))
    opened = store.open_records(str(path), "train")
    assert opened.categories == (Category(id=1, name="cat"), Category(id=3, name="dog"))
    assert (len(opened), opened.num_boxes, opened.max_boxes) == (3, 3, 2)
    first = tfrecord.parse(next(_payloads(opened)))
    assert first["id"] == -1
    np.testing.assert_array_equal(first["boxes"], [[0.25, 0.25, 0.75, 0.75]] * 2)


def test_classes_without_names_are_numbered(tmp_path):
    path = _write(tmp_path / "x.record", _foreign_record(texts=()))
    assert [c.name for c in store.open_records(str(path), "train").categories] == ["class_1", "class_3"]


def test_a_scan_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    path = _write(tmp_path / "x.record", _foreign_record())
    first = store.open_records(str(path), "train")
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    time = kept.stat().st_mtime_ns
    second = store.open_records(str(path), "train")
    assert kept.stat().st_mtime_ns == time
    assert first.categories == second.categories
    np.testing.assert_array_equal(first.offsets, second.offsets)
    _write(path, _foreign_record(), _foreign_record())
    assert len(store.open_records(str(path), "train")) == 2
    kept.write_bytes(b"torn")
    assert foreign._load(kept) is None


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        pytest.param(_foreign_record((), ()), "but no boxes", id="no boxes at all"),
        pytest.param(
            _foreign_record(object__bbox__ymin=[0.5]), "`image/object/bbox/ymin` has 1 values", id="short list"
        ),
        pytest.param(_foreign_record(object__area=[0.5]), "`image/object/area` has 1 values", id="short area"),
        pytest.param(_foreign_record(object__bbox__ymin=[0.5, float("nan")]), "not finite", id="not a number"),
        pytest.param(_foreign_record((1, 1)), "class 1 is `dog`, but an earlier record calls it `cat`", id="two names"),
        pytest.param(_feature(height=[3]), "`image/encoded` has no image", id="no image"),
        pytest.param(b"\xff\xff\xff", "not a tf.train.Example", id="no example"),
    ],
)
def test_unusable_foreign_records_are_named(tmp_path, payload, words):
    path = _write(tmp_path / "x.record", payload)
    with pytest.raises(UserError, match=words) as caught:
        store.open_records(str(path), "train")
    assert "x.record" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="last byte missing"),
        pytest.param(lambda content: content[: len(content) // 2 + 5], id="inside the second header"),
        pytest.param(lambda content: content[:30] + b"?" + content[31:], id="payload changed"),
        pytest.param(lambda content: struct.pack("<Q", 2**40) + content[8:], id="length changed"),
        pytest.param(lambda content: b"\x1f\x8b" + content, id="gzip"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"hello", id="text"),
    ],
)
def test_damaged_foreign_files_are_named(tmp_path, damage):
    path = _write(tmp_path / "x.record", _foreign_record(), _foreign_record())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"x\.record") as caught:
        store.open_records(str(path), "train")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def _change_manifest(folder, change):
    path = folder / "dataset.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda f: next(f.glob("train-00001*")).unlink(), "00001.*is missing", id="shard gone"),
        pytest.param(lambda f: next(f.glob("train-00001*")).write_bytes(b"x"), "has 1 bytes", id="shard cut short"),
        pytest.param(lambda f: (f / "train.index.npz").unlink(), "index.npz` is missing", id="index gone"),
        pytest.param(
            lambda f: (f / "train.index.npz").write_bytes(b"x"), "index.npz` is missing or damaged", id="index torn"
        ),
        pytest.param(
            lambda f: shutil.copy(f / "val.index.npz", f / "train.index.npz"), "does not match", id="other index"
        ),
        pytest.param(lambda f: (f / "dataset.json").write_text("{"), "not valid JSON", id="manifest cut short"),
        pytest.param(lambda f: (f / "dataset.json").unlink(), "has no dataset.json", id="no manifest"),
        pytest.param(lambda f: _change_manifest(f, lambda m: m.update(version=2)), "version 2", id="newer version"),
        pytest.param(lambda f: _change_manifest(f, lambda m: m.pop("categories")), "damaged", id="field gone"),
        pytest.param(
            lambda f: _change_manifest(f, lambda m: m["splits"]["train"]["shards"][0].update(name="../../x")),
            "outside",
            id="shard elsewhere",
        ),
    ],
)
def test_damaged_converted_folders_are_named(converted, damage, words):
    damage(converted)
    with pytest.raises(UserError, match=words) as caught:
        store.open_records(str(converted), "train")
    assert str(converted) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_split_lists_those_there_are(converted):
    with pytest.raises(UserError, match="no split `test`; choose from train, val"):
        store.open_records(str(converted), "test")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["train", "val", "test"], "val"), (["train", "test"], "test"), (["all"], "all"), (["a", "b"], None)],
)
def test_what_is_evaluated_on_is_the_split_that_exists(tmp_path, names, chosen):
    (tmp_path / "dataset.json").write_text(json.dumps({"version": 1, "splits": dict.fromkeys(names)}))
    if chosen is None:
        with pytest.raises(UserError, match="has the splits a, b; choose one with `--split`"):
            store.choose_split(str(tmp_path))
    else:
        assert store.choose_split(str(tmp_path)) == chosen
    assert store.choose_split(str(tmp_path / "*.tfrecord")) == "val"


def test_a_location_without_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing-\*` matches no files"):
        store.open_records(str(tmp_path / "nothing-*"), "train")
