"""Records -> batches, in tf.data.

A training run is one endless row of examples: position p belongs to epoch p // E and shows the example that the
epoch's permutation has at p % E; step s has the positions s * B to (s + 1) * B - 1. So the batch of a step is a pure
function of (seed, step), each example comes once an epoch, and a stream can start at any step without reading what it
skips. Batches may span two epochs, since their size is fixed.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from efficientdet import backend
from efficientdet.config import AugmentationConfig, Resize
from efficientdet.data import combinations, preprocess, tfrecord
from efficientdet.data.records import Records
from efficientdet.errors import UserError
from efficientdet.structures import Batch, Category, Originals

_TRUTH_BATCH = 64


def box_room(records: Records) -> int:
    """Computes the room for boxes of one picture: the fullest picture's, rounded up to a multiple of 8."""
    return max(-(-records.max_boxes // 8) * 8, 8)


def training_batches(
    records: Records,
    *,
    image_size: tuple[int, int],
    resize: Resize,
    batch_size: int,
    seed: int,
    augmentation: AugmentationConfig,
    start_step: int,
    stop_step: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Makes the training batches of steps start_step..stop_step - 1.

    Crowds are left out, and boxes of which nothing is left after the cut. Mosaic and mixup read the records of other
    pictures too, drawn from the example's seed; then there is room for the boxes of all.

    Args:
        records: the split.
        image_size: height and width of the network input, px.
        resize: how a picture is resampled.
        batch_size: B.
        seed: of order and augmentation.
        augmentation: what happens to a picture.
        start_step: first step.
        stop_step: step after the last.
        share: (k, n): the k-th of n equal parts of each batch, for one of n processes.

    Yields:
        Batch of NumPy arrays, and the image ids, int64[B]; B / n rows for a share.
    """
    import tensorflow as tf

    _leave_gpu_to_jax()
    room, num_examples = box_room(records) * combinations.num_pictures(augmentation), len(records)
    label_of = _label_table(records.categories)

    def example(position: Any) -> tuple[dict[str, Any], Any]:
        epoch, place = position // num_examples, position % num_examples
        shuffle_seed = tf.stack([tf.cast(seed, tf.uint32), tf.cast(epoch, tf.uint32)])
        number = tf.random.experimental.index_shuffle(tf.cast(place, tf.uint32), shuffle_seed, num_examples - 1)
        number = tf.cast(number, tf.int64)
        record = tfrecord.parse(_read(records, number))
        own_seed = tf.random.fold_in(tf.stack([seed, tf.cast(epoch, tf.int32)]), tf.cast(number, tf.int32))
        pixels, valid_size, boxes, labels = combinations.make_example(
            raw(record), draw_other, own_seed, image_size=image_size, resize=resize, config=augmentation
        )
        return _batch_row(pixels, valid_size, boxes, labels, room), _id(record, number)

    def raw(record: dict[str, Any]) -> tuple[Any, Any, Any]:
        kept, labels = tf.logical_not(record["is_crowd"]), label_of(record["category_ids"])
        image = preprocess.decode_tf(record["encoded"])
        return image, tf.boolean_mask(record["boxes"], kept), tf.boolean_mask(labels, kept)

    def draw_other(seed: Any) -> tuple[Any, Any, Any]:
        number = tf.random.stateless_uniform([], seed, 0, num_examples, tf.int64)
        return raw(tfrecord.parse(_read(records, number)))

    part, num_parts = share
    rows = batch_size // num_parts

    def position(row: Any) -> Any:
        return row // rows * batch_size + part * rows + row % rows

    own_rows = tf.data.Dataset.range(start_step * rows, stop_step * rows)
    examples = own_rows.map(lambda row: example(position(row)), tf.data.AUTOTUNE, deterministic=True)
    yield from _iterate(examples, rows, records)


def evaluation_batches(
    records: Records,
    *,
    categories: tuple[Category, ...],
    image_size: tuple[int, int],
    resize: Resize,
    batch_size: int,
    max_images: int = 0,
) -> Iterator[tuple[Batch, Originals]]:
    """Makes the batches of one pass over a split, in its order, letterboxed.

    The last batch is filled up with rows whose id is -1.

    Args:
        records: the split.
        categories: the model's classes; the split's must be among them.
        image_size: height and width of the network input, px.
        resize: how a picture is resampled.
        batch_size: B.
        max_images: only the first so many; 0: all.

    Yields:
        Batch (crowds left out) and Originals (crowds included) of NumPy arrays.
    """
    import tensorflow as tf

    _leave_gpu_to_jax()
    room = box_room(records)
    check_categories(records, categories)
    label_of = _label_table(categories)

    def example(record: dict[str, Any], id: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        image = preprocess.decode_tf(record["encoded"])
        size = tf.shape(image)[:2]
        new_size, scale = preprocess.fitted_size_tf(size, tf.constant(image_size))
        pixels, valid_size = preprocess.resample_tf(image, new_size, tf.zeros([2], tf.int32), image_size, resize)
        labels, kept = label_of(record["category_ids"]), tf.logical_not(record["is_crowd"])
        boxes = tf.boolean_mask(record["boxes"] * _twice(new_size), kept)
        inputs = _batch_row(pixels, valid_size, boxes, tf.boolean_mask(labels, kept), room)
        return inputs, _originals_row(record, id, size, scale, labels, room)

    yield from _one_pass(records, example, batch_size, max_images)


def truth_batches(records: Records, *, max_images: int = 0) -> Iterator[Originals]:
    """Reads the truth of a split, in its order; the pictures are not decoded.

    The labels are positions in the split's own categories, the scales 1; filled up as `evaluation_batches` does.

    Args:
        records: the split.
        max_images: only the first so many; 0: all.

    Yields:
        Originals of NumPy arrays.
    """
    import tensorflow as tf

    _leave_gpu_to_jax()
    room, label_of = box_room(records), _label_table(records.categories)

    def example(record: dict[str, Any], id: Any) -> dict[str, Any]:
        size = preprocess.picture_size_tf(record["encoded"])
        return _originals_row(record, id, size, tf.constant(1.0), label_of(record["category_ids"]), room)

    yield from _one_pass(records, example, _TRUTH_BATCH, max_images)


def _one_pass(records: Records, example: Callable[..., Any], batch_size: int, max_images: int) -> Iterator[Any]:
    """Makes batches of `example(record, id)` of the first pictures, in their order; the last is filled up (id -1)."""
    import tensorflow as tf

    num_examples = min(len(records), max_images or len(records))

    def at(position: Any) -> Any:
        number = tf.minimum(position, num_examples - 1)
        record = tfrecord.parse(_read(records, number))
        return example(record, tf.where(position < num_examples, _id(record, number), -1))

    positions = tf.data.Dataset.range(-(-num_examples // batch_size) * batch_size)
    yield from _iterate(positions.map(at, tf.data.AUTOTUNE, deterministic=True), batch_size, records)


def _originals_row(record: dict[str, Any], id: Any, size: Any, scale: Any, labels: Any, room: int) -> dict[str, Any]:
    """Arranges the facts of one picture as a row of Originals."""
    import tensorflow as tf

    boxes = record["boxes"] * _twice(size)
    box_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return {
        "ids": id,
        "scales": scale,
        "sizes": size,
        "boxes": _pad(boxes, room),
        "labels": _pad(labels, room),
        "is_crowd": _pad(record["is_crowd"], room),
        "area": _pad(tf.where(record["area"] < 0, box_area, record["area"]), room),
        "num_boxes": tf.shape(labels)[0],
    }


def _leave_gpu_to_jax() -> None:
    """Keeps TensorFlow off the GPU if JAX trains: it would take the memory. Comes before its first operation."""
    import tensorflow as tf

    if backend.running() == "jax":
        tf.config.set_visible_devices([], "GPU")


def _iterate(examples: Any, batch_size: int, records: Records) -> Iterator[Any]:
    """Batches examples and turns TensorFlow's errors about damaged records into one line."""
    import tensorflow as tf

    dataset = examples.batch(batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
    try:
        yield from dataset.as_numpy_iterator()
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.UnknownError) as error:
        reason = error.message.splitlines()[0]
        raise UserError(
            f"Split `{records.name}` with `{records.paths[0]}` has a damaged record: {reason}; convert it again."
        ) from error


def _read(records: Records, number: Any) -> Any:
    """Reads one record's payload: int64[] -> string[]."""
    import tensorflow as tf

    def read(number: np.ndarray) -> bytes:
        # Opened for each record: a kept descriptor would need a bound for datasets of thousands of shards.
        shard, offset, length = (int(a[number]) for a in (records.shards, records.offsets, records.lengths))
        descriptor = os.open(records.paths[shard], os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    payload = tf.numpy_function(read, [number], tf.string, stateful=False)
    return tf.ensure_shape(payload, [])


def check_categories(records: Records, categories: tuple[Category, ...]) -> None:
    """Checks that every class of the records is one of `categories`, under the same id and name.

    Raises:
        UserError: one is not.
    """
    known = {category.id: category.name for category in categories}
    for category in records.categories:
        if known.get(category.id) != category.name:
            other = f"`{known[category.id]}`" if category.id in known else "unknown"
            raise UserError(
                f"Class {category.id} of split `{records.name}` is `{category.name}`; the model calls it {other}. "
                "Convert the splits together, so that they share one class table."
            )


def _label_table(categories: tuple[Category, ...]) -> Any:
    """Makes the function from category ids, int64[N], to labels, int32[N]."""
    import tensorflow as tf

    labels = sorted(range(len(categories)), key=lambda label: categories[label].id)
    ids = np.array([categories[label].id for label in labels], np.int64)
    in_order = np.array(labels, np.int32)
    return lambda category_ids: tf.gather(in_order, tf.searchsorted(ids, category_ids))


def _id(record: dict[str, Any], number: Any) -> Any:
    """Returns the image id; an image whose source_id is no number is called by its place in the split, from 1."""
    import tensorflow as tf

    return tf.where(record["id"] < 0, number + 1, record["id"])


def _twice(size: Any) -> Any:
    """Turns (height, width) into float32 (height, width, height, width)."""
    import tensorflow as tf

    return tf.cast(tf.concat([size, size], axis=0), tf.float32)


def _batch_row(pixels: Any, valid_size: Any, boxes: Any, labels: Any, room: int) -> dict[str, Any]:
    """Arranges one example as a row of a Batch."""
    import tensorflow as tf

    return {
        "images": pixels,
        "valid_size": valid_size,
        "boxes": _pad(boxes, room),
        "labels": _pad(labels, room),
        "num_boxes": tf.shape(labels)[0],
    }


def _pad(values: Any, room: int) -> Any:
    """Pads the first axis with zeros to `room`."""
    import tensorflow as tf

    missing = room - tf.shape(values)[0]
    paddings = [[0, missing]] + [[0, 0]] * (len(values.shape) - 1)
    return tf.ensure_shape(tf.pad(values, paddings), [room, *values.shape[1:]])
