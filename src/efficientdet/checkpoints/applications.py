"""ImageNet weights of EfficientNet-B0..B7, from `keras.applications` or the files it downloads.

Their layers are named by stage and letter, `block3b_expand_conv` for our `block_4/expand`; the layouts are the same.

Their network includes the normalization: (x / 255 - mean) / sqrt(variance). In the ImageNet files `variance` holds the
standard deviation, so with those weights (and only then) an extra layer divides by its square root again. Our network
gets (x / 255 - mean) / std. The remaining factor per channel is folded into the stem's kernel, which is exact because
the stem pads with zeros after the normalization. A difference in means could not be folded in exactly.
"""

import contextlib
import dataclasses
import math
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from efficientdet import presets
from efficientdet.checkpoints import hdf5
from efficientdet.config import BackboneConfig, ModelConfig
from efficientdet.errors import UserError
from efficientdet.model import architecture

IMAGENET = "imagenet"
_NETWORKS: dict[str, Callable[..., Any]] = {
    "efficientnet-b0": keras.applications.EfficientNetB0,
    "efficientnet-b1": keras.applications.EfficientNetB1,
    "efficientnet-b2": keras.applications.EfficientNetB2,
    "efficientnet-b3": keras.applications.EfficientNetB3,
    "efficientnet-b4": keras.applications.EfficientNetB4,
    "efficientnet-b5": keras.applications.EfficientNetB5,
    "efficientnet-b6": keras.applications.EfficientNetB6,
    "efficientnet-b7": keras.applications.EfficientNetB7,
}
_BLOCK_LAYERS = {
    "expand": "expand_conv",
    "expand_norm": "expand_bn",
    "depthwise": "dwconv",
    "depthwise_norm": "bn",
    "squeeze_excite/reduce": "se_reduce",
    "squeeze_excite/expand": "se_expand",
    "project": "project_conv",
    "project_norm": "project_bn",
}
# The standard deviation that the extra layer assumes, whatever the file says.
_STDDEV = np.array([0.229, 0.224, 0.225])


def applications_names(config: BackboneConfig) -> dict[str, tuple[str, str]]:
    """Lists the names that `keras.applications` uses for the variables of a backbone.

    Returns:
        For the path of each of our variables, such as `backbone/block_4/expand/kernel`, the names of their layer and
        variable, such as (`block3b_expand_conv`, `kernel`).
    """
    layers = {"stem": "stem_conv", "stem_norm": "stem_bn"}
    number = 0
    for position, stage in enumerate(architecture.stages(config), start=1):
        for repeat in range(stage.repeats):
            for ours, theirs in _BLOCK_LAYERS.items():
                if stage.expand != 1 or not ours.startswith("expand"):
                    layers[f"block_{number}/{ours}"] = f"block{position}{chr(ord('a') + repeat)}_{theirs}"
            number += 1
    return {
        f"backbone/{ours}/{variable}": (theirs, variable)
        for ours, theirs in layers.items()
        for variable in _variables(ours)
    }


def _variables(layer: str) -> tuple[str, ...]:
    """Returns the variable names of one of our layers."""
    if layer.endswith("norm"):
        return ("gamma", "beta", "moving_mean", "moving_variance")
    return ("kernel", "bias") if "squeeze_excite" in layer else ("kernel",)


def read_network(network: Any, config: BackboneConfig) -> dict[str, np.ndarray]:
    """Reads the backbone of a `keras.applications` network, without its pixel normalization.

    Args:
        network: EfficientNetB0..B7, with or without its classifier.
        config: the same backbone.

    Returns:
        float32 values by the path of our variable.
    """
    arrays = {}
    for path, (layer, name) in applications_names(config).items():
        (variable,) = [variable for variable in network.get_layer(layer).weights if variable.name == name]
        arrays[path] = np.array(variable.numpy(), np.float32)
    return arrays


