"""Opens a checkpoint file of any known format, which is detected from the file itself."""

import contextlib
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficientdet.checkpoints import bundles, hdf5, pickles
from efficientdet.checkpoints.names import Naming
from efficientdet.checkpoints.tensors import Checkpoint, Tensor
from efficientdet.errors import UserError
from efficientdet.model import weights

_KNOWN = (
    "TensorFlow checkpoints and Keras .h5 files of google/automl, TensorFlow 2 checkpoints and SavedModels of NVIDIA, "
    ".pth and .safetensors files of effdet and timm"
)
# Where a google/automl name starts inside an HDF5 path that repeats layer names.
_ROOTS = re.compile(r"efficientnet-[^/]+|resample_p\d|fpn_cells|class_net|box_net")
# Optimizer slots, step counters and other values that Keras stores next to a network.
_SLOTS = re.compile(r".*/(Momentum|Adam(_1)?|RMSProp(_1)?|Adagrad)")
_COUNTERS = re.compile(
    r"global_step|learning_rate|moving_normalizer|beta[12]_power|save_counter.*|.*optimizer/.*|.*keras_api/.*"
)
# Layers without explicit names are numbered: a second network in a process has the layer `stem_1/conv2d_1`.
_NUMBERED_STEM = re.compile(r"(efficientnet-[^/]+/stem)(?:_\d+)?/(conv2d|tpu_batch_normalization)(?:_\d+)?/")
_CLASSIFIER = "tensors of the classifier"
_CLASSIFIERS = re.compile(r"(_fc|_conv_head|_bn1|conv_head|bn2|classifier)\..*")


def open_checkpoint(location: Path) -> Checkpoint:
    """Opens a checkpoint and describes its tensors without reading their values.

    Args:
        location: a file, the prefix or folder of a TensorFlow checkpoint, or a SavedModel.

    Raises:
        UserError: the file is missing or damaged, or the format is unknown.
    """
    try:
        prefix = bundles.find_prefix(location.absolute())
    except OSError as error:
        raise UserError(f"`{location}` cannot be read: {error.strerror}; expected {_KNOWN}.") from error
    if prefix is not None:
        return _open_bundle(location, prefix)
    if location.is_dir():
        raise UserError(f"`{location}` does not contain a checkpoint; expected {_KNOWN}.")
    try:
        if location.exists() and not location.is_file():  # a device such as /dev/zero has no end
            raise UserError(f"`{location}` is not a file; expected {_KNOWN}.")
        with location.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"`{location}` cannot be read: {error.strerror}; expected {_KNOWN}.") from error
    if start.startswith(hdf5.START):
        return _open_hdf5(location)
    if zipfile.is_zipfile(location) and _is_whole_keras_model(location):
        raise UserError(
            f"`{location}` is a complete Keras model (.keras) with its own layers; expected {_KNOWN}. "
            "Import the checkpoint that it was made from."
        )
    if start.startswith(pickles.LEGACY_START) or zipfile.is_zipfile(location):
        return _open_pytorch(location, pickles.read_pickled(location))
    if start[8:9] == b"{":
        return _open_pytorch(location, _describe_safetensors(location))
    raise UserError(f"`{location}` has an unknown format; expected {_KNOWN}.")


def is_archive(location: Path) -> bool:
    """Returns whether a file is an archive, judging by its name, since .pth files are zip archives too."""
    return location.name.endswith((".tar.gz", ".tgz", ".zip")) and location.is_file()


def _is_whole_keras_model(location: Path) -> bool:
    """Returns whether a zip archive is a complete model saved by Keras 3."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(location) as archive:
        return "model.weights.h5" in archive.namelist()
    return False


def _open_bundle(location: Path, prefix: Path) -> Checkpoint:
    """Opens a TensorFlow checkpoint."""
    tensors = bundles.read_variables(prefix)
    if not bundles.is_object_based(tensors):
        return _open_tensorflow1(location, tensors)
    network, averages = bundles.ObjectGraph(prefix, tensors).network()
    reached = {tensor.key for tensor in (*network.values(), *averages.values())}
    classifier = _classifier_of_backbone(network)
    rest = {key: tensor for key, tensor in tensors.items() if key not in reached and tensor.dtype != "string"}
    unknown, aside = _sort_out(rest)
    aside[_CLASSIFIER] = len(classifier)
    network = {name: tensor for name, tensor in network.items() if name not in classifier}
    naming: Naming = "automl_objects"
    owner = "google/automl"
    if any(name.startswith("backbone/layer_with_weights-") for name in network):
        naming, owner = "nvidia_objects", "NVIDIA"
    elif any(name.startswith("layer_with_weights-") for name in network):
        naming, owner = "nvidia_backbone", "NVIDIA backbone"
    kind = "SavedModel" if prefix.name == "variables" else "TensorFlow 2 checkpoint"
    return Checkpoint(
        path=location,
        format=f"{owner} {kind}",
        naming=naming,
        tensors={**network, **unknown},
        averages=averages,
        set_aside=aside,
    )


def _classifier_of_backbone(network: Mapping[str, Tensor]) -> set[str]:
    """Finds the parts of a backbone that a detector doesn't use.

    google/automl's SavedModels include them with random values, since exporting builds them. In NVIDIA's backbones they
    are the last three layers, the very last of which has a matrix instead of a convolution kernel.
    """
    classifier = {name for name in network if re.match(r"(backbone/)?_head/", name)}
    layers = {name: int(m[1]) for name in network if (m := re.match(r"layer_with_weights-(\d+)/", name))}
    dense = [layers[name] for name in layers if name.endswith("/kernel") and len(network[name].shape) == 2]
    return classifier | {name for name, layer in layers.items() if dense and layer >= min(dense) - 2}


def _open_tensorflow1(location: Path, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Sorts variables, averages and optimizer slots of google/automl's Estimator."""
    suffix = bundles.AVERAGE_SUFFIX
    averages = {name.removesuffix(suffix): tensor for name, tensor in tensors.items() if name.endswith(suffix)}
    own, aside = _sort_out({name: tensor for name, tensor in tensors.items() if not name.endswith(suffix)})
    return Checkpoint(
        path=location,
        format="google/automl TensorFlow 1 checkpoint",
        naming="automl",
        tensors=own,
        averages=averages,
        set_aside=aside,
    )


