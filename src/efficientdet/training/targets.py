"""Anchors x GroundTruth -> Targets (RetinaNet, section 4; google/automl's ArgMax matcher with forced matches).

Each anchor is matched to the box it overlaps most, if the IoU reaches the threshold. Each box also claims the anchor
that it overlaps most, whatever the IoU, so that every box is trained on. Ties go to the first.
"""

from typing import Any

from keras import ops

from efficientdet import boxes as box_geometry
from efficientdet.structures import Array, Boxes, GroundTruth, Targets

BACKGROUND = -1
IGNORED = -2


def assign(anchors: Boxes, truth: GroundTruth, match_iou: float) -> Targets:
    """Assigns boxes to anchors for the whole batch.

    Loops over the boxes one by one, up to the fullest image of the batch: this needs memory for B x A numbers instead
    of B x A x N.

    Args:
        anchors: float32[A, 4], yxyx px.
        truth: boxes of B images; an image may have none.
        match_iou: lowest IoU of a match.

    Returns:
        Targets. An anchor matched to a box with label -1 gets the label -2 (ignored) and ordinary box deltas.
    """
    anchors = ops.convert_to_tensor(anchors, "float32")
    boxes = ops.cast(truth["boxes"], "float32")
    num_boxes = ops.cast(truth["num_boxes"], "int32")
    anchor_numbers = ops.arange(anchors.shape[0], dtype="int32")[None]

    # Outside the loop because for a batch in several parts this is a collective operation. Inside, every iteration
    # would wait for one, and XLA may reorder collectives in a loop so that they are matched with the wrong ones (as of
    # JAX 0.10.2).
    fullest = ops.max(num_boxes)

    def any_left(number: Any, *_: Any) -> Any:
        return number < fullest

    def match(number: Any, best_iou: Array, best_box: Array, forced_box: Array) -> tuple[Any, ...]:
        box = ops.take(boxes, number, axis=1)[:, None]
        is_real = (number < num_boxes)[:, None]
        iou = ops.where(is_real, box_geometry.iou(box, anchors[None]), -1.0)
        is_better = iou > best_iou
        best_iou = ops.where(is_better, iou, best_iou)
        best_box = ops.where(is_better, number, best_box)
        own_anchor = ops.cast(ops.argmax(iou, axis=1), "int32")[:, None]
        is_claimed = ops.logical_and(ops.logical_and(anchor_numbers == own_anchor, is_real), forced_box < 0)
        forced_box = ops.where(is_claimed, number, forced_box)
        return number + 1, best_iou, best_box, forced_box

    # The shape [B, A] comes from the boxes because the batch size may be unknown during tracing.
    zeros = ops.zeros_like(num_boxes)[:, None] * ops.ones_like(anchor_numbers)
    start = (ops.zeros((), dtype="int32"), ops.cast(zeros, "float32") - 1.0, zeros, zeros - 1)
    _, best_iou, best_box, forced_box = ops.while_loop(any_left, match, start)

    box_of_anchor = ops.where(forced_box >= 0, forced_box, best_box)
    is_matched = ops.logical_or(forced_box >= 0, best_iou >= match_iou)
    matched_labels = ops.take_along_axis(ops.cast(truth["labels"], "int32"), box_of_anchor, axis=1)
    matched_labels = ops.where(matched_labels < 0, IGNORED, matched_labels)
    matched_boxes = ops.take_along_axis(boxes, box_of_anchor[..., None], axis=1)
    deltas = box_geometry.encode(matched_boxes, anchors[None])
    return {
        "labels": ops.where(is_matched, matched_labels, BACKGROUND),
        "box_deltas": ops.where(is_matched[..., None], deltas, 0.0),
    }