def imagenet_backbone(
    config: BackboneConfig,
    *,
    weights: str | Path = IMAGENET,
    pixel_mean: tuple[float, float, float] = ModelConfig.pixel_mean,
    pixel_std: tuple[float, float, float] = ModelConfig.pixel_std,
) -> dict[str, np.ndarray]:
    """Reads a backbone pretrained on ImageNet.

    Args:
        config: EfficientNet-B0..B7.
        weights: `imagenet`, which is downloaded once, or a file that `keras.applications` downloaded or wrote, such as
            `efficientnetb0_notop.h5`.
        pixel_mean: mean that the model subtracts from the pixels, fraction of 255.
        pixel_std: standard deviation that it divides them by, fraction of 255.

    Returns:
        float32 values by the path of the variable, such as `backbone/stem/kernel`.

    Raises:
        UserError: there are no weights for this backbone, they cannot be downloaded, or they need a different mean.
    """
    make_network = _NETWORKS.get(config.name)
    published = {model.backbone.name: model.backbone for model in presets.MODELS.values()}
    if make_network is None or config != dataclasses.replace(published[config.name], survival=config.survival):
        raise UserError(
            f"`backbone` is {config.name} with width {config.width:g} and depth {config.depth:g}, for which "
            "`keras.applications` has no ImageNet weights; it has only EfficientNet-B0 to B7 as in the presets."
        )
    file = f"{config.name.replace('-', '')}_notop.h5"
    if str(weights) == IMAGENET:
        network = _download(make_network, file)
    else:
        network = _load(make_network, file, Path(weights).expanduser())
    arrays = read_network(network, config)
    factors = _normalization_factors(network, weights, np.array(pixel_mean), np.array(pixel_std))
    kernel = arrays["backbone/stem/kernel"]
    arrays["backbone/stem/kernel"] = (kernel * factors[:, None]).astype(np.float32)
    return arrays


def _download(make_network: Callable[..., Any], file: str) -> Any:
    """Makes the network with weights from Keras's cache, downloading them if necessary."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras prints the progress of the download
            return make_network(weights=IMAGENET, include_top=False)
    except Exception as error:  # A failed download raises a bare `Exception`.
        raise UserError(
            f"`{file}` (ImageNet weights) cannot be downloaded ({_first_line(error)}); download it elsewhere and pass "
            "its path, or put it into the `models` folder of Keras's cache (default ~/.keras)."
        ) from error


def _load(make_network: Callable[..., Any], file: str, path: Path) -> Any:
    """Makes the network with the weights of a file like `file`."""
    expected = f"expected a file from `keras.applications`, such as {file}"
    if not path.is_file():
        raise UserError(f"`{path}` does not exist; {expected}.")
    if path.suffix != ".h5":
        raise UserError(f"`{path}` is not an .h5 file; {expected}.")
    network = make_network(weights=None, include_top=False)
    try:
        _check_sizes(network, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", UserWarning)  # Keras warns if variables are missing and stay random
            network.load_weights(path)
    except (OSError, KeyError, RuntimeError, ValueError, UserWarning) as error:
        raise UserError(f"`{path}` does not match {network.name} ({_first_line(error)}); {expected}.") from error
    return network


def _check_sizes(network: Any, path: Path) -> None:
    """Raises if a file claims a tensor larger than any variable.

    Keras reads a tensor before checking its shape, and HDF5 takes no space for values that were never written.
    """
    largest = max(math.prod(variable.shape) for variable in network.weights)
    for name, tensor in hdf5.read_datasets(path).items():
        if math.prod(tensor.shape) > largest:
            raise ValueError(f"`{name}` has the shape {tensor.shape}")


def _normalization_factors(
    network: Any, weights: str | Path, pixel_mean: np.ndarray, pixel_std: np.ndarray
) -> np.ndarray:
    """Computes the factors from our normalized pixels to theirs: float64[3].

    Raises:
        UserError: the means differ.
    """
    (layer,) = [layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)]
    mean, variance = (np.asarray(array, np.float64) for array in layer.get_weights()[:2])
    if not np.allclose(mean, pixel_mean, atol=1e-6):
        raise UserError(
            f"`{weights}` was trained with the pixel mean {mean.round(6).tolist()}, but `model.pixel_mean` is "
            f"{pixel_mean.tolist()}; they must be the same."
        )
    # A network that was created without ImageNet weights doesn't normalize and has no extra layer.
    is_identity = not mean.any() and (variance == 1).all()
    return pixel_std / np.sqrt(variance if is_identity else variance * _STDDEV)


def _first_line(error: Exception) -> str:
    """Returns the first sentence of an error, without its period."""
    return re.split(r"\.\s", str(error).strip() + " ", maxsplit=1)[0].splitlines()[0].strip()
