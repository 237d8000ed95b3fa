"""Turns records into batches with tf.data.

A training run is an endless sequence of examples: position p belongs to epoch p // E and has the example at p % E in
the epoch's permutation; step s has the positions s * B to (s + 1) * B - 1. So the batch of a step is a pure function of
(seed, step), each example appears once per epoch, and a stream can start at any step without reading what it skips.
Batches may span two epochs, since their size is fixed.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from efficientdet import backend
from efficientdet.config import AugmentationConfig, Decode, Resize
from efficientdet.data import preprocess
from efficientdet.data.augment import combinations
from efficientdet.data.records import tfrecord
from efficientdet.data.records.store import Records
from efficientdet.errors import UserError, first_line
from efficientdet.structures import Batch, Category, Originals

_TRUTH_BATCH = 64
_READ_TOGETHER = 16  # records per call, to share the overhead of a call into Python and of the parsing operations


def box_room(records: Records) -> int:
    """Computes the number of box slots per image: the largest number of boxes, rounded up to a multiple of 8."""
    return max(-(-records.max_boxes // 8) * 8, 8)


def training_batches(
    records: Records,
    *,
    image_size: tuple[int, int],
    resize: Resize,
    batch_size: int,
    seed: int,
    augmentation: AugmentationConfig,
    decode: Decode,
    start_step: int,
    stop_step: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields the training batches of steps start_step..stop_step - 1.

    Crowds are dropped, and so are boxes that the crop leaves without area. Mosaic and mixup also read the records of
    other images, drawn from the example's seed; there are enough box slots for all of them.

    Args:
        records: the split.
        image_size: height and width of the network input, px.
        resize: resampling method.
        batch_size: B.
        seed: seed of the order and the augmentation.
        augmentation: augmentation settings.
        decode: how image files are decoded.
        start_step: first step.
        stop_step: step after the last.
        share: (k, n): the k-th of n equal parts of each batch, for one of n processes.

    Yields:
        Batch of NumPy arrays, and the image ids, int64[B]; B / n rows for a share.
    """
    rows = batch_size // share[1]
    files = training_files(
        records, batch_size=batch_size, seed=seed, start_step=start_step, stop_step=stop_step, share=share
    )
    make = example_maker(
        records, image_size=image_size, resize=resize, seed=seed, augmentation=augmentation, decode=decode
    )
    yield from _iterate(_mapped(files, make), rows, records)


