"""Runs weights in Keras: network and post-processing in one compiled graph, on the current backend and its device."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientdet import backend
from efficientdet import config as configs
from efficientdet.config import Depthwise, PostprocessConfig, Precision, Resize, Switch
from efficientdet.structures import Category, Detections, RawPredictions

if TYPE_CHECKING:
    from efficientdet.model.weights import Weights

_MOST_CONSTANTS = 16_000_000  # numbers; up to D3


class KerasRuntime:
    """Weights, loaded and compiled: images in, detections out."""

    def __init__(
        self,
        location: str | Path | Weights,
        *,
        postprocess: PostprocessConfig | None = None,
        image_size: tuple[int, int] | None = None,
        precision: Precision = "float32",
        xla: Switch = "auto",
        depthwise: Depthwise = "auto",
    ):
        """Loads weights.

        Args:
            location: weights file, run folder, published name such as `coco-d0`, or loaded weights.
            postprocess: limits and thresholds; None means those of the run that the weights come from.
            image_size: height and width of the network input, px; None means what the weights were trained with.
            precision: precision of the network's arithmetic.
            xla: auto, on or off.
            depthwise: how depthwise convolutions are computed.
        """
        from efficientdet.checkpoints import pretrained
        from efficientdet.kernels import choice
        from efficientdet.model import anchors, weights
        from efficientdet.model.efficientdet import EfficientDet

        if isinstance(location, weights.Weights):
            loaded = location
        else:
            loaded = weights.load(pretrained.find_weights(location))
        if image_size is not None:
            configs.check_image_size(dataclasses.replace(loaded.model, image_size=image_size), "image_size")
        self.path = loaded.path
        self.model = dataclasses.replace(loaded.model, image_size=image_size or loaded.model.image_size)
        self.categories: tuple[Category, ...] = loaded.categories
        self.image_size: tuple[int, int] = image_size or loaded.model.image_size
        self.resize: Resize = loaded.model.resize
        self._precision = precision
        policy, kernels = backend.use_precision(precision), choice.choose(depthwise)
        self._model = EfficientDet(loaded.model, precision=policy, kernels=kernels)
        weights.assign(self._model, loaded)
        self.anchors = anchors.anchor_boxes(loaded.model, self.image_size)
        values = (
            [variable.value for variable in self._model.trainable_variables],
            [variable.value for variable in self._model.non_trainable_variables],
        )
        # XLA folds expressions of constants, such as casting weights to 16 bits: half of all kernels on a GPU.
        self._values: tuple[Any, ...] = () if _are_constants(values) else values
        detect = detect_function(self._model, self.anchors, postprocess or loaded.postprocess)
        predict = predict_function(self._model)
        if not self._values:
            arrays = [[np.asarray(value) for value in part] for part in values]
            detect, predict = functools.partial(detect, *arrays), functools.partial(predict, *arrays)
        self._detect = backend.compile_function(detect, xla=xla)
        self._predict = backend.compile_function(predict, xla=xla)

    def detect(self, images: np.ndarray, valid_size: np.ndarray) -> Detections:
        """Detects, as `loading.Runtime` says."""
        return self._run(self._detect, images, valid_size)

    def predict(self, images: np.ndarray, valid_size: np.ndarray) -> RawPredictions:
        """Runs only the network, without post-processing; otherwise like `detect`."""
        return self._run(self._predict, images, valid_size)

    def place(self, images: np.ndarray, valid_size: np.ndarray) -> dict[str, Any]:
        """Copies a batch to the device."""
        from keras import ops

        return {"images": ops.convert_to_tensor(images), "valid_size": ops.convert_to_tensor(valid_size)}

    def detect_placed(self, inputs: dict[str, Any]) -> Detections:
        """Detects in a batch from `place` and waits for the result, which stays on the device."""
        found: Detections = self._call(self._detect, inputs)
        backend.wait_for(found)
        return found

    def predict_placed(self, inputs: dict[str, Any]) -> RawPredictions:
        """Runs only the network, without post-processing; otherwise like `detect_placed`."""
        found: RawPredictions = self._call(self._predict, inputs)
        backend.wait_for(found)
        return found

    def _run(self, function: Callable[..., Any], images: np.ndarray, valid_size: np.ndarray) -> Any:
        """Calls a compiled function with NumPy arrays and returns NumPy arrays."""
        from keras import ops

        found = self._call(function, self.place(images, valid_size))
        return {name: np.asarray(ops.convert_to_numpy(value)) for name, value in found.items()}

    def _call(self, function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """Calls a compiled function; a GPU may still be computing the result when it returns."""
        backend.use_precision(self._precision)  # several runtimes may differ; JAX would compile for the last one
        return function(*self._values, inputs)


def _are_constants(values: Any) -> bool:
    """Returns whether to compile weights into the program: with JAX on a GPU, unless they are too large to compile."""
    if backend.running() != "jax" or not backend.gpus():
        return False
    return sum(math.prod(value.shape) for part in values for value in part) <= _MOST_CONSTANTS


def predict_function(model: Any) -> Callable[..., RawPredictions]:
    """Makes the pure function (trainable, non_trainable, inputs) -> RawPredictions: only the network."""

    def predict(trainable: list[Any], non_trainable: list[Any], inputs: dict[str, Any]) -> RawPredictions:
        raw, _ = model.stateless_call(trainable, non_trainable, inputs, training=False)
        return raw

    return predict


def detect_function(model: Any, anchors: np.ndarray, config: PostprocessConfig) -> Callable[..., Detections]:
    """Makes the pure function (trainable, non_trainable, inputs) -> Detections: network and post-processing."""
    from efficientdet.model import postprocess

    predict = predict_function(model)

    def detect(trainable: list[Any], non_trainable: list[Any], inputs: dict[str, Any]) -> Detections:
        raw = predict(trainable, non_trainable, inputs)
        return postprocess.detect(raw, anchors, config, logits_dtype=model.dtype_policy.compute_dtype)

    return detect
