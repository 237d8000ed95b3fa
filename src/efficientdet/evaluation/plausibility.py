"""Signs that an evaluation measures something other than the quality of a detector.

Two rules, used during training and by `evaluate`:

full images      an image has far more confident boxes than objects. One such image among 400 generated ones cost .037
                 of AP .367: its 23 boxes with scores of at least 0.9 ranked before those of all other images, none of
                 which had more than two. Cause: activations explode on an image unlike the training images, in a
                 network that never trained with fixed batch statistics for long (docs/troubleshooting.md).
validation loss  it is several times the training loss. The same cause, or overfitting.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import structures

_CONFIDENT = 0.9
"""Minimum score of a confident box."""
_PER_OBJECT, _SURPLUS = 2, 10
"""An image is full if it has at least 2 confident boxes per object plus 10."""
_MOST_UNKNOWN = 50
"""Minimum number of confident boxes of a full image if no image has annotated objects."""
_LOSS_FACTOR = 5.0
"""A validation loss is far above the training loss if it is more than this many times as large."""

_SHOWN = 5
_ADVICE = (
    "Train longer or with a larger batch, start from `--backbone imagenet`, or lower `--optimizer.learning-rate` "
    "(docs/troubleshooting.md)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullImage:
    """An image with far more confident boxes than objects."""

    position: int
    """Position among the evaluated images, from 0."""
    num_confident: int
    """Number of boxes with a score of at least 0.9."""
    num_objects: int
    """Number of ground truth boxes."""


class Watch:
    """Counts the confident boxes of images as they are evaluated."""

    def __init__(self) -> None:
        self.num_images = 0
        self._suspects: list[FullImage] = []
        self._num_objects = 0

    def add(self, originals: structures.Originals, detections: structures.Detections) -> None:
        """Adds the images of a batch; rows with id -1 only fill up the batch. A crowd may have any number of boxes."""
        for row in np.flatnonzero(np.asarray(originals["ids"]) != -1):
            scores = np.asarray(detections["scores"][row])[: int(detections["num_detections"][row])]
            confident, objects = int((scores >= _CONFIDENT).sum()), int(originals["num_boxes"][row])
            self._num_objects += objects
            if confident >= _PER_OBJECT * objects + _SURPLUS and not np.any(originals["is_crowd"][row][:objects]):
                image = FullImage(position=self.num_images, num_confident=confident, num_objects=objects)
                self._suspects.append(image)
            self.num_images += 1

    @property
    def full(self) -> list[FullImage]:
        """The full images, in the order of the evaluation."""
        if self._num_objects:
            return self._suspects
        return [image for image in self._suspects if image.num_confident >= _MOST_UNKNOWN]

    def warning(self, name_of: Callable[[int], str]) -> str | None:
        """Says in one line which images are full and what to do; None if no image is full.

        Args:
            name_of: returns the name of the image at a position.
        """
        full = sorted(self.full, key=lambda image: -image.num_confident)
        if not full:
            return None
        named = [f"{name_of(image.position)} ({image.num_confident})" for image in full[:_SHOWN]]
        others = [f"{len(full) - _SHOWN} more"] if len(full) > _SHOWN else []
        return (
            f"{len(full)} of {self.num_images} images {'have' if len(full) > 1 else 'has'} far more boxes with a score "
            f"of at least {_CONFIDENT:g} than objects: {', '.join(named + others)}. Each of them lowers AP. Either "
            f"objects in these images are not annotated, or activations explode. {_ADVICE}"
        )


def warn_of_losses(training: float | None, validation: float | None) -> str | None:
    """Warns in one line if the validation loss is far above the training loss; None if not, or if one is unknown.

    Args:
        training: loss of the last steps, without weight decay.
        validation: loss on the validation images.
    """
    if not training or not validation or validation <= _LOSS_FACTOR * training:
        return None
    return (
        f"the validation loss, {validation:.3g}, is {validation / training:.0f} times the training loss, "
        f"{training:.3g}: activations explode on images unlike the training images, or the network has overfit. "
        f"{_ADVICE}"
    )


def read_losses(run_dir: Path) -> tuple[float | None, float | None]:
    """Reads the last training loss and the last validation loss of a run; None if there is none.

    Args:
        run_dir: location of the weights; may be something other than a run folder.
    """
    path = run_dir / "metrics.jsonl"
    last: dict[str, Any] = {}
    if path.is_file():
        for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
            try:
                line = json.loads(text)
                last[line["kind"]] = line["values"].get("loss")
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # `train` reports damaged lines; here they are skipped
    return last.get("train"), last.get("validation")