def training_files(
    records: Records,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    share: tuple[int, int] = (0, 1),
) -> Any:
    """Makes the dataset of image files and boxes in the order of training; arguments as for `training_batches`.

    Returns:
        tf.data.Dataset; an element has encoded: string[]; id: int64[]; num_boxes: int32[]; boxes: float32[N, 4],
        yxyx, fractions, of which the first `num_boxes` are valid; labels: int32[N]; epoch and number of the example:
        int32[].
    """
    import tensorflow as tf

    _leave_gpu_to_jax()
    part, num_parts = share
    rows, num_examples = batch_size // num_parts, len(records)

    def files(own_rows: Any) -> dict[str, Any]:
        positions = own_rows // rows * batch_size + part * rows + own_rows % rows
        numbers = _shuffled(positions, seed, num_examples)
        epochs = tf.cast(positions // num_examples, tf.int32)
        return _truth(records, numbers) | {"epoch": epochs, "number": tf.cast(numbers, tf.int32)}

    own_rows = tf.data.Dataset.range(start_step * rows, stop_step * rows).batch(min(rows, _READ_TOGETHER))
    return _mapped(own_rows, files).unbatch()


def example_maker(
    records: Records,
    *,
    image_size: tuple[int, int],
    resize: Resize,
    seed: int,
    augmentation: AugmentationConfig,
    decode: Decode,
) -> Callable[[dict[str, Any]], tuple[dict[str, Any], Any]]:
    """Returns a function that turns an element of `training_files` into a row of a Batch and the image id."""
    import tensorflow as tf

    room = box_room(records) * combinations.num_images(augmentation)

    def example(file: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        own_seed = tf.random.fold_in(tf.stack([seed, file["epoch"]]), file["number"])
        pixels, valid_size, boxes, labels = combinations.make_example(
            _raw(file), draw_other, own_seed, image_size=image_size, resize=resize, config=augmentation, decode=decode
        )
        return _batch_row(pixels, valid_size, boxes, labels, room), file["id"]

    def draw_other(seed: Any) -> tuple[Any, Any, Any]:
        number = tf.random.stateless_uniform([1], seed, 0, len(records), tf.int64)
        return _raw({name: values[0] for name, values in _truth(records, number).items()})

    return example


def _mapped(dataset: Any, function: Callable[..., Any]) -> Any:
    """Maps a function over a dataset in parallel, in order.

    Autograph is off: every branch is already a `tf.cond`, and searching the source would take seconds.
    """
    import tensorflow as tf

    as_it_is = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(as_it_is, tf.data.AUTOTUNE, deterministic=True)


def _shuffled(positions: Any, seed: int, num_examples: int) -> Any:
    """Finds the examples at positions of the endless sequence: int64[B] -> int64[B]."""
    import tensorflow as tf

    epochs, places = (tf.cast(x, tf.uint32) for x in (positions // num_examples, positions % num_examples))
    # The raw operation, since tf.random.experimental's does not accept a seed per row (2.21), although it documents
    # that. The first number of each seed is the one that it uses itself.
    ours, theirs = (tf.fill(tf.shape(epochs), tf.cast(number, tf.uint32)) for number in (seed, 498247692))
    seeds = tf.stack([theirs, ours, epochs], axis=-1)
    return tf.cast(tf.raw_ops.RandomIndexShuffle(index=places, seed=seeds, max_index=num_examples - 1), tf.int64)


def _truth(records: Records, numbers: Any) -> dict[str, Any]:
    """Reads files and boxes for training, without crowds.

    Args:
        records: the split.
        numbers: int64[B], which examples.

    Returns:
        encoded: string[B]; id: int64[B]; num_boxes: int32[B]; boxes: float32[B, N, 4], yxyx, fractions; labels:
        int32[B, N].
    """
    import tensorflow as tf

    found = tfrecord.parse_batch(_read(records, numbers))
    kept = tf.logical_not(found["is_crowd"])
    kept = tf.logical_and(kept, tf.sequence_mask(found["num_boxes"], tf.shape(kept)[1]))
    in_front = tf.argsort(tf.cast(kept, tf.int32), direction="DESCENDING", stable=True)
    labels = _label_table(records.categories)(found["category_ids"])
    return {
        "encoded": found["encoded"],
        "id": _id(found, numbers),
        "num_boxes": tf.reduce_sum(tf.cast(kept, tf.int32), axis=1),
        "boxes": tf.gather(found["boxes"], in_front, batch_dims=1),
        "labels": tf.gather(labels, in_front, batch_dims=1),
    }


def _raw(file: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Extracts file, boxes and labels from one row of `_truth`."""
    num_boxes = file["num_boxes"]
    return file["encoded"], file["boxes"][:num_boxes], file["labels"][:num_boxes]


def evaluation_batches(
    records: Records,
    *,
    categories: tuple[Category, ...],
    image_size: tuple[int, int],
    resize: Resize,
    batch_size: int,
    max_images: int = 0,
) -> Iterator[tuple[Batch, Originals]]:
    """Yields the letterboxed batches of one pass over a split, in its order.

    The last batch is padded with rows with the id -1.

    Args:
        records: the split.
        categories: the model's classes; the split's must be among them.
        image_size: height and width of the network input, px.
        resize: resampling method.
        batch_size: B.
        max_images: read only the first images, up to this number; 0: all.

    Yields:
        Batch (without crowds) and Originals (with crowds) of NumPy arrays.
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
        pixels = preprocess.resample_tf(image, new_size, image_size, resize)
        labels, kept = label_of(record["category_ids"]), tf.logical_not(record["is_crowd"])
        boxes = tf.boolean_mask(record["boxes"] * _twice(new_size), kept)
        inputs = _batch_row(pixels, new_size, boxes, tf.boolean_mask(labels, kept), room)
        return inputs, _originals_row(record, id, size, scale, labels, room)

    yield from _one_pass(records, example, batch_size, max_images)


def truth_batches(records: Records, *, max_images: int = 0) -> Iterator[Originals]:
    """Reads the ground truth of a split, in its order, without decoding the images.

    Labels are positions in the split's own categories, and scales are 1; padded like in `evaluation_batches`.

    Args:
        records: the split.
        max_images: read only the first images, up to this number; 0: all.

    Yields:
        Originals of NumPy arrays.
    """
    import tensorflow as tf

    _leave_gpu_to_jax()
    room, label_of = box_room(records), _label_table(records.categories)

    def example(record: dict[str, Any], id: Any) -> dict[str, Any]:
        size = preprocess.image_size_tf(record["encoded"])
        return _originals_row(record, id, size, tf.constant(1.0), label_of(record["category_ids"]), room)

    yield from _one_pass(records, example, _TRUTH_BATCH, max_images)


def _one_pass(records: Records, example: Callable[..., Any], batch_size: int, max_images: int) -> Iterator[Any]:
    """Yields batches of `example(record, id)` for the first images, in order; the last is padded (id -1)."""
    import tensorflow as tf

    num_examples = min(len(records), max_images or len(records))

    def at(position: Any) -> Any:
        number = tf.minimum(position, num_examples - 1)
        record = tfrecord.parse(_read(records, number[None])[0])
        return example(record, tf.where(position < num_examples, _id(record, number), -1))

    positions = tf.data.Dataset.range(-(-num_examples // batch_size) * batch_size)
    yield from _iterate(_mapped(positions, at), batch_size, records)


def _originals_row(record: dict[str, Any], id: Any, size: Any, scale: Any, labels: Any, room: int) -> dict[str, Any]:
    """Arranges the ground truth of one image as a row of Originals."""
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
    """Keeps TensorFlow off the GPU if JAX trains, since it would take all its memory; call before any operation."""
    import tensorflow as tf

    if backend.running() == "jax":
        tf.config.set_visible_devices([], "GPU")


def _iterate(examples: Any, batch_size: int, records: Records) -> Iterator[Any]:
    """Batches examples, and turns TensorFlow's errors about damaged records into a UserError."""
    import tensorflow as tf

    dataset = examples.batch(batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
    try:
        yield from dataset.as_numpy_iterator()
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.UnknownError) as error:
        raise UserError(
            f"Split `{records.name}` (`{records.paths[0]}`) has a damaged record: {first_line(error)}; "
            "convert the dataset again."
        ) from error


def _read(records: Records, numbers: Any) -> Any:
    """Reads payloads of records: int64[B] -> string[B]."""
    import tensorflow as tf

    def read(numbers: np.ndarray) -> np.ndarray:
        payloads = np.empty(len(numbers), object)
        for row, number in enumerate(numbers):
            # Opened for each record: datasets with thousands of shards would exceed the limit of open files.
            shard, offset, length = (int(a[number]) for a in (records.shards, records.offsets, records.lengths))
            descriptor = os.open(records.paths[shard], os.O_RDONLY)
            try:
                payloads[row] = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        return payloads

    payloads = tf.numpy_function(read, [numbers], tf.string, stateful=False)
    return tf.ensure_shape(payloads, [None])


def check_categories(records: Records, categories: tuple[Category, ...]) -> None:
    """Checks that every class of the records is one of `categories`, under the same id and name.

    Raises:
        UserError: one is not.
    """
    known = {category.id: category.name for category in categories}
    for category in records.categories:
        if known.get(category.id) != category.name:
            other = f"calls it `{known[category.id]}`" if category.id in known else "does not have it"
            raise UserError(
                f"Class {category.id} of split `{records.name}` is `{category.name}`, but the model {other}. "
                "Convert the splits together, so that they share one class table."
            )


def _label_table(categories: tuple[Category, ...]) -> Any:
    """Returns a function that turns category ids, int64[...], into labels, int32[...]."""
    import tensorflow as tf

    labels = sorted(range(len(categories)), key=lambda label: categories[label].id)
    ids = np.array([categories[label].id for label in labels], np.int64)
    in_order = np.array(labels, np.int32)

    def labels_of(category_ids: Any) -> Any:
        places = tf.searchsorted(ids, tf.reshape(category_ids, [-1]))
        return tf.reshape(tf.gather(in_order, places), tf.shape(category_ids))

    return labels_of


def _id(record: dict[str, Any], number: Any) -> Any:
    """Returns the image id; if source_id is not a number, the position in the split, from 1."""
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
