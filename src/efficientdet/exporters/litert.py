"""LiteRT (TensorFlow Lite): one flat file with the signature `serving_default`, of LiteRT's own operations.

float16: values are stored in 16 bits and computed with in float32 on a processor, in float16 on a GPU that has it.
int8: weights and activations of 8 bits, images in and predictions out as ever.
"""

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from efficientdet.exporters.calibration import Sample
from efficientdet.model import tracing, weights
from efficientdet.runtimes import litert
from efficientdet.runtimes.manifest import GRAPHS, Manifest


def write(folder: Path, loaded: weights.Weights, manifest: Manifest, samples: Iterable[Sample]) -> None:
    """Writes model.tflite.

    Args:
        folder: empty.
        loaded: the weights.
        manifest: what to write.
        samples: of int8, images whose activations are measured.
    """
    litert.require()
    import tensorflow as tf

    network = tracing.build(loaded, manifest.model.image_size)
    function = tracing.trace(network, loaded, answer=manifest.answer, batch_size=manifest.batch_size)
    module = tf.Module()
    module.variables_of_network = [variable.value for variable in network.variables]
    with tempfile.TemporaryDirectory() as temporary:
        tf.saved_model.save(module, temporary, signatures={litert.SIGNATURE: function})
        converter = tf.lite.TFLiteConverter.from_saved_model(temporary, signature_keys=[litert.SIGNATURE])
        if manifest.precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        if manifest.precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: _representatives(samples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter's, of its own interpreter
            content = converter.convert()
    (folder / GRAPHS["litert"]).write_bytes(content)


def _representatives(samples: Iterable[Sample]) -> Iterator[tuple[str, dict[str, Any]]]:
    for sample in samples:
        yield litert.SIGNATURE, {"images": sample.images, "valid_size": sample.valid_size}
