"""What runs a model: batch -> Detections.

Every runtime answers the same from the same weights, up to rounding; they differ in where they run and how fast.
"""

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from efficientdet import backend
from efficientdet.config import Depthwise, PostprocessConfig, Precision, Resize, RuntimeName, Switch
from efficientdet.structures import Category, Detections, RawPredictions


class Runtime(Protocol):
    """Weights, loaded and compiled: images in, detections out."""

    categories: tuple[Category, ...]
    image_size: tuple[int, int]
    """Height and width of the network input, px."""
    resize: Resize
    """How a picture is resampled to it."""
    anchors: np.ndarray
    """float32[A, 4], yxyx px."""

    def detect(self, images: np.ndarray, valid_size: np.ndarray) -> Detections:
        """Detects in uint8[B, H, W, 3], letterboxed, with int32[B, 2] the size of the picture inside, px."""
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
    depthwise: Depthwise = "convolution",
) -> Runtime:
    """Loads weights into the runtime asked for.

    Args:
        location: weights file, folder of a run, or a published name such as `coco-d0`; for OpenVINO also an export.
        runtime: auto: the fastest that is installed for this device: OpenVINO on a CPU, else Keras.
        postprocess: limits and thresholds; None: those of the run that the weights come from.
        image_size: height and width of the network input, px; None: what the weights were trained with.
        precision: of the arithmetic inside the network.
        xla: of Keras's runtime.
        depthwise: of Keras's runtime, how depthwise convolutions are computed.

    Raises:
        UserError: the weights cannot be used, or the runtime is not installed.
    """
    knobs: dict[str, Any] = {"postprocess": postprocess, "image_size": image_size, "precision": precision}
    name = _best(xla) if runtime == "auto" and Path(location).suffix != ".xml" else runtime
    if name == "keras":
        from efficientdet.runtimes.keras import KerasRuntime

        return KerasRuntime(location, xla=xla, depthwise=depthwise, **knobs)
    from efficientdet.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime(location, **knobs)


def _best(xla: Switch) -> RuntimeName:
    """Names the fastest runtime; a wish for XLA is one for Keras. Weights are converted on TensorFlow."""
    if importlib.util.find_spec("openvino") is None or xla == "on" or backend.running() != "tensorflow":
        return "keras"
    import tensorflow as tf

    return "keras" if tf.config.list_physical_devices("GPU") else "openvino"
