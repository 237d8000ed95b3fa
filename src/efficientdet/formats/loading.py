"""Loads weights or an export into a runtime, which turns batches into Detections.

From the same weights, all runtimes return the same results up to rounding; they differ in hardware and speed.
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
    """How images are resampled to that size."""
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
        """Runs only the network, without post-processing."""
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
    """Loads weights into the requested runtime.

    Args:
        location: weights file, run folder, published name such as `coco-d0`, or export (its folder or its graph).
        runtime: runtime for weights. auto picks the fastest one installed for this device: OpenVINO on a CPU, else
            Keras. An export always runs in the runtime that it was written for.
        postprocess: limits and thresholds; None means those of the run that the weights come from.
        image_size: height and width of the network input, px; None means what the weights were trained with.
        precision: precision of the network's arithmetic; an export has its own, except for OpenVINO.
        xla: for Keras's runtime, whether to compile with XLA.
        depthwise: for Keras's runtime, how to compute depthwise convolutions.

    Raises:
        UserError: the weights cannot be used, or the runtime is not installed.
    """
    if not isinstance(location, str | os.PathLike):
        raise UserError(
            f"`weights` is of type {type(location).__name__}; expected the path of a weights file, run or export, or a "
            "published name such as coco-d0."
        )
    knobs: dict[str, Any] = {"postprocess": postprocess, "image_size": image_size, "precision": precision}
    if manifest.is_export(location):
        if xla == "on":
            raise UserError(f"`xla` is on, but `{location}` is an export, which has its own runtime; omit `--xla`.")
        return _load_export(location, runtime, knobs)
    name = _best(xla) if runtime == "auto" else runtime
    if name == "keras":
        backend.choose()
        from efficientdet.formats.keras import KerasRuntime

        return KerasRuntime(location, xla=xla, depthwise=depthwise, **knobs)
    from efficientdet.formats.openvino_runtime import OpenVinoRuntime

    return OpenVinoRuntime(location, **knobs)


def _load_export(location: str | Path, runtime: RuntimeName, knobs: dict[str, Any]) -> Runtime:
    """Loads an export into the runtime that it was written for."""
    _, found = manifest.read(location)
    if runtime not in ("auto", found.target):
        raise UserError(f"`runtime` is {runtime}, but `{location}` is an export for {found.target}; omit `--runtime`.")
    if found.target == "openvino":
        from efficientdet.formats.openvino_runtime import OpenVinoRuntime

        return OpenVinoRuntime(location, **knobs)
    from efficientdet.formats.exported import ExportRuntime

    if (precision := knobs.pop("precision")) not in ("float32", "tf32"):
        raise UserError(
            f"`precision` is {precision}, but `{location}` was exported with {found.precision}; omit `--precision`."
        )
    return ExportRuntime(location, **knobs)


def _best(xla: Switch) -> RuntimeName:
    """Returns the fastest runtime. `--xla on` implies Keras; OpenVINO needs TensorFlow to convert weights."""
    if importlib.util.find_spec("openvino") is None or xla == "on" or backend.prefer() != "tensorflow":
        return "keras"
    if not backend.may_have_gpu():
        return "openvino"
    backend.choose()
    import tensorflow as tf

    return "keras" if tf.config.list_physical_devices("GPU") else "openvino"
