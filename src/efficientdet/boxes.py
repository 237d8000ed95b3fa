"""Box geometry. Boxes are yxyx = (y1, x1, y2, x2); other formats are used only for input and output.

Most functions use `keras.ops` on tensors of the running backend and work under any compiler; `to_xywh` is for output
and takes NumPy arrays.
"""

from efficientdet.structures import Array, Boxes, Deltas

EPSILON = 1e-8  # google/automl adds it to every size before dividing or taking a logarithm.


def area(boxes: Boxes) -> Array:
    """Computes the area of boxes.

    Args:
        boxes: float32[..., 4], yxyx.

    Returns:
        float32[...], in the squared unit of the boxes.
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Boxes, b: Boxes, margin: float = 0.0) -> Array:
    """Computes the area of the intersection of boxes, element by element with broadcasting.

    Args:
        a: float32[..., 4], yxyx.
        b: float32[..., 4], yxyx.
        margin: added to height and width of the overlap; 1 counts pixels, as google/automl's suppression does.

    Returns:
        float32[...]; 0 where the boxes do not overlap.
    """
    from keras import ops

    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0]) + margin
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1]) + margin
    return ops.maximum(height, 0.0) * ops.maximum(width, 0.0)


def iou(a: Boxes, b: Boxes) -> Array:
    """Computes intersection over union, element by element with broadcasting.

    Args:
        a: float32[..., 4], yxyx. `a[:, None]` and `b[None]` give all pairs.
        b: float32[..., 4], yxyx.

    Returns:
        float32[...] in [0, 1]; 0 where the boxes do not overlap, including where both are empty.
    """
    from keras import ops

    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return ops.where(shared > 0, shared / ops.where(shared > 0, union, 1.0), 0.0)


def encode(boxes: Boxes, anchors: Boxes) -> Deltas:
    """Encodes boxes relative to anchors (Faster R-CNN, eq. 2; no variances).

    ty = (yc - yc_a) / h_a, tx = (xc - xc_a) / w_a, th = log(h / h_a), tw = log(w / w_a).

    Args:
        boxes: float32[..., 4], yxyx.
        anchors: float32[..., 4], yxyx, of the same or a broadcastable shape.

    Returns:
        float32[..., 4], (ty, tx, th, tw).
    """
    from keras import ops

    center_y, center_x, height, width = _centers(boxes)
    anchor_y, anchor_x, anchor_height, anchor_width = _centers(anchors)
    height, width = height + EPSILON, width + EPSILON
    anchor_height, anchor_width = anchor_height + EPSILON, anchor_width + EPSILON
    return ops.stack(
        [
            (center_y - anchor_y) / anchor_height,
            (center_x - anchor_x) / anchor_width,
            ops.log(height / anchor_height),
            ops.log(width / anchor_width),
        ],
        axis=-1,
    )


def decode(deltas: Deltas, anchors: Boxes) -> Boxes:
    """Reverses `encode`. As in the reference, nothing is clamped: an untrained network may predict infinite sizes.

    Args:
        deltas: float32[..., 4], (ty, tx, th, tw).
        anchors: float32[..., 4], yxyx.

    Returns:
        float32[..., 4], yxyx.
    """
    from keras import ops

    anchor_y, anchor_x, anchor_height, anchor_width = _centers(anchors)
    center_y = deltas[..., 0] * anchor_height + anchor_y
    center_x = deltas[..., 1] * anchor_width + anchor_x
    half_height = ops.exp(deltas[..., 2]) * anchor_height / 2
    half_width = ops.exp(deltas[..., 3]) * anchor_width / 2
    return ops.stack(
        [center_y - half_height, center_x - half_width, center_y + half_height, center_x + half_width], axis=-1
    )


def _centers(boxes: Boxes) -> tuple[Array, Array, Array, Array]:
    """Returns center y, center x, height and width of yxyx boxes."""
    y1, x1, y2, x2 = (boxes[..., i] for i in range(4))
    return (y1 + y2) / 2, (x1 + x2) / 2, y2 - y1, x2 - x1


def to_xywh(boxes: Boxes) -> Array:
    """Converts NumPy boxes from yxyx to COCO's (x, y, width, height).

    Args:
        boxes: float[..., 4], yxyx.

    Returns:
        float[..., 4] of the same type.
    """
    import numpy as np

    y1, x1, y2, x2 = (boxes[..., i] for i in range(4))
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)
