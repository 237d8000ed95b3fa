"""Runs the network with OpenVINO on a CPU, with post-processing on the host.

The graph outputs raw predictions and each anchor's best logit. A suppression loop inside the graph would take as long
as the network; `kernels/host_postprocess.py` takes a twentieth of that. An export may still include it.

A single image uses all cores, which synchronize after every layer. In a batch, each core processes its own image
without waiting, and images are post-processed while others are still in the network.

Weights are converted once, with TensorFlow, and cached in the form of an export; exports need no conversion. Compiled
graphs, which take seconds to build, are cached too.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.config import PostprocessConfig, Precision, Resize
from efficientdet.formats import manifest as manifests
from efficientdet.formats import openvino, openvino_cache
from efficientdet.structures import Category, Detections, RawPredictions

_PRECISIONS = {"float32": "f32", "tf32": "f32", "mixed_bfloat16": "bf16", "mixed_float16": "f16"}


class OpenVinoRuntime:
    """Weights, converted and compiled: images in, detections out; one call at a time."""

    def __init__(
        self,
        location: str | Path,
        *,
        postprocess: PostprocessConfig | None = None,
        image_size: tuple[int, int] | None = None,
        precision: Precision = "float32",
        num_threads: int = 0,
    ):
        """Loads weights or an export.

        Args:
            location: weights file, run folder, published name such as `coco-d0`, or export.
            postprocess: limits and thresholds; None means those of the run that the weights come from.
            image_size: height and width of the network input, px; None means what the weights were trained with.
            precision: precision of the arithmetic; if the CPU doesn't support it, float32 is used, with a warning.
            num_threads: number of CPU threads; 0 means all.

        Raises:
            UserError: OpenVINO is not installed, or the weights or export cannot be used.
        """
        openvino.import_openvino()

        from efficientdet.model import anchors

        found = location if manifests.is_export(location) else openvino_cache.find_converted(location, image_size)
        self.path, self.manifest = manifests.read(found)
        manifests.check_wishes(self.path, self.manifest, postprocess, image_size)
        self.categories: tuple[Category, ...] = self.manifest.categories
        self.image_size: tuple[int, int] = self.manifest.model.image_size
        self.resize: Resize = self.manifest.model.resize
        self.anchors = anchors.anchor_boxes(self.manifest.model)
        self._postprocess = postprocess or self.manifest.postprocess
        self._core = openvino.find_core()
        self._model = openvino.read(self._core, self.path / openvino.GRAPH, self.manifest)
        self._properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],  # OpenVINO's default is bfloat16 if the CPU supports it
        }
        if num_threads:
            self._properties["INFERENCE_NUM_THREADS"] = num_threads
        if kept := openvino_cache.find_compiled(self.path / openvino.GRAPH):
            self._properties["CACHE_DIR"] = str(kept)
        self._warn_if_emulated(precision)
        self._compiled: dict[str, Any] = {}
        self._requests: dict[str, list[Any]] = {}

    def detect(self, images: np.ndarray, valid_size: np.ndarray) -> Detections:
        """Detects; see `loading.Runtime`. The first image and the first batch take seconds longer."""
        from efficientdet.kernels import host_postprocess

        found: list[Any] = []
        for outputs in self._run(images, valid_size):
            if self.manifest.answer == "raw":
                logits, deltas, best = outputs
                found.append(host_postprocess.detect(logits, deltas, best, self.anchors, self._postprocess))
            else:
                names = manifests.OUTPUTS["detections"]
                found.append({name: array.copy() for name, array in zip(names, outputs, strict=True)})
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}  # type: ignore[return-value]

    def predict(self, images: np.ndarray, valid_size: np.ndarray) -> RawPredictions:
        """Runs only the network; otherwise like `detect`. One image returns views that the next call overwrites."""
        manifests.require_raw(self.path, self.manifest)
        parts = list(self._run(images, valid_size))
        if len(parts) == 1:  # a copy would take a tenth of the network's time
            return {"class_logits": parts[0][0], "box_deltas": parts[0][1]}
        class_logits, box_deltas, _ = (np.concatenate(part) for part in zip(*parts, strict=True))
        return {"class_logits": class_logits, "box_deltas": box_deltas}

    def _run(self, images: np.ndarray, valid_size: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """Runs the graph; yields views of each call's outputs, in order, which the next run overwrites.

        A graph with a fixed batch size gets that many images per call; the last batch is padded.
        """
        size = self.manifest.batch_size or 1
        starts = range(0, len(images), size)
        requests = self._requests_for(len(starts))
        for start, request in zip(starts, requests, strict=True):
            inputs = {"images": images[start : start + size], "valid_size": valid_size[start : start + size]}
            if missing := size - len(inputs["images"]):
                inputs = {name: np.concatenate([a, a[-1:].repeat(missing, axis=0)]) for name, a in inputs.items()}
            request.start_async(inputs, share_inputs=True)
        names = manifests.OUTPUTS[self.manifest.answer]
        for start, request in zip(starts, requests, strict=True):
            request.wait()
            yield tuple(request.get_tensor(name).data[: len(images) - start] for name in names)

    def _requests_for(self, count: int) -> list[Any]:
        """Returns `count` parallel requests; the graph is compiled separately for a single call and for several."""
        hint = "LATENCY" if count == 1 else "THROUGHPUT"
        requests = self._requests.setdefault(hint, [])
        if not requests:
            model = self._model
            if not self.manifest.batch_size:
                model = model.clone()
                model.reshape({"images": [1, *self.image_size, 3], "valid_size": [1, 2]})  # static shapes are faster
            properties = {**self._properties, "PERFORMANCE_HINT": hint}
            self._compiled[hint] = self._core.compile_model(model, "CPU", properties)
        requests += [self._compiled[hint].create_infer_request() for _ in range(count - len(requests))]
        return requests[:count]

    def _warn_if_emulated(self, precision: Precision) -> None:
        """Warns if the CPU doesn't support the precision, since OpenVINO then silently uses float32."""
        if not has_arithmetic(precision):
            warnings.warn(
                f"`precision` is {precision}, which this CPU does not support; using float32 instead.",
                stacklevel=3,
            )


def has_arithmetic(precision: Precision) -> bool:
    """Returns whether OpenVINO reports that this CPU supports a precision."""
    name = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}[_PRECISIONS[precision]]
    return name in openvino.find_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