def _open_hdf5(location: Path) -> Checkpoint:
    """Maps HDF5 datasets to google/automl's variable names, which follow one or more layer groups."""
    named: dict[str, Tensor] = {}
    for path, tensor in hdf5.read_datasets(location).items():
        segments = path.split("/")
        starts = [place for place, segment in enumerate(segments) if _ROOTS.fullmatch(segment)]
        name = "/".join(segments[starts[-1] :]) if starts else path
        name = _NUMBERED_STEM.sub(r"\1/\2/", name)
        if name in named:
            raise UserError(f"`{location}` has `{name}` twice, as `{named[name].key}` and `{tensor.key}`.")
        named[name] = tensor
    own, aside = _sort_out(named)
    return Checkpoint(
        path=location,
        format="google/automl Keras HDF5 file",
        naming="automl",
        tensors=own,
        averages={},
        set_aside=aside,
    )


def _open_pytorch(location: Path, saved: Any) -> Checkpoint:
    """Finds the state dictionaries of effdet, timm or the Lite packages, and the wrappers' prefixes."""
    if not isinstance(saved, dict):
        raise UserError(f"`{location}` does not contain a dictionary of tensors; expected {_KNOWN}.")
    average: dict[str, Any] = next(
        (saved[k] for k in ("state_dict_ema", "model_ema") if isinstance(saved.get(k), dict)), {}
    )
    own = next((saved[k] for k in ("state_dict", "model") if isinstance(saved.get(k), dict)), None)
    own = (average or saved) if own is None else own
    tensors, aside = _strip(location, own)
    averages, _ = _strip(location, average)
    naming: Naming = "effdet"
    owner = "effdet"
    if "_conv_stem.weight" in tensors:
        naming, owner = "lite_pytorch", "EfficientNet-Lite"
    elif "conv_stem.weight" in tensors:
        naming, owner = "timm", "timm EfficientNet"
    if naming != "effdet":
        aside[_CLASSIFIER] = sum(bool(_CLASSIFIERS.fullmatch(name)) for name in tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if not _CLASSIFIERS.fullmatch(name)}
        averages = {name: tensor for name, tensor in averages.items() if not _CLASSIFIERS.fullmatch(name)}
    kind = "safetensors file" if location.suffix == ".safetensors" else "PyTorch file"
    return Checkpoint(
        path=location, format=f"{owner} {kind}", naming=naming, tensors=tensors, averages=averages, set_aside=aside
    )


def _strip(location: Path, saved: Mapping[str, Any]) -> tuple[dict[str, Tensor], Counter[str]]:
    """Removes wrapper prefixes, the counters of PyTorch's batch normalization, and the anchors of effdet's wrappers."""
    tensors: dict[str, Tensor] = {}
    aside = Counter[str]()
    for name, tensor in saved.items():
        while name.startswith(("module.", "model.")):
            name = name.split(".", 1)[1]
        if not isinstance(tensor, Tensor):
            continue
        if name.endswith("num_batches_tracked"):
            aside["batch counters"] += 1
        elif name == "anchors.boxes":
            aside["anchors"] += 1
        elif name in tensors:
            raise UserError(f"`{location}` has `{name}` twice, as `{tensors[name].key}` and `{tensor.key}`.")
        else:
            tensors[name] = tensor
    return tensors, aside


def _sort_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Counter[str]]:
    """Separates the tensors of a network from optimizer slots and counters."""
    own, aside = {}, Counter[str]()
    for name, tensor in tensors.items():
        if _SLOTS.fullmatch(name) or ".OPTIMIZER_SLOT/" in name:
            aside["optimizer slots"] += 1
        elif _COUNTERS.fullmatch(name):
            aside["counters"] += 1
        else:
            own[name] = tensor
    return own, aside


def _describe_safetensors(path: Path) -> dict[str, Tensor]:
    """Describes the tensors of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("format") == weights.FORMAT:
                raise UserError(f"`{path}` is already a weights file of this project; use it as is.")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            described = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{path}` is not a complete safetensors file: {error}.") from error
    types = {"F32": "float32", "F16": "float16", "F64": "float64", "I64": "int64", "I32": "int32"}

    def reader(name: str) -> Any:
        def read() -> Any:
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return read

    return {
        name: Tensor(key=name, shape=shape, dtype=types.get(dtype, dtype), read=reader(name))
        for name, (shape, dtype) in described.items()
    }
