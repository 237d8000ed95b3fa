"""ONNX: one file, opset 17, only standard operations; written by tf2onnx, run by ONNX Runtime.

float16 and int8 exist only for raw predictions: suppression works in pixels, which float16 is too coarse for.

A graph can only compute as long as it has no custom operations (which are native code) and no values in other files
(whose names may point anywhere). Both are refused before ONNX Runtime loads the graph.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientdet.errors import UserError
from efficientdet.formats.manifest import GRAPHS, OUTPUTS, Manifest, Program, check_outputs

if TYPE_CHECKING:
    from efficientdet.formats.calibration import Sample
    from efficientdet.model import weights

OPSET = 17
_DOMAINS = ("", "ai.onnx")
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def write(folder: Path, loaded: weights.Weights, manifest: Manifest, samples: Iterable[Sample]) -> None:
    """Writes model.onnx; takes the arguments of `litert.write`."""
    require()
    import onnx

    path = folder / GRAPHS["onnx"]
    graph = convert(loaded, manifest)
    if manifest.precision == "float16":
        from onnxruntime.transformers import float16

        graph = float16.convert_float_to_float16(graph, keep_io_types=True)
    onnx.checker.check_model(graph)
    if manifest.precision == "int8":
        _quantize(graph, path, samples)
    else:
        onnx.save_model(graph, path)


def convert(loaded: weights.Weights, manifest: Manifest) -> Any:
    """Converts weights to a float32 `onnx.ModelProto`."""
    import tf2onnx

    from efficientdet.formats import tracing

    network = tracing.build(loaded, manifest.model.image_size)
    function = tracing.trace(network, loaded, answer=manifest.answer, batch_size=manifest.batch_size)
    graph, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    return graph


def _quantize(graph: Any, path: Path, samples: Iterable[Sample]) -> None:
    """Quantizes convolutions to 8 bits, as pairs of operations that ONNX Runtime and TensorRT fuse.

    Weights are scaled per channel, activations by their measured range. Weights use 7 bits: CPUs without VNNI add pairs
    of products in 16 bits, which overflow with 8-bit weights and cost the demo's detector 15 points of AP. Depthwise
    convolutions stay float32: their channels differ in range, so that one scale for all of them accounts for a third of
    the loss of int8, and they aren't faster in 8 bits. The same holds for the convolutions of the predictions.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[Sample] = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self._left, None)
            return None if sample is None else {"images": sample.images, "valid_size": sample.valid_size}

    with tempfile.TemporaryDirectory() as temporary:
        whole, prepared = Path(temporary) / "whole.onnx", Path(temporary) / "prepared.onnx"
        onnx.save_model(graph, whole)
        quantization.shape_inference.quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[node.name for node in onnx.load(prepared).graph.node if _is_depthwise(node)],
        )


def _is_depthwise(node: Any) -> bool:
    """Returns whether a node is a grouped convolution."""
    return node.op_type == "Conv" and any(each.name == "group" and each.i > 1 for each in node.attribute)


def require() -> None:
    """Raises a UserError if ONNX Runtime is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        raise UserError("ONNX Runtime is not installed; run `pip install 'efficientdet-keras[onnx]'`.")


def open_program(path: Path, manifest: Manifest, num_threads: int = 0) -> Program:
    """Opens a graph; takes the arguments and raises the errors of `litert.open_program`."""
    require()
    import onnxruntime

    content = path.read_bytes()
    _check(content, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    providers = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # it has a dozen exception types
        raise UserError(f"`{path}` cannot be loaded by ONNX Runtime: {error}.") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    check_outputs(path, manifest, [value.name for value in (*inputs, *outputs)])
    names = OUTPUTS[manifest.answer]

    def run(images: np.ndarray, valid_size: np.ndarray) -> dict[str, np.ndarray]:
        found = session.run(names, {"images": images, "valid_size": valid_size})
        return dict(zip(names, found, strict=True))

    return run


def _check(content: bytes, path: Path) -> None:
    """Raises a UserError for a file that is not a graph, or for a graph with custom operations or external data."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's exception types
        raise UserError(f"`{path}` is not an ONNX graph: {error}.") from error
    for function in model.functions:
        raise UserError(f"`{path}` has the function `{function.name}`, which is not allowed.")
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in _DOMAINS:
                raise UserError(
                    f"`{path}` has the custom operation `{node.domain}.{node.op_type}`, which is not allowed."
                )
        if any(value.data_location == onnx.TensorProto.EXTERNAL for value in _values(graph)):
            raise UserError(f"`{path}` has values in other files, which is not allowed.")


def _graphs(graph: Any) -> Iterator[Any]:
    """Yields a graph and the nested graphs of its loops."""
    pending = [graph]
    while pending:
        yield (current := pending.pop())
        for node in current.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs


def _values(graph: Any) -> Iterator[Any]:
    """Yields the constant tensors of a graph."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
