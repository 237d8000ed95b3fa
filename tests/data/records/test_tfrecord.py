"""Records: what is written is read, eagerly and inside tf.data; what others leave out is filled in."""

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.data.records import tfrecord

_RECORD = {
    "encoded": b"jpeg bytes",
    "file_name": "straße.jpg",
    "id": 2**53 + 1,
    "height": 40,
    "width": 60,
    "boxes": np.asarray([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]], np.float32),
    "category_ids": np.asarray([90, 2], np.int64),
    "category_names": ["cat", "dog"],
    "is_crowd": np.asarray([False, True]),
    "area": np.asarray([12.5, 2400], np.float32),
}


def _eagerly(serialized):
    return {name: value.numpy() for name, value in tfrecord.parse(serialized).items()}


def _inside_tf_data(serialized):
    (record,) = tf.data.Dataset.from_tensors(serialized).map(tfrecord.parse).as_numpy_iterator()
    return record


both_ways = pytest.mark.parametrize("read", [_eagerly, _inside_tf_data])


@both_ways
def test_parse_undoes_serialize(read):
    record = read(tfrecord.serialize(**_RECORD))
    for name in ("id", "height", "width", "boxes", "category_ids", "is_crowd", "area", "encoded"):
        np.testing.assert_array_equal(record[name], _RECORD[name])
    assert record["id"].dtype == record["category_ids"].dtype == np.int64
    assert record["boxes"].dtype == np.float32
    assert record["is_crowd"].dtype == bool


@both_ways
def test_an_image_without_boxes_has_empty_lists(read):
    nothing = {"boxes": np.zeros((0, 4), np.float32), "category_ids": np.zeros(0, np.int64), "category_names": []}
    record = read(tfrecord.serialize(**_RECORD | nothing | {"is_crowd": np.zeros(0, bool), "area": np.zeros(0)}))
    assert record["boxes"].shape == (0, 4)
    assert record["is_crowd"].shape == record["area"].shape == record["category_ids"].shape == (0,)


@both_ways
def test_what_others_leave_out_is_filled_in(read):
    floats = {key: tf.train.Feature(float_list=tf.train.FloatList(value=[0.25])) for key in tfrecord.SIDES}
    feature = floats | {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"])),
        "image/source_id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"2007_000032"])),
        "image/object/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
    }
    record = read(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    assert (record["id"], record["height"], record["width"]) == (-1, -1, -1)
    assert record["is_crowd"].tolist() == [False]
    assert record["area"].tolist() == [-1]


def test_equal_arguments_give_equal_bytes():
    assert tfrecord.serialize(**_RECORD) == tfrecord.serialize(**_RECORD)


def test_the_keys_are_those_of_google_automl():
    keys = set(tf.train.Example.FromString(tfrecord.serialize(**_RECORD)).features.feature)
    assert keys == {
        *(f"image/{name}" for name in ("height", "width", "filename", "source_id", "key/sha256", "encoded", "format")),
        *(f"image/object/bbox/{side}" for side in ("xmin", "xmax", "ymin", "ymax")),
        *(f"image/object/{name}" for name in ("class/text", "class/label", "is_crowd", "area")),
    }
