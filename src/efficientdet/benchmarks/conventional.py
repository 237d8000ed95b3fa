"""An input pipeline in the conventional order, as a baseline for ours: written with care, but in that order.

Every image is decoded whole, converted to float and normalized, mirrored, scaled whole, cropped, padded; anchors are
matched on the host; a batch has float pixels and dense targets. google/automl's and NVIDIA's loaders work this way.
Records are read by TFRecordDataset and everything is mapped in parallel, in graph operations; mirroring reverses an
axis in a branch. Scales, crops and boxes are drawn as in ours, so that both see images with the same statistics (a test
compares them), and the targets are those of `training.targets` (a test compares them too).
"""

from typing import Any

import numpy as np

from efficientdet import boxes as box_geometry
from efficientdet.config import AugmentationConfig, LossConfig, ModelConfig
from efficientdet.data.augment import cropping
from efficientdet.data.records import tfrecord
from efficientdet.data.records.store import Records
from efficientdet.model import anchors as anchor_boxes


def batches(
    records: Records,
    *,
    model: ModelConfig,
    augmentation: AugmentationConfig,
    batch_size: int,
    num_steps: int,
    seed: int,
) -> Any:
    """Creates a dataset of training batches, in the order of the records.

    Args:
        records: the split.
        model: image size, anchors, mean and standard deviation of pixels.
        augmentation: mirroring and scales; other settings are ignored.
        batch_size: B.
        num_steps: number of batches.
        seed: random seed.

    Returns:
        tf.data.Dataset; an element has images: float32[B, H, W, 3], normalized, padding 0; labels: int32[B, A];
        box_deltas: float32[B, A, 4]; num_boxes: int32[B].
    """
    import tensorflow as tf

    anchors = anchor_boxes.anchor_boxes(model)
    mean = np.array(model.pixel_mean, np.float32) * 255
    inverse_std = 1 / (np.array(model.pixel_std, np.float32) * 255)
    ids = np.array([category.id for category in records.categories], np.int64)
    in_order, labels = np.sort(ids), np.argsort(ids).astype(np.int32)

    def example(number: Any, serialized: Any) -> dict[str, Any]:
        record = tfrecord.parse(serialized)
        image = tf.io.decode_jpeg(record["encoded"], channels=3)
        image = (tf.cast(image, tf.float32) - mean) * inverse_std
        kept = tf.logical_not(record["is_crowd"])
        boxes = tf.boolean_mask(record["boxes"], kept)
        own_labels = tf.gather(labels, tf.searchsorted(in_order, tf.boolean_mask(record["category_ids"], kept)))
        own_seed = tf.stack([seed, tf.cast(number, tf.int32)])
        pixels, boxes = scale_and_cut(image, boxes, own_seed, model.image_size, augmentation)
        has_area = cropping.has_area(boxes)
        boxes, own_labels = tf.boolean_mask(boxes, has_area), tf.boolean_mask(own_labels, has_area)
        found, deltas = match(boxes, own_labels, anchors, LossConfig().match_iou)
        return {"images": pixels, "labels": found, "box_deltas": deltas, "num_boxes": tf.shape(boxes)[0]}

    files = tf.data.TFRecordDataset(list(records.paths)).repeat().enumerate().take(num_steps * batch_size)
    examples = files.map(example, tf.data.AUTOTUNE, deterministic=True)
    return examples.batch(batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


def scale_and_cut(
    image: Any, boxes: Any, seed: Any, image_size: tuple[int, int], config: AugmentationConfig
) -> tuple[Any, Any]:
    """Mirrors and scales the whole image, then crops the network input from it.

    Args:
        image: float32[h, w, 3], normalized.
        boxes: float32[N, 4], yxyx, fractions of the image's height and width.
        seed: int32[2].
        image_size: H and W, px.
        config: mirroring and scales.

    Returns:
        float32[H, W, 3], 0 outside the image; float32[N, 4], yxyx px of the network input.
    """
    import tensorflow as tf

    size = tf.shape(image)[:2]
    is_mirrored, window, _, valid_size = cropping.draw_decisions(seed, size, image_size, config, "half_pixel")
    image = tf.cond(is_mirrored, lambda: tf.reverse(image, [1]), lambda: image)
    scale = tf.cast(valid_size, tf.float32) / tf.cast(window[2:], tf.float32)
    new_size = tf.maximum(tf.cast(tf.round(scale * tf.cast(size, tf.float32)), tf.int32), valid_size)
    scaled = tf.image.resize(image, new_size, method="bilinear")
    left = tf.where(is_mirrored, size[1] - window[1] - window[3], window[1])
    corner = tf.cast(scale * tf.cast(tf.stack([window[0], left]), tf.float32), tf.int32)
    corner = tf.minimum(corner, new_size - valid_size)
    cut = tf.slice(scaled, tf.concat([corner, [0]], axis=0), tf.concat([valid_size, [3]], axis=0))
    padded = tf.image.pad_to_bounding_box(cut, 0, 0, *image_size)
    boxes = cropping.move_boxes(boxes, size, window, valid_size, image_size, is_mirrored)
    return tf.ensure_shape(padded, [*image_size, 3]), boxes


def match(boxes: Any, labels: Any, anchors: np.ndarray, match_iou: float) -> tuple[Any, Any]:
    """Assigns the boxes of one image to anchors, all pairs at once.

    Args:
        boxes: float32[N, 4], yxyx px.
        labels: int32[N].
        anchors: float32[A, 4], yxyx px.
        match_iou: lowest IoU of a match.

    Returns:
        Labels and box deltas as from `training.targets.assign`: int32[A] and float32[A, 4].
    """
    import tensorflow as tf

    from efficientdet.training import targets

    num_anchors = len(anchors)

    def matched() -> tuple[Any, Any]:
        iou = _iou(boxes, anchors)
        best_box = tf.argmax(iou, axis=0, output_type=tf.int32)
        is_matched = tf.reduce_max(iou, axis=0) >= match_iou
        # Each box claims the anchor that it overlaps most; if two boxes claim the same one, the first gets it.
        own_anchor = tf.argmax(iou, axis=1, output_type=tf.int32)
        backwards = tf.range(tf.shape(boxes)[0])[::-1]
        forced = tf.tensor_scatter_nd_max(
            tf.fill([num_anchors], -1), tf.gather(own_anchor, backwards)[:, None], tf.range(tf.shape(boxes)[0])
        )
        box_of_anchor = tf.where(forced >= 0, tf.shape(boxes)[0] - 1 - forced, best_box)
        is_matched = tf.logical_or(forced >= 0, is_matched)
        deltas = _encode(tf.gather(boxes, box_of_anchor), anchors)
        found = tf.where(is_matched, tf.gather(labels, box_of_anchor), targets.BACKGROUND)
        return found, tf.where(is_matched[:, None], deltas, 0.0)

    def nothing() -> tuple[Any, Any]:
        return tf.fill([num_anchors], targets.BACKGROUND), tf.zeros([num_anchors, 4])

    found, deltas = tf.cond(tf.shape(boxes)[0] > 0, matched, nothing)
    return tf.ensure_shape(found, [num_anchors]), tf.ensure_shape(deltas, [num_anchors, 4])


def _iou(boxes: Any, anchors: np.ndarray) -> Any:
    """Computes IoU, float32[N, A], one coordinate at a time, since a last axis of size 4 is slow on a CPU."""
    import tensorflow as tf

    y1, x1, y2, x2 = (boxes[:, None, side] for side in range(4))
    ay1, ax1, ay2, ax2 = (anchors[None, :, side] for side in range(4))
    height = tf.maximum(tf.minimum(y2, ay2) - tf.maximum(y1, ay1), 0.0)
    shared = height * tf.maximum(tf.minimum(x2, ax2) - tf.maximum(x1, ax1), 0.0)
    union = (y2 - y1) * (x2 - x1) + (ay2 - ay1) * (ax2 - ax1) - shared
    return shared / union


def _encode(boxes: Any, anchors: np.ndarray) -> Any:
    """Encodes boxes relative to anchors like `boxes.encode`: float32[A, 4]."""
    import tensorflow as tf

    epsilon = box_geometry.EPSILON
    size = anchors[:, 2:] - anchors[:, :2]
    own_size = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, 2:] + boxes[:, :2] - anchors[:, 2:] - anchors[:, :2]) / 2
    return tf.concat([shift / (size + epsilon), tf.math.log((own_size + epsilon) / (size + epsilon))], axis=1)
