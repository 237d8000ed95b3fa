"""OpenVINO: model.xml, and model.bin with the values.

float16: values are stored in 16 bits; the arithmetic depends on `--precision` of `predict`.
int8: quantized by NNCF. There is no bfloat16 file; `--precision mixed_bfloat16` uses it if the CPU supports it.

OpenVINO's format can only compute: custom operations are native code that has to be loaded separately, which nothing
here does. Graphs with custom operations are refused.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientdet import backend
from efficientdet.config import Answer
from efficientdet.errors import UserError
from efficientdet.formats import manifest as manifests
from efficientdet.formats.manifest import Manifest

if TYPE_CHECKING:
    from efficientdet.formats.calibration import Sample
    from efficientdet.model import weights

GRAPH = manifests.GRAPHS["openvino"]


@functools.cache
def find_core() -> Any:
    """Returns OpenVINO's core, created once per process and never released.

    Its plugin installs an alternate signal stack in the thread that loads it. If another thread unloads the plugin, it
    frees that stack while it is still in use, so the next signal, such as Ctrl-C, is a segmentation fault (OpenVINO
    2026.4).

    Raises:
        UserError: OpenVINO is not installed.
    """
    return import_openvino().Core()


def import_openvino() -> Any:
    """Imports OpenVINO.

    Importing it and converting with it send usage data to Google Analytics unless the telemetry package is missing
    (2026.4). Our users have not agreed to that, so the package is hidden.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("openvino") is None:
        raise UserError(
            "`runtime` is openvino, which is not installed; run `pip install 'efficientdet-keras[openvino]'`."
        )
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def write(folder: Path, loaded: weights.Weights, manifest: Manifest, samples: Iterable[Sample]) -> None:
    """Writes model.xml and model.bin; takes the arguments of `litert.write`."""
    graph = convert(loaded, manifest.model.image_size, answer=manifest.answer, batch_size=manifest.batch_size)
    if manifest.precision == "int8":
        graph = _quantize(graph, list(samples))
    save(folder / GRAPH, graph, halve=manifest.precision == "float16")


def require_nncf() -> None:
    """Raises a UserError if NNCF, which does the quantization, is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise UserError(
            "`precision` int8 with OpenVINO needs NNCF, which is not installed; "
            "run `pip install 'efficientdet-keras[openvino-int8]'`."
        )


def _quantize(graph: Any, samples: list[Sample]) -> Any:
    """Quantizes activations to 8 bits and weights to 7, for the reason explained in `onnx.py`."""
    require_nncf()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from packages that it imports
        import nncf

        dataset = nncf.Dataset(samples, lambda sample: {"images": sample.images, "valid_size": sample.valid_size})
        from nncf.quantization import advanced_parameters as advanced

        return nncf.quantize(
            graph,
            dataset,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            advanced_parameters=advanced.AdvancedQuantizationParameters(overflow_fix=advanced.OverflowFix.ENABLE),
        )


def save(path: Path, model: Any, *, halve: bool = False) -> None:
    """Writes a graph, and its values as float32 or float16 to a .bin file next to it."""
    import_openvino().save_model(model, path, compress_to_fp16=halve)


def convert(
    loaded: Any, image_size: tuple[int, int] | None = None, *, answer: Answer = "raw", batch_size: int = 0
) -> Any:
    """Converts weights to an OpenVINO graph.

    Args:
        loaded: a `weights.Weights`.
        image_size: height and width of the network input, px; None means what the weights were trained with.
        answer: what the graph outputs.
        batch_size: images per call; 0 means any number.

    Returns:
        openvino.Model: images uint8[B, H, W, 3], valid_size int32[B, 2] -> the outputs in `manifest.OUTPUTS`.

    Raises:
        UserError: the Keras backend is not TensorFlow, or the size is not valid.
    """
    openvino = import_openvino()
    backend.choose()

    from efficientdet.formats import tracing

    network = tracing.build(loaded, image_size)
    function = tracing.trace(network, loaded, answer=answer, batch_size=batch_size).get_concrete_function()
    converted = openvino.convert_model(function)
    # Activations with a custom gradient leave extra outputs behind.
    names = manifests.OUTPUTS[answer]
    sources = [converted.output(name).node.input_value(0) for name in names]
    model = openvino.Model(sources, converted.get_parameters(), network.config.name)
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    return model


def read(core: Any, path: Path, manifest: Manifest) -> Any:
    """Reads a graph.

    Raises:
        UserError: it is not a graph, has custom operations, or doesn't match the manifest.
    """
    _check(path)
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise UserError(f"`{path}` cannot be loaded by OpenVINO: {error}.") from error
    names = [name for value in (*model.inputs, *model.outputs) for name in sorted(value.get_names())[:1]]
    manifests.check_outputs(path, manifest, names)
    return model


def _check(path: Path) -> None:
    """Raises a UserError for a file that is not a graph, or for a graph with custom operations."""
    from defusedxml import DefusedXmlException, ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException) as error:
        raise UserError(f"`{path}` is not an OpenVINO graph: {error}.") from error
    for layer in () if root is None else root.iter("layer"):
        if not re.fullmatch(r"opset\d+", layer.get("version", "")):
            kind = f"{layer.get('version', '')}.{layer.get('type', '')}"[:60]
            raise UserError(f"`{path}` has the custom operation `{kind}`, which is not allowed.")
