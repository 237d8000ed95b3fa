"""The data structures that the parts of the package exchange.

Letters: B batch, H W image px, C classes, A anchors of all levels, N boxes, K detections. Boxes are yxyx,
`0 <= y1 <= y2 <= H` and `0 <= x1 <= x2 <= W`, in pixels of the network input unless the name says otherwise.
"""

import dataclasses
from typing import Any, NotRequired, TypeAlias, TypedDict

# Arrays are TensorFlow's, JAX's or NumPy's, which have no common type for a type checker. The names say what they hold.
Array: TypeAlias = Any
"""Any of them; docstrings state dtype and shape."""
Boxes: TypeAlias = Array
"""float32[..., 4], yxyx."""
Deltas: TypeAlias = Array
"""float32[..., 4], (ty, tx, th, tw) of `boxes.encode`."""
Labels: TypeAlias = Array
"""int32[...], class indices."""
Logits: TypeAlias = Array
"""float32[..., C], before the sigmoid."""
Scores: TypeAlias = Array
"""float32[...] in [0, 1]."""
Features: TypeAlias = Array
"""compute_dtype[B, h, w, D], a feature map."""
Channels: TypeAlias = Array
"""float32[D], one number per channel."""
Scalar: TypeAlias = Array
"""float32[]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Category:
    """A class of a dataset. Labels are positions 0..C-1 in the dataset's list of categories.

    Attributes:
        id: the dataset's own number for the class (COCO: 1..90, with gaps).
        name: its name.
    """

    id: int
    name: str


class GroundTruth(TypedDict):
    """The boxes of a batch.

    boxes: float32[B, N, 4], yxyx px; rows from `num_boxes` on are padding.
    labels: int32[B, N] in 0..C-1; -1 marks a box whose class loss is ignored.
    num_boxes: int32[B].
    """

    boxes: Boxes
    labels: Labels
    num_boxes: Array


class Batch(GroundTruth):
    """The data sent to the device for one step.

    images: uint8[B, H, W, 3], RGB, letterboxed: the image at the top left, zeros to its right and below.
    valid_size: int32[B, 2], height and width of the image inside.
    is_asked_to_end: bool[B], only with several processes: whether the process of the row was asked to stop.
    """

    images: Array
    valid_size: Array
    is_asked_to_end: NotRequired[Array]


class Originals(TypedDict):
    """The data of a `Batch` that stay on the host: facts about the original images on disk.

    ids: int64[B], the dataset's image ids; -1 marks a row that only fills up the last batch.
    scales: float32[B], px of the network input per px of the image.
    sizes: int32[B, 2], height and width, px.
    boxes: float32[B, N, 4], yxyx px of the image; crowds included.
    labels: int32[B, N].
    is_crowd: bool[B, N].
    area: float32[B, N], px of the image squared (COCO: of the mask).
    num_boxes: int32[B].
    """

    ids: Array
    scales: Array
    sizes: Array
    boxes: Boxes
    labels: Labels
    is_crowd: Array
    area: Array
    num_boxes: Array


class RawPredictions(TypedDict):
    """The outputs of the network.

    class_logits: float32[B, A, C], before the sigmoid.
    box_deltas: float32[B, A, 4], (ty, tx, th, tw) of `boxes.encode`.
    """

    class_logits: Logits
    box_deltas: Deltas


class Targets(TypedDict):
    """The training targets of the network.

    labels: int32[B, A] in 0..C-1; -1 background, -2 ignored by the class loss.
    box_deltas: float32[B, A, 4]; exact zeros where no box is matched.
    """

    labels: Labels
    box_deltas: Deltas


class Detections(TypedDict):
    """Detections, best first; rows from `num_detections` on are padding (label -1, score 0).

    boxes: float32[B, K, 4], yxyx px.
    labels: int32[B, K] in 0..C-1.
    scores: float32[B, K] in [0, 1].
    num_detections: int32[B].
    """

    boxes: Boxes
    labels: Labels
    scores: Scores
    num_detections: Array
