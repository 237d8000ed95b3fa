"""Where our float32 loses: kinds of operations compute in another precision, one after another.

    python tests/parity/rounding.py tf_efficientdet_d0 --size 200 328

in the environment of `make parity`. Prints the median and the largest `ratio` of agreement.py over all outputs: of our
network; with the batch normalisation of Keras, whose factors are float32; and with each kind of operation in float64,
its results rounded to float32 once. TensorFlow only.
"""

import argparse
import contextlib
import logging
import pathlib
import tempfile
from unittest import mock

import compare
import numpy as np

from efficientdet import backend

backend.choose("tensorflow")  # before anything imports Keras

import keras  # noqa: E402
from keras import ops  # noqa: E402

from efficientdet.kernels.normalization import activate  # noqa: E402
from efficientdet.model import efficientnet, layers, normalization  # noqa: E402


def main():
    """Prints a line for each kind of operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"))
    arguments = parser.parse_args()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns that each network is traced again
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        compare.make_reference(arguments.model, arguments.size, 0, folder)
        imported = compare.import_formats(folder, arguments.model, ["safetensors"])
        with np.load(folder / "reference.npz") as file:
            expected = dict(file)
    in_double = [kind for kind in _REPLACED if "float64" in kind]
    kinds = {"our network": [], **{kind: [kind] for kind in _REPLACED}, "all of these in float64": in_double}
    for label, replaced in kinds.items():
        with contextlib.ExitStack() as stack:
            for kind in replaced:
                owner, attribute, function = _REPLACED[kind]
                stack.enter_context(mock.patch.object(owner, attribute, function))
            rows = compare.compare_network(imported, expected, has_double=False)
        ratios = [row.ratio for row in rows]
        print(f"{label:56} median {np.median(ratios):.1f}, largest {max(ratios):.1f}", flush=True)


def _double(x):
    return ops.cast(x, "float64")


def _single(x):
    return ops.cast(x, "float32")


def _normalize_as_keras(layer, x, training=None, mask=None):
    """Keras's batch normalisation, and the activation."""
    return activate(keras.layers.BatchNormalization.call(layer, x, training, mask), layer.activation)


def _normalize(layer, x, training=None, mask=None):
    """Batch normalisation in float64, and the activation."""
    del training, mask
    factor = _double(layer.gamma) / ops.sqrt(_double(layer.moving_variance) + layer.epsilon)
    y = _single((_double(x) - _double(layer.moving_mean)) * factor + _double(layer.beta))
    return normalization.activate(y, layer.activation)


def _gate(layer, x, training=False):
    """Squeeze-and-excitation; mean and sigmoid in float64."""
    del training
    mean = _single(ops.mean(_double(x), axis=(1, 2), keepdims=True))
    gate = layer.expand(activate(layer.reduce(mean), layer.activation))
    return x * _single(ops.sigmoid(_double(gate)))


def _activate(x, activation):
    """Swish or ReLU6 in float64."""
    return x if activation is None else _single(activate(_double(x), activation))


def _convolve(layer, x, training=False):
    """A convolution in float64."""
    del training
    y = ops.conv(_double(x), _double(layer.kernel), layer.strides, layer.padding)
    return _single(y + _double(layer.bias) if layer.use_bias else y)


def _convolve_depthwise(layer, x, training=False):
    """A depthwise convolution in float64."""
    del training
    return _single(ops.depthwise_conv(_double(x), _double(layer.kernel), layer.strides, layer.padding))


_REPLACED = {
    "batch normalisation of Keras": (normalization.BatchNorm, "call", _normalize_as_keras),
    "batch normalisation in float64": (normalization.BatchNorm, "call", _normalize),
    "mean and sigmoid of squeeze-and-excitation in float64": (efficientnet.SqueezeExcite, "call", _gate),
    "activations in float64": (normalization, "activate", _activate),
    "convolutions in float64": (layers.Conv, "call", _convolve),
    "depthwise convolutions in float64": (layers.DepthwiseConv, "call", _convolve_depthwise),
}


if __name__ == "__main__":
    main()
