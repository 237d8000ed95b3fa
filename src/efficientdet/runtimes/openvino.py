"""OpenVINO as a runtime: the network on a CPU in a graph of OpenVINO's, post-processing on the host.

The graph ends with the raw predictions and each anchor's best logit. A loop of suppression inside it takes as long
as the network; `model/host_postprocess.py` takes a twentieth. An export may have it all the same.

One image has all cores, which wait for each other after each layer. Of a batch every core takes an image of its own
and waits for nobody, and images are post-processed while others are in the network.

Weights are converted once, with TensorFlow, and kept in the cache, in the form of an export. An export needs none. What
OpenVINO compiles of a graph, which takes seconds, is kept there too.

OpenVINO's format can only compute: operations of other makers are native code that has to be loaded separately, which
nothing here does. A graph that has some is refused.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import efficientdet
from efficientdet import backend
from efficientdet.config import Answer, PostprocessConfig, Precision, Resize
from efficientdet.errors import UserError
from efficientdet.runtimes import exported
from efficientdet.runtimes import manifest as manifests
from efficientdet.runtimes.manifest import Manifest
from efficientdet.storage import files, web
from efficientdet.structures import Category, Detections, RawPredictions

GRAPH = manifests.GRAPHS["openvino"]

_PRECISIONS = {"float32": "f32", "tf32": "f32", "mixed_bfloat16": "bf16", "mixed_float16": "f16"}
_KEPT = 16  # graphs in the cache


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
            location: weights file, folder of a run, a published name such as `coco-d0`, or an export.
            postprocess: limits and thresholds; None: those of the run that the weights come from.
            image_size: height and width of the network input, px; None: what the weights were trained with.
            precision: of the arithmetic; what the processor has no instructions for is computed in float32, and said.
            num_threads: processor threads to use; 0: all.

        Raises:
            UserError: OpenVINO is not installed, or weights or export cannot be used.
        """
        import_openvino()

        from efficientdet.model import anchors

        found = location if manifests.is_export(location) else find_converted(location, image_size)
        self.path, self.manifest = manifests.read(found)
        exported.check_wishes(self.path, self.manifest, postprocess, image_size)
        self.categories: tuple[Category, ...] = self.manifest.categories
        self.image_size: tuple[int, int] = self.manifest.model.image_size
        self.resize: Resize = self.manifest.model.resize
        self.anchors = anchors.anchor_boxes(self.manifest.model)
        self._postprocess = postprocess or self.manifest.postprocess
        self._core = find_core()
        self._model = _read(self._core, self.path / GRAPH, self.manifest)
        self._properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],  # its own choice is bfloat16 where there is hardware
        }
        if num_threads:
            self._properties["INFERENCE_NUM_THREADS"] = num_threads
        if kept := _find_compiled(self.path / GRAPH):
            self._properties["CACHE_DIR"] = str(kept)
        self._warn_if_emulated(precision)
        self._compiled: dict[str, Any] = {}
        self._requests: dict[str, list[Any]] = {}

    def detect(self, images: np.ndarray, valid_size: np.ndarray) -> Detections:
        """Detects.

        Args:
            images: uint8[B, H, W, 3], letterboxed. The first image takes seconds more, and the first batch.
            valid_size: int32[B, 2], height and width of the image inside, px.

        Returns:
            Detections of NumPy arrays, px of the network input.
        """
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
        """Runs the network alone; otherwise as `detect`. Arrays of one image are views that the next call changes."""
        exported.require_raw(self.path, self.manifest)
        parts = list(self._run(images, valid_size))
        if len(parts) == 1:  # a copy would take a tenth of the network's time
            return {"class_logits": parts[0][0], "box_deltas": parts[0][1]}
        class_logits, box_deltas, _ = (np.concatenate(part) for part in zip(*parts, strict=True))
        return {"class_logits": class_logits, "box_deltas": box_deltas}

    def _run(self, images: np.ndarray, valid_size: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """Runs the graph: of each image, in their order, views of its outputs, which the next call writes into.

        Where the graph takes a certain number of images, so many at once; the last ones are filled up.
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
        """Makes room for `count` calls at once; the graph is compiled for one at a time, and for several."""
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
        """Warns if the processor has no arithmetic of that precision: OpenVINO then takes float32 without a word."""
        if not has_arithmetic(precision):
            warnings.warn(
                f"`precision` is {precision}, for which this processor has no instructions; float32 is used.",
                stacklevel=3,
            )


def has_arithmetic(precision: Precision) -> bool:
    """Tells whether this processor has instructions of a precision, as OpenVINO sees it."""
    name = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}[_PRECISIONS[precision]]
    return name in find_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def find_core() -> Any:
    """Makes OpenVINO's core, once for the process, and never lets it go.

    Its plugin gives the thread that loads it another stack for signals. Unloaded by another thread, it frees that stack
    and leaves it in use: the next signal, Ctrl-C for one, is a segmentation fault (OpenVINO 2026.4).

    Raises:
        UserError: OpenVINO is not installed.
    """
    return import_openvino().Core()


def import_openvino() -> Any:
    """Imports OpenVINO.

    Its import and its converter report their use to Google Analytics unless a package for that is missing (2026.4); a
    person who detects cats has not agreed to that, so the package is hidden.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("openvino") is None:
        raise UserError("`runtime` is openvino, which is not installed; `pip install 'efficientdet-keras[openvino]'`.")
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def find_converted(location: str | Path, image_size: tuple[int, int] | None = None) -> Path:
    """Finds weights converted in the cache, or converts them.

    Args:
        location: weights file, folder of a run, or a published name.
        image_size: height and width of the network input, px; None: what the weights were trained with.

    Returns:
        The folder of an export.
    """
    from efficientdet.checkpoints import pretrained
    from efficientdet.model import weights

    path = weights.find(pretrained.find_weights(location))
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    versions = [_fingerprint_of_network(), importlib.metadata.version("openvino"), manifests.FORMAT]
    key = hashlib.sha256(json.dumps([content, image_size, versions]).encode()).hexdigest()[:32]
    folder = web.cache_dir() / "openvino"
    target = folder / key
    if not (target / manifests.FILE).is_file():
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with files.one_at_a_time(target):
                if not (target / manifests.FILE).is_file():
                    _write_folder(target, weights.load(path), image_size)
                    _forget_oldest(folder)
    return target


def _fingerprint_of_network() -> str:
    """Hashes the sources that say what a network computes."""
    sources = sorted((Path(efficientdet.__file__).parent / "model").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _find_compiled(graph: Path) -> Path | None:
    """Finds the folder for what OpenVINO compiles of a graph; none where the cache cannot be written.

    OpenVINO itself tells graphs, properties, processors and versions apart, and compiles again what is damaged. Each
    graph has a folder by its content all the same, so that the oldest can go.
    """
    content = b"".join(path.read_bytes() for path in (graph, graph.with_suffix(".bin")) if path.exists())
    folder = web.cache_dir() / "openvino-compiled" / hashlib.sha256(content).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        _forget_oldest(folder.parent, "*")
    except OSError:
        return None
    return folder


def _forget_oldest(folder: Path, pattern: str = f"*/{GRAPH}") -> None:
    """Removes all but the newest folders of a cache: those that match, or hold what matches."""
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    for path in found[:-_KEPT]:
        shutil.rmtree(path if path.is_dir() else path.parent, ignore_errors=True)


def _write_folder(folder: Path, loaded: Any, image_size: tuple[int, int] | None) -> None:
    """Converts weights into a folder, aside and then renamed."""
    model = dataclasses.replace(loaded.model, image_size=image_size or loaded.model.image_size)
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        write(temporary / GRAPH, convert(loaded, image_size))
        manifests.write(
            temporary,
            Manifest(
                target="openvino",
                precision="float32",
                answer="raw",
                batch_size=0,
                has_letterbox=False,
                model=model,
                categories=loaded.categories,
                postprocess=loaded.postprocess,
            ),
        )
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(path: Path, model: Any, *, halve: bool = False) -> None:
    """Writes a graph, and its values as float32, or float16, into a .bin beside it."""
    import_openvino().save_model(model, path, compress_to_fp16=halve)


def convert(
    loaded: Any, image_size: tuple[int, int] | None = None, *, answer: Answer = "raw", batch_size: int = 0
) -> Any:
    """Turns weights into a graph of OpenVINO's.

    Args:
        loaded: a `weights.Weights`.
        image_size: height and width of the network input, px; None: what the weights were trained with.
        answer: what it ends with.
        batch_size: images a call; 0: any number.

    Returns:
        openvino.Model: images uint8[B, H, W, 3], valid_size int32[B, 2] -> what `manifest.OUTPUTS` names.

    Raises:
        UserError: Keras does not run on TensorFlow, or the size is impossible.
    """
    openvino = import_openvino()
    backend.choose()

    from efficientdet.model import tracing

    network = tracing.build(loaded, image_size)
    function = tracing.trace(network, loaded, answer=answer, batch_size=batch_size).get_concrete_function()
    converted = openvino.convert_model(function)
    # Activations with a gradient of their own leave further outputs behind.
    names = manifests.OUTPUTS[answer]
    sources = [converted.output(name).node.input_value(0) for name in names]
    model = openvino.Model(sources, converted.get_parameters(), network.config.name)
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    return model


def _read(core: Any, path: Path, manifest: Manifest) -> Any:
    """Reads a graph.

    Raises:
        UserError: it is not a graph, has operations of other makers, or is another than the manifest says.
    """
    _check(path)
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise UserError(f"`{path}` is not a graph that OpenVINO reads: {error}.") from error
    names = [name for value in (*model.inputs, *model.outputs) for name in sorted(value.get_names())[:1]]
    exported.check_outputs(path, manifest, names)
    return model


def _check(path: Path) -> None:
    """Raises a UserError for a file that is not a graph, or one with operations that OpenVINO does not have itself."""
    from defusedxml import DefusedXmlException, ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException) as error:
        raise UserError(f"`{path}` is not a graph of OpenVINO: {error}.") from error
    for layer in () if root is None else root.iter("layer"):
        if not re.fullmatch(r"opset\d+", layer.get("version", "")):
            kind = f"{layer.get('version', '')}.{layer.get('type', '')}"[:60]
            raise UserError(f"`{path}` has the custom operation `{kind}`, which is refused.")
