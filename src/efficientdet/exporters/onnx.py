"""ONNX: one file, opset 17, of operations that ONNX itself defines.

Converted by tf2onnx from the same function of TensorFlow's as the other formats. float16 and int8 are of raw
predictions only: suppression counts in pixels, for which float16 has too few digits.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.exporters.calibration import Sample
from efficientdet.model import tracing, weights
from efficientdet.runtimes import onnx as onnx_runtime
from efficientdet.runtimes.manifest import GRAPHS, Manifest

OPSET = 17


def write(folder: Path, loaded: weights.Weights, manifest: Manifest, samples: Iterable[Sample]) -> None:
    """Writes model.onnx.

    Args:
        folder: empty.
        loaded: the weights.
        manifest: what to write.
        samples: of int8, images whose activations are measured.
    """
    onnx_runtime.require()
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
    """Converts weights to an `onnx.ModelProto` of float32."""
    import tf2onnx

    network = tracing.build(loaded, manifest.model.image_size)
    function = tracing.trace(network, loaded, answer=manifest.answer, batch_size=manifest.batch_size)
    graph, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    return graph


def _quantize(graph: Any, path: Path, samples: Iterable[Sample]) -> None:
    """Quantises convolutions to 8 bits, as pairs of operations that ONNX Runtime and TensorRT fuse.

    Weights a channel, activations as they were seen. Weights have 7 bits: processors without VNNI add pairs of products
    in 16 bits, and those of 8 bits overflow, which cost the demo's detector 15 points of AP. Depthwise convolutions
    stay float32: their channels differ in range, so that one scale for all of them costs a third of what int8 loses,
    and they are no faster in 8 bits. So do the predictions' own convolutions.
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
    """Says whether a node is a convolution in groups."""
    return node.op_type == "Conv" and any(each.name == "group" and each.i > 1 for each in node.attribute)
