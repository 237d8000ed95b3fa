"""Runs an export: its graph in the runtime it was written for, with suppression in the graph or on the host.

Graphs output either detections, or raw predictions and each anchor's best logit, which `kernels/host_postprocess.py`
turns into detections. OpenVINO exports have a separate runtime, which processes several images at a time.
"""

from pathlib import Path

import numpy as np

from efficientdet.config import PostprocessConfig, Resize
from efficientdet.formats import manifest as manifests
from efficientdet.formats.manifest import Manifest
from efficientdet.structures import Category, Detections, RawPredictions


class ExportRuntime:
    """A verified graph of SavedModel, ONNX or LiteRT: images in, detections out; one call at a time."""

    def __init__(
        self,
        location: str | Path,
        *,
        postprocess: PostprocessConfig | None = None,
        image_size: tuple[int, int] | None = None,
        num_threads: int = 0,
    ):
        """Loads an export.

        Args:
            location: its folder, or the graph in it.
            postprocess: limits and thresholds; None means the export's. An export of detections allows no others.
            image_size: None, or the size of the export.
            num_threads: number of CPU threads; 0 means all. TensorFlow ignores it.

        Raises:
            UserError: the export is damaged or unsafe, cannot run here, or doesn't match the arguments.
        """
        from efficientdet.model import anchors

        self.path, self.manifest = manifests.read(location)
        manifests.check_wishes(self.path, self.manifest, postprocess, image_size)
        self.categories: tuple[Category, ...] = self.manifest.categories
        self.image_size: tuple[int, int] = self.manifest.model.image_size
        self.resize: Resize = self.manifest.model.resize
        self.anchors = anchors.anchor_boxes(self.manifest.model)
        self._postprocess = postprocess or self.manifest.postprocess
        self._program = _open(self.path, self.manifest, num_threads)

    def detect(self, images: np.ndarray, valid_size: np.ndarray) -> Detections:
        """Detects; see `loading.Runtime`."""
        from efficientdet.kernels import host_postprocess

        found = self._run(images, valid_size)
        if self.manifest.answer == "detections":
            return {name: found[name] for name in manifests.OUTPUTS["detections"]}  # type: ignore[return-value]
        logits, deltas, best = (found[name] for name in manifests.OUTPUTS["raw"])
        return host_postprocess.detect(logits, deltas, best, self.anchors, self._postprocess)

    def predict(self, images: np.ndarray, valid_size: np.ndarray) -> RawPredictions:
        """Runs only the network, without post-processing; otherwise like `detect`.

        Raises:
            UserError: the graph includes the suppression.
        """
        manifests.require_raw(self.path, self.manifest)
        found = self._run(images, valid_size)
        return {"class_logits": found["class_logits"], "box_deltas": found["box_deltas"]}

    def _run(self, images: np.ndarray, valid_size: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the graph; splits the batch if the graph has a fixed batch size, and pads the last part."""
        size = self.manifest.batch_size
        if size in (0, len(images)):
            return self._program(images, valid_size)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size], valid_size[start : start + size]
            missing = size - len(part[0])
            filled = (np.concatenate([array, array[-1:].repeat(missing, axis=0)]) for array in part)
            found = self._program(*filled)
            parts.append({name: array[: size - missing] for name, array in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _open(folder: Path, manifest: Manifest, num_threads: int) -> manifests.Program:
    """Opens a graph in the runtime of its format."""
    path = folder / manifests.GRAPHS[manifest.target]
    if manifest.target == "saved_model":
        from efficientdet.formats import saved_model

        return saved_model.open_program(folder, manifest)
    if manifest.target == "onnx":
        from efficientdet.formats import onnx

        return onnx.open_program(path, manifest, num_threads)
    from efficientdet.formats import litert

    return litert.open_program(path, manifest, num_threads)
