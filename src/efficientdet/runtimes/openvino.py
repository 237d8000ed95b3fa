"""OpenVINO as a runtime: the network on a CPU in a graph of OpenVINO's, post-processing on the host.

The graph ends with the raw predictions and each anchor's best logit. A loop of suppression inside of it takes as long
as the network; `model/host_postprocess.py` takes a twentieth.

One picture has all cores, which wait for each other after each layer. Of a batch every core takes a picture of its own
and waits for nobody, and pictures are post-processed while others are in the network.

Weights are converted once, with TensorFlow, and kept in the cache. An export (exporters/openvino.py) needs none.
"""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import efficientdet
from efficientdet import backend, files, limits, web
from efficientdet import config as configs
from efficientdet.config import PostprocessConfig, Precision, Resize
from efficientdet.errors import UserError
from efficientdet.structures import Category, Detections, RawPredictions

SUFFIX = ".xml"
FORMAT = "efficientdet-keras openvino 1"

_PRECISIONS = {"float32": "f32", "tf32": "f32", "mixed_bfloat16": "bf16", "mixed_float16": "f16"}
_OUTPUTS = ("class_logits", "box_deltas", "best_logits")
_KEPT = 16  # graphs in the cache
_FACTS = ["efficientdet"]  # where in the graph's own information


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
            location: weights file, folder of a run, a published name such as `coco-d0`, or the .xml of an export.
            postprocess: limits and thresholds; None: those of the run that the weights come from.
            image_size: height and width of the network input, px; None: what the weights were trained with.
            precision: of the arithmetic; what the processor has no instructions for is computed in float32, and said.
            num_threads: processor threads to use; 0: all.

        Raises:
            UserError: OpenVINO is not installed, or weights or export cannot be used.
        """
        openvino = import_openvino()

        from efficientdet.model import anchors

        self.path = Path(location) if Path(location).suffix == SUFFIX else find_converted(location, image_size)
        self._core = openvino.Core()
        self._model = _read(self._core, self.path)
        model, self.categories, trained_postprocess = _read_facts(self._model, self.path)
        self.image_size: tuple[int, int] = model.image_size
        if image_size not in (None, self.image_size):
            raise UserError(f"`image_size` is {image_size}, but `{self.path}` was exported for {self.image_size}.")
        self.resize: Resize = model.resize
        self._postprocess = postprocess or trained_postprocess
        self.anchors = anchors.anchor_boxes(model, self.image_size)
        self._properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],  # its own choice is bfloat16 where there is hardware
        }
        if num_threads:
            self._properties["INFERENCE_NUM_THREADS"] = num_threads
        self._warn_if_emulated(precision)
        self._compiled: dict[str, Any] = {}
        self._requests: dict[str, list[Any]] = {}

    def detect(self, images: np.ndarray, valid_size: np.ndarray) -> Detections:
        """Detects.

        Args:
            images: uint8[B, H, W, 3], letterboxed. The first picture takes seconds more, and the first batch.
            valid_size: int32[B, 2], height and width of the picture inside, px.

        Returns:
            Detections of NumPy arrays, px of the network input.
        """
        from efficientdet.model import host_postprocess

        found = [
            host_postprocess.detect(class_logits, box_deltas, best_logits, self.anchors, self._postprocess)
            for class_logits, box_deltas, best_logits in self._run(images, valid_size)
        ]
        names = ("boxes", "labels", "scores", "num_detections")
        return {name: np.concatenate([one[name] for one in found]) for name in names}  # type: ignore[return-value, literal-required]

    def predict(self, images: np.ndarray, valid_size: np.ndarray) -> RawPredictions:
        """Runs the network alone; otherwise as `detect`. Arrays of one picture are views that the next call changes."""
        parts = list(self._run(images, valid_size))
        if len(parts) == 1:  # a copy would take a tenth of the network's time
            return {"class_logits": parts[0][0], "box_deltas": parts[0][1]}
        class_logits, box_deltas, _ = (np.concatenate(part) for part in zip(*parts, strict=True))
        return {"class_logits": class_logits, "box_deltas": box_deltas}

    def _run(self, images: np.ndarray, valid_size: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Runs the graph: of each picture, in their order, views of its outputs, which the next call writes into."""
        requests = self._requests_for(len(images))
        for number, request in enumerate(requests):
            row = slice(number, number + 1)
            request.start_async({"images": images[row], "valid_size": valid_size[row]}, share_inputs=True)
        for request in requests:
            request.wait()
            class_logits, box_deltas, best_logits = (request.get_tensor(name).data for name in _OUTPUTS)
            yield class_logits, box_deltas, best_logits

    def _requests_for(self, count: int) -> list[Any]:
        """Makes room for `count` pictures at once; the graph is compiled for one at a time, and for several."""
        hint = "LATENCY" if count == 1 else "THROUGHPUT"
        requests = self._requests.setdefault(hint, [])
        if not requests:
            model = self._model.clone()
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
    return name in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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
        The .xml; the values are beside it.
    """
    from efficientdet.model import pretrained, weights

    path = weights.find(pretrained.find_weights(location))
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    versions = [_fingerprint_of_network(), importlib.metadata.version("openvino"), FORMAT]
    key = hashlib.sha256(json.dumps([content, image_size, versions]).encode()).hexdigest()[:32]
    folder = web.cache_dir() / "openvino"
    target = folder / key / f"model{SUFFIX}"
    if not target.is_file():
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with files.one_at_a_time(folder / key):
                if not target.is_file():
                    _write_folder(target.parent, convert(weights.load(path), image_size))
                    _forget_oldest(folder)
    return target


def _fingerprint_of_network() -> str:
    """Hashes the sources that say what a network computes."""
    sources = sorted((Path(efficientdet.__file__).parent / "model").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _forget_oldest(folder: Path) -> None:
    """Removes all but the newest graphs of a cache."""
    graphs = sorted(folder.glob(f"*/model{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    for graph in graphs[:-_KEPT]:
        shutil.rmtree(graph.parent, ignore_errors=True)


def _write_folder(folder: Path, model: Any) -> None:
    """Writes a graph into a folder, aside and then renamed."""
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        write(temporary / f"model{SUFFIX}", model)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(path: Path, model: Any) -> None:
    """Writes a graph, and its values as float32 into a .bin beside it."""
    import_openvino().save_model(model, path, compress_to_fp16=False)


def convert(loaded: Any, image_size: tuple[int, int] | None = None) -> Any:
    """Turns weights into a graph of OpenVINO's, for any batch size.

    Args:
        loaded: a `weights.Weights`.
        image_size: height and width of the network input, px; None: what the weights were trained with.

    Returns:
        openvino.Model: images uint8[B, H, W, 3], valid_size int32[B, 2] -> class_logits float32[B, A, C],
        box_deltas float32[B, A, 4], best_logits float32[B, A]. Model, classes and limits are in its own information.

    Raises:
        UserError: Keras does not run on TensorFlow, or the size is impossible.
    """
    openvino = import_openvino()
    if backend.running() != "tensorflow":
        raise UserError("`runtime` is openvino, for which weights are converted on TensorFlow; `--backend tensorflow`.")
    config = dataclasses.replace(loaded.model, image_size=image_size or loaded.model.image_size)
    limits.check_image_size(config, "image_size")
    function = _trace(config, loaded)
    converted = openvino.convert_model(function)
    # Activations with a gradient of their own leave further outputs behind.
    sources = [converted.output(tensor.name).node.input_value(0) for tensor in function.outputs]
    model = openvino.Model(sources, converted.get_parameters(), config.name)
    for output, name in zip(model.outputs, _OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    facts = {
        "format": FORMAT,
        "version": efficientdet.__version__,
        "model": configs.to_dict(config),
        "categories": [dataclasses.asdict(category) for category in loaded.categories],
        "postprocess": configs.to_dict(loaded.postprocess),
    }
    model.set_rt_info(json.dumps(facts), _FACTS)
    return model


def _trace(config: configs.ModelConfig, loaded: Any) -> Any:
    """Traces the network as a function of TensorFlow, its weights inside."""
    import tensorflow as tf
    from keras import ops

    from efficientdet.model import weights
    from efficientdet.model.efficientdet import EfficientDet

    network = EfficientDet(config)
    weights.assign(network, loaded)
    signature = [
        tf.TensorSpec([None, *config.image_size, 3], tf.uint8, name="images"),
        tf.TensorSpec([None, 2], tf.int32, name="valid_size"),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def run(images: Any, valid_size: Any) -> tuple[Any, ...]:
        raw = network({"images": images, "valid_size": valid_size}, training=False)
        return raw["class_logits"], raw["box_deltas"], ops.max(raw["class_logits"], axis=-1)

    return run.get_concrete_function()


def _read(core: Any, path: Path) -> Any:
    """Reads a graph.

    Raises:
        UserError: it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"`{path}` does not exist.")
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise UserError(f"`{path}` is no graph that OpenVINO reads: {error}.") from error


def _read_facts(model: Any, path: Path) -> tuple[configs.ModelConfig, tuple[Category, ...], PostprocessConfig]:
    """Reads what `convert` noted in a graph.

    Raises:
        UserError: the graph is not one of ours.
    """
    facts = json.loads(model.get_rt_info(_FACTS).astype(str)) if model.has_rt_info(_FACTS) else {}
    if facts.get("format") != FORMAT:
        raise UserError(f"`{path}` is no export of this program, or of another version; export the weights again.")
    return (
        configs.from_dict(configs.ModelConfig, facts["model"], f"{path}: model"),
        tuple(configs.from_dict(Category, category, f"{path}: categories") for category in facts["categories"]),
        configs.from_dict(PostprocessConfig, facts["postprocess"], f"{path}: postprocess"),
    )
