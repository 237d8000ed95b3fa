"""The record of one image: a tf.train.Example with the keys of the TF Object Detection API, as in google/automl.

`serialize` writes what `parse` reads. In the record, boxes are fractions of the image's height and width, and class
labels are the dataset's category ids. Records of other programs may lack is_crowd, area, the size or a numeric
source_id.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

ENCODED = "image/encoded"
LABEL = "image/object/class/label"
TEXT = "image/object/class/text"
IS_CROWD = "image/object/is_crowd"
AREA = "image/object/area"
SIDES = tuple(f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax"))

_FILE_NAME = "image/filename"
_SOURCE_ID = "image/source_id"
_HEIGHT, _WIDTH = "image/height", "image/width"

NUM_HEADER_BYTES = 12
"""Bytes before each payload in a TFRecord file: its length (uint64) and the masked CRC32C of the length."""
NUM_FOOTER_BYTES = 4
"""Bytes after each payload: its masked CRC32C."""


def serialize(
    *,
    encoded: bytes,
    file_name: str,
    id: int,
    height: int,
    width: int,
    boxes: np.ndarray,
    category_ids: np.ndarray,
    category_names: Sequence[str],
    is_crowd: np.ndarray,
    area: np.ndarray,
) -> bytes:
    """Serializes one record; equal arguments give equal bytes.

    Args:
        encoded: the image as JPEG, upright.
        file_name: name of the image in its dataset.
        id: number of the image in its dataset.
        height: px.
        width: px.
        boxes: float32[N, 4], yxyx, fractions of height and width.
        category_ids: int64[N].
        category_names: N names.
        is_crowd: bool[N].
        area: float32[N], px of the image squared.
    """
    import tensorflow as tf

    def integers(*values: int) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def floats(values: np.ndarray) -> Any:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.tolist()))

    def texts(*values: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    feature = {
        _HEIGHT: integers(height),
        _WIDTH: integers(width),
        _FILE_NAME: texts(file_name.encode()),
        _SOURCE_ID: texts(str(id).encode()),
        "image/key/sha256": texts(hashlib.sha256(encoded).hexdigest().encode()),
        ENCODED: texts(encoded),
        "image/format": texts(b"jpeg"),
        TEXT: texts(*(name.encode() for name in category_names)),
        LABEL: integers(*category_ids.tolist()),
        IS_CROWD: integers(*is_crowd.astype(int).tolist()),
        AREA: floats(area),
    }
    feature |= {key: floats(boxes[:, side]) for side, key in enumerate(SIDES)}
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def file_name(payload: bytes) -> str:
    """Reads the name of the image file from one record, or its `source_id` if it has no name."""
    import tensorflow as tf

    feature = tf.train.Example.FromString(payload).features.feature
    names = [value for key in (_FILE_NAME, _SOURCE_ID) if key in feature for value in feature[key].bytes_list.value]
    return names[0].decode("utf-8", "replace") if names else ""


def read_boxes(payload: bytes) -> tuple[tuple[int, int] | None, np.ndarray]:
    """Reads the boxes of one record, without crowds and outside tf.data (see `parse`).

    Returns:
        Height and width of the image, px, or None if the record does not give them; float64[N, 4], yxyx, fractions.
    """
    import tensorflow as tf

    feature = tf.train.Example.FromString(payload).features.feature
    sides = [list(feature[key].float_list.value) if key in feature else [] for key in SIDES]
    boxes = np.asarray(sides, np.float64).T.reshape(-1, 4)
    if IS_CROWD in feature and len(crowd := feature[IS_CROWD].int64_list.value):
        boxes = boxes[np.asarray(crowd) == 0]
    lengths = [list(feature[key].int64_list.value) if key in feature else [] for key in (_HEIGHT, _WIDTH)]
    if not all(length and length[0] > 0 for length in lengths):
        return None, boxes
    return (lengths[0][0], lengths[1][0]), boxes


def parse(serialized: Any) -> dict[str, Any]:
    """Reads one record; works eagerly and inside tf.data.

    Args:
        serialized: string[], one record.

    Returns:
        encoded: string[], the image file. id: int64[], -1 if source_id is not a number. height, width: int64[], px,
        -1 if missing. boxes: float32[N, 4], yxyx, fractions of the image's height and width. category_ids:
        int64[N]. is_crowd: bool[N], false if missing. area: float32[N], px squared, -1 if missing.
    """
    import tensorflow as tf

    records = parse_batch(tf.expand_dims(serialized, 0))
    num_boxes = records.pop("num_boxes")[0]
    of_boxes = {name: records[name][0, :num_boxes] for name in ("boxes", "category_ids", "is_crowd", "area")}
    return {name: values[0] for name, values in records.items()} | of_boxes


def parse_batch(serialized: Any) -> dict[str, Any]:
    """Reads several records at once, which costs a fraction of separate calls, since most of the cost is per call.

    Args:
        serialized: string[B], records.

    Returns:
        The same as `parse`, with a first axis of B; N is the largest number of boxes, and other rows are padded.
        num_boxes: int64[B].
    """
    import tensorflow as tf

    def values(key: str, dtype: Any) -> Any:
        return tf.io.RaggedFeature(dtype, value_key=key, row_splits_dtype=tf.int64)

    features = {
        "encoded": tf.io.FixedLenFeature([], tf.string),
        "source_id": tf.io.FixedLenFeature([], tf.string, ""),
        "height": tf.io.FixedLenFeature([], tf.int64, -1),
        "width": tf.io.FixedLenFeature([], tf.int64, -1),
    }
    keyed = {f"image/{name}": feature for name, feature in features.items()}
    keyed |= {key: values(key, tf.float32) for key in (*SIDES, AREA)}
    keyed |= {key: values(key, tf.int64) for key in (LABEL, IS_CROWD)}
    records = tf.io.parse_example(serialized, keyed)
    num_boxes = records[SIDES[0]].row_lengths()
    for key in (*SIDES[1:], LABEL):
        tf.debugging.assert_equal(records[key].row_lengths(), num_boxes, f"{key} and {SIDES[0]} differ in length")
    boxes = tf.stack([records[key].to_tensor() for key in SIDES], axis=-1)
    source_id = records[_SOURCE_ID]
    # 18 digits always fit into 64 bits; the ids never pass through float32, where other programs lose digits.
    is_number = tf.strings.regex_full_match(source_id, r"-?[0-9]{1,18}")
    shape = tf.shape(boxes, tf.int64)[:2]
    return {
        "encoded": records[ENCODED],
        "id": tf.strings.to_number(tf.where(is_number, source_id, "-1"), tf.int64),
        "height": records[_HEIGHT],
        "width": records[_WIDTH],
        "num_boxes": num_boxes,
        "boxes": boxes,
        "category_ids": records[LABEL].to_tensor(),
        "is_crowd": records[IS_CROWD].to_tensor(shape=shape) > 0,
        "area": records[AREA].to_tensor(-1.0, shape=shape),
    }
