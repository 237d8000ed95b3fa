"""ONNX Runtime: graphs of ONNX.

A graph computes and does nothing else, as long as it has no operations of other makers (they are native code) and no
values in other files (their names may lead anywhere). Both are refused before ONNX Runtime sees the graph.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.errors import UserError
from efficientdet.runtimes import exported
from efficientdet.runtimes.manifest import OUTPUTS, Manifest

_DOMAINS = ("", "ai.onnx")
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def require() -> None:
    """Raises a UserError if ONNX Runtime is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        raise UserError("ONNX Runtime is not installed; `pip install 'efficientdet-keras[onnx]'`.")


def open_program(path: Path, manifest: Manifest, num_threads: int = 0) -> exported.Program:
    """Opens a graph.

    Args:
        path: model.onnx.
        manifest: what it should be.
        num_threads: 0: all.

    Raises:
        UserError: ONNX Runtime is not installed, or the graph is none, hostile, or another than the manifest says.
    """
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
    except Exception as error:  # a dozen types of its own
        raise UserError(f"`{path}` is not a graph that ONNX Runtime runs: {error}.") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    exported.check_outputs(path, manifest, [value.name for value in (*inputs, *outputs)])
    names = OUTPUTS[manifest.answer]

    def run(images: np.ndarray, valid_size: np.ndarray) -> dict[str, np.ndarray]:
        found = session.run(names, {"images": images, "valid_size": valid_size})
        return dict(zip(names, found, strict=True))

    return run


def _check(content: bytes, path: Path) -> None:
    """Raises a UserError for a file that is not a graph, or one that reaches beyond itself."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own
        raise UserError(f"`{path}` is not an ONNX graph: {error}.") from error
    for function in model.functions:
        raise UserError(f"`{path}` has the function `{function.name}`; exports of this program have none.")
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in _DOMAINS:
                raise UserError(f"`{path}` has the custom operation `{node.domain}.{node.op_type}`, which is refused.")
        if any(value.data_location == onnx.TensorProto.EXTERNAL for value in _values(graph)):
            raise UserError(f"`{path}` has values in other files, which is refused.")


def _graphs(graph: Any) -> Iterator[Any]:
    """Goes through a graph and those inside its loops."""
    pending = [graph]
    while pending:
        yield (current := pending.pop())
        for node in current.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs


def _values(graph: Any) -> Iterator[Any]:
    """Goes through the values in a graph."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
