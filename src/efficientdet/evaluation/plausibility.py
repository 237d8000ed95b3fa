"""Signs that an evaluation measures something else than how good a detector is.

Two rules, used while training and by `evaluate`:

full images      an image has confident boxes far beyond its objects. One among 400 generated images cost .037 of
                 AP .367: its 23 boxes with scores of 0.9 and more stood before those of all other images, of which
                 none had more than two. Cause: activations that explode on an image unlike those trained on, in a
                 network that never ran with fixed batch statistics for long (docs/troubleshooting.md).
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
"""Score from which on a box is confident."""
_PER_OBJECT, _SURPLUS = 2, 10
"""An image is full from 2 confident boxes for each of its objects and 10 more on."""
_MOST_UNKNOWN = 50
"""The same where no image has objects annotated: confident boxes."""
_LOSS_FACTOR = 5.0
"""A validation loss more than this many times the training loss is far above it."""

_SHOWN = 5
_ADVICE = (
    "Train longer or with a larger batch, start from `--backbone imagenet`, or lower `--optimizer.learning-rate` "
    "(docs/troubleshooting.md)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullImage:
    """An image with confident boxes far beyond its objects."""

    position: int
    """Place among the images evaluated, from 0."""
    num_confident: int
    """Boxes with a score of 0.9 and more."""
    num_objects: int
    """Boxes to find."""


class Watch:
    """Counts the confident boxes of images as they are evaluated."""

    def __init__(self) -> None:
        self.num_images = 0
        self._suspects: list[FullImage] = []
        self._num_objects = 0

    def add(self, originals: structures.Originals, detections: structures.Detections) -> None:
        """Adds the images of a batch; rows with id -1 only fill the batch. A crowd may have any number of boxes."""
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
        """Lists the images that are full, in the order of the evaluation."""
        if self._num_objects:
            return self._suspects
        return [image for image in self._suspects if image.num_confident >= _MOST_UNKNOWN]

    def warning(self, name_of: Callable[[int], str]) -> str | None:
        """Says in one line which images are full, and what to do; none: no image is.

        Args:
            name_of: names the image at a position, for people.
        """
        full = sorted(self.full, key=lambda image: -image.num_confident)
        if not full:
            return None
        named = [f"{name_of(image.position)} ({image.num_confident})" for image in full[:_SHOWN]]
        others = [f"{len(full) - _SHOWN} more"] if len(full) > _SHOWN else []
        return (
            f"{len(full)} of {self.num_images} images {'are' if len(full) > 1 else 'is'} full of boxes with scores of "
            f"{_CONFIDENT:g} and more, far beyond their objects: {', '.join(named + others)}. AP suffers from each. "
            f"Either objects there are not annotated, or activations explode. {_ADVICE}"
        )


def warn_of_losses(training: float | None, validation: float | None) -> str | None:
    """Says in one line that the validation loss is far above the training loss; none: it is not, or one is unknown.

    Args:
        training: loss of the last steps, without weight decay.
        validation: loss of the validation images.
    """
    if not training or not validation or validation <= _LOSS_FACTOR * training:
        return None
    return (
        f"the validation loss, {validation:.3g}, is {validation / training:.0f} times the training loss, "
        f"{training:.3g}: activations explode on images unlike those trained on, or the network has overfit. {_ADVICE}"
    )


def read_losses(run_dir: Path) -> tuple[float | None, float | None]:
    """Reads the last training loss and the last validation loss of a run; none where there is none.

    Args:
        run_dir: whatever weights came from; need not be the folder of a run.
    """
    path = run_dir / "metrics.jsonl"
    last: dict[str, Any] = {}
    if path.is_file():
        for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
            try:
                line = json.loads(text)
                last[line["kind"]] = line["values"].get("loss")
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # `train` names a damaged line; here it only cannot be judged
    return last.get("train"), last.get("validation")
