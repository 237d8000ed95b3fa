"""OpenVINO's graph of a model, as two files: model.xml and, with the values, model.bin.

    images uint8[B, H, W, 3], RGB, letterboxed; valid_size int32[B, 2], height and width of the picture inside, px
    -> class_logits float32[B, A, C], box_deltas float32[B, A, 4], best_logits float32[B, A], of each anchor the largest

Normalising is inside; suppression is not (runtimes/openvino.py). Model, classes and limits of the suppression are noted
in the graph, so that `Detector("model.xml")` needs nothing else.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from efficientdet import files
from efficientdet.data import synthetic
from efficientdet.errors import UserError
from efficientdet.runtimes import keras as keras_runtime
from efficientdet.runtimes import openvino as openvino_runtime

_LARGEST_DIFFERENCE = 1e-3  # of a score; float32 sums in another order give 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, and how far from Keras it answers."""

    path: str
    score_difference: float
    """Largest difference of a score on a generated picture."""

    def to_dict(self) -> dict[str, Any]:
        """Turns the result into plain JSON values."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Says where the graph is."""
        return f"{self.path}: scores differ from Keras's by {self.score_difference:.1e} at most"


def export(
    weights: Path,
    /,
    *,
    output: Path,
    format: Literal["openvino"] = "openvino",
    image_size: tuple[int, int] | None = None,
) -> Export:
    """Writes a model for another program, here OpenVINO, and compares it with Keras.

    `efficientdet predict` and `Detector` take the model.xml in place of weights.

    Args:
        weights: weights file, folder of a run (its best weights), or a published name such as coco-d0.
        output: folder for model.xml and model.bin.
        format: what is written; one today.
        image_size: height and width of the network input, px; what the weights were trained with if not given.

    Raises:
        UserError: OpenVINO is not installed, the weights cannot be used, or the graph answers otherwise than Keras.
    """
    from efficientdet.model import pretrained
    from efficientdet.model import weights as weight_files

    path = output / f"model{openvino_runtime.SUFFIX}"
    assert format == "openvino"
    openvino_runtime.import_openvino()
    files.check_writable(path)
    loaded = weight_files.load(pretrained.find_weights(weights))
    graph = openvino_runtime.convert(loaded, image_size)
    with files.explained(path):
        output.mkdir(parents=True, exist_ok=True)
        # Only a graph that has answered as Keras does comes to its place.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=output) as folder:
            written = Path(folder) / path.name
            openvino_runtime.write(written, graph)
            difference = _compare(written, weights, image_size)
            for suffix in (".bin", openvino_runtime.SUFFIX):
                written.with_suffix(suffix).replace(path.with_suffix(suffix))
    return Export(path=str(path), score_difference=difference)


def _compare(path: Path, weights: Path, image_size: tuple[int, int] | None) -> float:
    """Finds the largest difference of a score from Keras's on a generated picture.

    Raises:
        UserError: it is too large.
    """
    runtime = openvino_runtime.OpenVinoRuntime(path)
    picture, _, _ = synthetic.draw_picture(0, 0, runtime.image_size)
    batch = picture[None], np.array([runtime.image_size], np.int32)
    expected = keras_runtime.KerasRuntime(weights, image_size=image_size).detect(*batch)
    difference = float(np.abs(runtime.detect(*batch)["scores"] - expected["scores"]).max())
    if difference > _LARGEST_DIFFERENCE:
        raise UserError(f"`{weights}`: the graph's scores differ from Keras's by {difference:.1e}; nothing is written.")
    return difference
