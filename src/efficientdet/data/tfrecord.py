"""The record of one picture: a tf.train.Example with the keys of the TF Object Detection API, as google/automl has it.

`serialize` writes what `parse` reads. Boxes are fractions of the picture's height and width in the record; class labels
are the dataset's category ids. Records of others may lack is_crowd, area, the size or a numeric source_id.
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

NUM_HEADER_BYTES = 12
"""In a TFRecord file, before the payload: its length (uint64) and the masked CRC32C of the length."""
NUM_FOOTER_BYTES = 4
"""Behind the payload: its masked CRC32C."""


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
    """Writes one record; equal arguments give equal bytes.

    Args:
        encoded: the picture as JPEG, upright.
        file_name: name of the picture in its dataset.
        id: number of the picture in its dataset.
        height: px.
        width: px.
        boxes: float32[N, 4], yxyx, fractions of height and width.
        category_ids: int64[N].
        category_names: N names.
        is_crowd: bool[N].
        area: float32[N], px of the picture squared.
    """
    import tensorflow as tf

    def integers(*values: int) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def floats(values: np.ndarray) -> Any:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.tolist()))

    def texts(*values: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    feature = {
        "image/height": integers(height),
        "image/width": integers(width),
        "image/filename": texts(file_name.encode()),
        "image/source_id": texts(str(id).encode()),
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


def parse(serialized: Any) -> dict[str, Any]:
    """Reads one record; works eagerly and inside tf.data.

    Args:
        serialized: string[], one record.

    Returns:
        encoded: string[], the picture file. id: int64[], -1 where source_id is no number. height, width: int64[], px,
        -1 where missing. boxes: float32[N, 4], yxyx, fractions of height and width. category_ids: int64[N].
        is_crowd: bool[N], false where missing. area: float32[N], px squared, -1 where missing.
    """
    import tensorflow as tf

    def values(key: str, dtype: Any) -> Any:
        return tf.io.RaggedFeature(dtype, value_key=key)

    features = {
        "encoded": tf.io.FixedLenFeature([], tf.string),
        "source_id": tf.io.FixedLenFeature([], tf.string, ""),
        "height": tf.io.FixedLenFeature([], tf.int64, -1),
        "width": tf.io.FixedLenFeature([], tf.int64, -1),
    }
    keyed = {f"image/{name}": feature for name, feature in features.items()}
    keyed |= {key: values(key, tf.float32) for key in (*SIDES, AREA)}
    keyed |= {key: values(key, tf.int64) for key in (LABEL, IS_CROWD)}
    record = tf.io.parse_single_example(serialized, keyed)
    boxes = tf.stack([record[key] for key in SIDES], axis=-1)
    num_boxes = tf.shape(boxes)[0]
    is_crowd, area, source_id = record[IS_CROWD], record[AREA], record["image/source_id"]
    # 18 digits always fit 64 bits; float32, where others lose ids, is never involved.
    is_number = tf.strings.regex_full_match(source_id, r"-?[0-9]{1,18}")
    return {
        "encoded": record[ENCODED],
        "id": tf.strings.to_number(tf.where(is_number, source_id, "-1"), tf.int64),
        "height": record["image/height"],
        "width": record["image/width"],
        "boxes": boxes,
        "category_ids": record[LABEL],
        "is_crowd": tf.cond(tf.size(is_crowd) > 0, lambda: is_crowd > 0, lambda: tf.zeros([num_boxes], tf.bool)),
        "area": tf.cond(tf.size(area) > 0, lambda: area, lambda: tf.fill([num_boxes], -1.0)),
    }
