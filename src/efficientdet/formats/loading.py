"""What runs a model: batch -> Detections.

Every runtime answers the same from the same weights, up to rounding; they differ in where they run and how fast.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from efficientdet import backend
from efficientdet.config import Depthwise, PostprocessConfig, Precision, Resize, RuntimeName, Switch
from efficientdet.errors import UserError
from efficientdet.formats import manifest
from efficientdet.structures import Category, Detections, RawPredictions

if TYPE_CHECKING:
    import numpy as np


class Runtime(Protocol):
    """Weights, loaded and compiled: images in, detections out."""

    categories: tuple[Category, ...]
    image_size: tuple[int, int]
    """Height and width of the network input, px."""
    resize: Resize
    """How an image is resampled to it."""
    anchors: np.ndarray
    """float32[A, 4], yxyx px."""

    def detect(self, images: np.ndarray, valid_size: np.ndarray) -> Detections:
        """Detects.

        Args:
            images: uint8[B, H, W, 3], letterboxed.
            valid_size: int32[B, 2], height and width of the image inside, px.

        Returns:
            Detections of NumPy arrays, px of the network input.
        """
        ...

    def predict(self, images: np.ndarray, valid_size: np.ndarray) -> RawPredictions:
        """Runs the network alone."""
        ...


def load_runtime(
    location: str | Path,
    *,
    runtime: RuntimeName = "auto",
    postprocess: PostprocessConfig | None = None,
    image_size: tuple[int, int] | None = None,
    precision: Precision = "float32",
    xla: Switch = "auto",
    depthwise: Depthwise = "auto",
) -> Runtime:
    """Loads weights into the runtime asked for.

    Args:
        location: weights file, folder of a run, a published name such as `coco-d0`, or an export (its folder, or the
            graph in it).
        runtime: of weights. auto: the fastest that is installed for this device: OpenVINO on a CPU, else Keras. An
            export runs in the program that it was written for.
        postprocess: limits and thresholds; None: those of the run that the weights come from.
        image_size: height and width of the network input, px; None: what the weights were trained with.
        precision: of the arithmetic inside the network; an export has its own, but for OpenVINO's.
        xla: of Keras's runtime.
        depthwise: of Keras's runtime, how depthwise convolutions are computed.

    Raises:
        UserError: the weights cannot be used, or the runtime is not installed.
    """
    if not isinstance(location, str | os.PathLike):
        raise UserError(
            f"`weights` is of type {type(location).__name__}; expected the path of weights, of a run or of an export, "
            "or a published name such as coco-d0."
        )
    knobs: dict[str, Any] = {"postprocess": postprocess, "image_size": image_size, "precision": precision}
    if manifest.is_export(location):
        if xla == "on":
            raise UserError(f"`xla` is on, but `{location}` is an export, which has its own program; leave it out.")
        return _load_export(location, runtime, knobs)
    name = _best(xla) if runtime == "auto" else runtime
    if name == "keras":
        backend.choose()
        from efficientdet.formats.keras import KerasRuntime

        return KerasRuntime(location, xla=xla, depthwise=depthwise, **knobs)
    from efficientdet.formats.openvino_runtime import OpenVinoRuntime

    return OpenVinoRuntime(location, **knobs)


def _load_export(location: str | Path, runtime: RuntimeName, knobs: dict[str, Any]) -> Runtime:
    """Loads an export into the program that it was written for."""
    _, found = manifest.read(location)
    if runtime not in ("auto", found.target):
        raise UserError(f"`runtime` is {runtime}, but `{location}` is an export for {found.target}; leave it out.")
    if found.target == "openvino":
        from efficientdet.formats.openvino_runtime import OpenVinoRuntime

        return OpenVinoRuntime(location, **knobs)
    from efficientdet.formats.exported import ExportRuntime

    if (precision := knobs.pop("precision")) not in ("float32", "tf32"):
        raise UserError(f"`precision` is {precision}, but `{location}` has its own, {found.precision}; leave it out.")
    return ExportRuntime(location, **knobs)


def _best(xla: Switch) -> RuntimeName:
    """Names the fastest runtime; a wish for XLA is one for Keras. Weights are converted on TensorFlow."""
    if importlib.util.find_spec("openvino") is None or xla == "on" or backend.prefer() != "tensorflow":
        return "keras"
    if not backend.may_have_gpu():
        return "openvino"
    backend.choose()
    import tensorflow as tf

    return "keras" if tf.config.list_physical_devices("GPU") else "openvino"
