"""OpenVINO: model.xml and, with the values, model.bin.

float16: values are stored in 16 bits; the arithmetic is whatever the program is told (`--precision` of `predict`).
int8: by NNCF. There is no bfloat16 file; `--precision mixed_bfloat16` computes in it where the processor can.
"""

import importlib.util
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from efficientdet.errors import UserError
from efficientdet.exporters.calibration import Sample
from efficientdet.model import weights
from efficientdet.runtimes import openvino
from efficientdet.runtimes.manifest import GRAPHS, Manifest


def write(folder: Path, loaded: weights.Weights, manifest: Manifest, samples: Iterable[Sample]) -> None:
    """Writes model.xml and model.bin.

    Args:
        folder: empty.
        loaded: the weights.
        manifest: what to write.
        samples: of int8, images whose activations are measured.
    """
    graph = openvino.convert(loaded, manifest.model.image_size, answer=manifest.answer, batch_size=manifest.batch_size)
    if manifest.precision == "int8":
        graph = _quantize(graph, list(samples))
    openvino.write(folder / GRAPHS["openvino"], graph, halve=manifest.precision == "float16")


def require_nncf() -> None:
    """Raises a UserError if NNCF is not installed, which quantises."""
    if importlib.util.find_spec("nncf") is None:
        raise UserError("int8 of OpenVINO needs NNCF; `pip install 'efficientdet-keras[openvino-int8]'`.")


def _quantize(graph: Any, samples: list[Sample]) -> Any:
    """Quantises weights and activations to 8 bits; weights to 7, for the reason that `exporters/onnx.py` has."""
    require_nncf()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it imports
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
