"""Focal loss for classes, Huber loss for boxes, in float32 (RetinaNet, section 3; Fast R-CNN, eq. 3).

Both are sums over anchors divided by N = matched anchors of the batch + 1.
"""

from keras import ops

from efficientdet.config import LossConfig
from efficientdet.kernels import chains
from efficientdet.structures import Array, Deltas, Labels, Logits, RawPredictions, Scalar, Targets
from efficientdet.training import targets as target_assignment

NAMES = ("loss", "class_loss", "box_loss")
"""Keys of the losses returned by `detection_losses`."""


def focal(logits: Logits, is_positive: Array, *, alpha: float, gamma: float, label_smoothing: float = 0.0) -> Array:
    """Computes the sigmoid focal loss (RetinaNet, eq. 5), element by element.

    FL = alpha_t (1 - p_t)^gamma CE. With s = -x for positives and x for negatives, 1 - p_t = sigmoid(s), so
    (1 - p_t)^gamma = exp(-gamma softplus(-s)): finite for every logit, unlike NVIDIA's form, which overflows below -88.

    Args:
        logits: float32[...].
        is_positive: bool[...].
        alpha: weight of positives; negatives get 1 - alpha.
        gamma: focusing parameter; 0 gives the weighted cross-entropy.
        label_smoothing: moves the targets of the cross-entropy, not of the modulator, toward 0.5 (as google/automl).

    Returns:
        float32[...].
    """
    target = ops.cast(is_positive, "float32")
    signed = ops.where(is_positive, -logits, logits)
    modulator = ops.exp(-gamma * ops.softplus(-signed))
    smoothed = target * (1.0 - label_smoothing) + 0.5 * label_smoothing
    cross_entropy = ops.softplus(logits) - smoothed * logits
    return ops.where(is_positive, alpha, 1.0 - alpha) * modulator * cross_entropy


def huber(error: Array, delta: float) -> Array:
    """Computes the Huber loss: e^2 / 2 up to |e| = delta, then delta (|e| - delta / 2), element by element."""
    size = ops.abs(error)
    return ops.where(size <= delta, 0.5 * ops.square(error), delta * (size - 0.5 * delta))


def class_loss_sum(logits: Logits, labels: Labels, config: LossConfig) -> Scalar:
    """Sums the focal loss over images, anchors and classes.

    Args:
        logits: float32[B, A, C].
        labels: int32[B, A]; -1 is negative for every class, -2 is ignored.
        config: alpha, gamma, smoothing.

    Returns:
        float32[].
    """
    sums = chains.compute(
        focal_by_anchor,
        logits,
        labels,
        alpha=config.focal_alpha,
        gamma=config.focal_gamma,
        label_smoothing=config.label_smoothing,
    )
    return ops.sum(sums)


def focal_by_anchor(logits: Logits, labels: Labels, *, alpha: float, gamma: float, label_smoothing: float) -> Array:
    """Sums the focal loss over classes.

    Args:
        logits: float32[B, A, C].
        labels: int32[B, A]; -1 is negative for every class, -2 is ignored.
        alpha: see `focal`.
        gamma: see `focal`.
        label_smoothing: see `focal`.

    Returns:
        float32[B, A].
    """
    is_positive = labels[..., None] == ops.arange(logits.shape[-1], dtype="int32")
    losses = focal(logits, is_positive, alpha=alpha, gamma=gamma, label_smoothing=label_smoothing)
    return ops.where(labels != target_assignment.IGNORED, ops.sum(losses, axis=-1), 0.0)


def box_loss_sum(box_deltas: Deltas, target_deltas: Deltas, delta: float) -> Scalar:
    """Sums the Huber loss over the coordinates of matched anchors.

    As in the reference implementations, a coordinate counts unless its target is exactly zero: this excludes unmatched
    anchors, and also the rare coordinate in which box and anchor agree to the last bit.

    Args:
        box_deltas: float32[B, A, 4].
        target_deltas: float32[B, A, 4].
        delta: see `huber`.

    Returns:
        float32[].
    """
    losses = huber(box_deltas - target_deltas, delta)
    return ops.sum(ops.where(target_deltas != 0.0, losses, 0.0))


def count_matched(labels: Labels) -> Scalar:
    """Counts the matched anchors in int32[B, A]: float32[]."""
    return ops.sum(ops.cast(labels != target_assignment.BACKGROUND, "float32"))


def detection_losses(
    raw: RawPredictions,
    targets: Targets,
    config: LossConfig,
    is_real: Array | None = None,
    num_matched: Scalar | None = None,
) -> dict[str, Scalar]:
    """Computes the losses of a batch.

    Args:
        raw: raw predictions of the network.
        targets: targets for the same images.
        config: parameters of the losses.
        is_real: bool[B], images that count; None: all.
        num_matched: float32[], matched anchors of the whole batch if these rows are a part of it; None: of the rows.

    Returns:
        float32[] each: `class_loss` = sum / N, `box_loss` = sum / 4N, `loss` = class_loss + box_weight * box_loss.
    """
    labels, deltas = targets["labels"], targets["box_deltas"]
    if is_real is not None:
        num_matched = count_matched(ops.where(is_real[:, None], labels, target_assignment.BACKGROUND))
        labels = ops.where(is_real[:, None], labels, target_assignment.IGNORED)
        deltas = ops.where(is_real[:, None, None], deltas, 0.0)
    normalizer = (count_matched(labels) if num_matched is None else num_matched) + 1.0
    class_loss = class_loss_sum(raw["class_logits"], labels, config) / normalizer
    box_loss = box_loss_sum(raw["box_deltas"], deltas, config.huber_delta) / (4.0 * normalizer)
    return {"loss": class_loss + config.box_weight * box_loss, "class_loss": class_loss, "box_loss": box_loss}
