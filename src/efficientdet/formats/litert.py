"""LiteRT (TensorFlow Lite): one flat file for phones and embedded devices, run here on the CPU with XNNPACK.

float16: values are stored in 16 bits; arithmetic is float32 on a CPU, and float16 on a GPU that supports it.
int8: weights and activations have 8 bits; inputs and outputs are unchanged.

Only LiteRT's built-in operations are run; custom ones, including TensorFlow's, are refused.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientdet.errors import UserError
from efficientdet.formats.manifest import GRAPHS, Manifest, Program, check_outputs

if TYPE_CHECKING:
    from efficientdet.formats.calibration import Sample
    from efficientdet.model import weights

SIGNATURE = "serving_default"


def write(folder: Path, loaded: weights.Weights, manifest: Manifest, samples: Iterable[Sample]) -> None:
    """Writes model.tflite.

    Args:
        folder: an empty folder.
        loaded: the weights.
        manifest: what to write.
        samples: for int8, images whose activations are measured.
    """
    require()
    import tensorflow as tf

    from efficientdet.formats import tracing

    network = tracing.build(loaded, manifest.model.image_size)
    function = tracing.trace(network, loaded, answer=manifest.answer, batch_size=manifest.batch_size)
    module = tf.Module()
    module.variables_of_network = [variable.value for variable in network.variables]
    with tempfile.TemporaryDirectory() as temporary:
        tf.saved_model.save(module, temporary, signatures={SIGNATURE: function})
        converter = tf.lite.TFLiteConverter.from_saved_model(temporary, signature_keys=[SIGNATURE])
        if manifest.precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        if manifest.precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: _representatives(samples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter warns about its own interpreter
            content = converter.convert()
    (folder / GRAPHS["litert"]).write_bytes(content)


def _representatives(samples: Iterable[Sample]) -> Iterator[tuple[str, dict[str, Any]]]:
    for sample in samples:
        yield SIGNATURE, {"images": sample.images, "valid_size": sample.valid_size}


def require() -> None:
    """Raises a UserError if LiteRT is not installed."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UserError("LiteRT is not installed; run `pip install 'efficientdet-keras[litert]'`.")


def open_program(path: Path, manifest: Manifest, num_threads: int = 0) -> Program:
    """Opens a graph.

    Args:
        path: model.tflite.
        manifest: manifest that the graph must match.
        num_threads: number of CPU threads; 0 means all.

    Raises:
        UserError: LiteRT is not installed, or the graph is not valid, unsafe, or doesn't match the manifest.
    """
    require()
    from ai_edge_litert.interpreter import Interpreter

    content = path.read_bytes()
    _check(content, path)
    try:
        interpreter = Interpreter(model_content=content, num_threads=num_threads or os.cpu_count())
        signatures = interpreter.get_signature_list()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"`{path}` cannot be loaded by LiteRT: {error}.") from error
    if SIGNATURE not in signatures:
        raise UserError(f"`{path}` has no signature `{SIGNATURE}`; it was not exported by this program.")
    signature = signatures[SIGNATURE]
    check_outputs(path, manifest, [*signature["inputs"], *signature["outputs"]])
    runner = interpreter.get_signature_runner(SIGNATURE)
    lock = threading.Lock()  # calls share one set of arrays

    def run(images: np.ndarray, valid_size: np.ndarray) -> dict[str, np.ndarray]:
        with lock:  # the runner resizes its arrays to the batch
            found: dict[str, np.ndarray] = runner(images=images, valid_size=valid_size)
            return found

    return run


def _check(content: bytes, path: Path) -> None:
    """Raises a UserError for a graph with custom operations."""
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != b"TFL3":
        raise UserError(f"`{path}` is not a LiteRT graph.")
    try:
        model = schema.Model.GetRootAs(content, 0)
        codes = [model.OperatorCodes(number) for number in range(model.OperatorCodesLength())]
        custom = [name.decode(errors="replace")[:60] for code in codes if (name := code.CustomCode()) is not None]
    except Exception as error:  # offsets in a damaged table may point anywhere
        raise UserError(f"`{path}` is a damaged LiteRT graph: {error}.") from error
    if custom:
        raise UserError(f"`{path}` has the custom operation `{custom[0]}`, which is not allowed.")
