"""The command `import-weights`: converts a checkpoint of another project to our weights file.

Every tensor of the file is accounted for: it fills a variable, or belongs to a kind that is skipped and counted.
Missing or unexpected tensors and wrong shapes stop the import. Where the authors differ from google/automl
(normalization, fusion, resampling), the difference is set in the model's config, which is stored with the weights.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path

import numpy as np

from efficientdet import presets
from efficientdet.checkpoints import bundles, class_tables, matching, names, reading, tensors
from efficientdet.config import ModelConfig
from efficientdet.errors import UserError
from efficientdet.model import variables, weights
from efficientdet.result import Result
from efficientdet.storage import archives, files
from efficientdet.structures import Category

_NVIDIA_CLASSES = 91
# Even a small file may claim any number; ImageNet-21k has 21,841.
_MOST_CLASSES = 30_000
_PREDICTOR = "class_head/predict/"
LARGEST_CHECKPOINT = 8 * 10**9
"""Maximum bytes to unpack; three times D7x with two copies of each variable and its optimizer's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportResult(Result):
    """What `import_weights` read and wrote."""

    output: str
    """The weights file."""
    format: str
    model: str
    num_classes: int
    num_variables: int
    """Variables of the model, each filled from the checkpoint or listed in `initialized`."""
    num_averaged: int
    """Number of variables with averaged values."""
    initialized: list[str]
    """Newly initialized variables, because the classes differ."""
    set_aside: dict[str, int]
    """Number of skipped tensors, by kind."""
    notes: list[str]
    """Decisions made during the import."""

    def text(self) -> str:
        """Summarizes the import in a few lines."""
        filled = self.num_variables - len(self.initialized)
        lines = [
            f"{self.format}: {self.model}, {self.num_classes} classes",
            f"{filled} of {self.num_variables} variables filled, {self.num_averaged} with averaged values",
        ]
        lines += [f"{count} {kind} skipped" for kind, count in self.set_aside.items() if count]
        lines += self.notes
        return "\n".join([*lines, f"Weights: {self.output}"])


def import_weights(
    file: Path,
    /,
    *,
    output: Path | None = None,
    model: str = "",
    raw: bool = False,
    classes: Path | None = None,
    reset_classes: bool = False,
    advprop: bool = False,
    overwrite: bool = False,
) -> ImportResult:
    """Converts a published checkpoint to a weights file of this project.

    Reads TensorFlow 1 checkpoints and Keras .h5 files of google/automl, TensorFlow 2 checkpoints and SavedModels of
    google/automl and NVIDIA, and .pth and .safetensors files of effdet (its `tf_` models). The format and the model are
    detected from the file. Nothing in the file is executed.

    Args:
        file: a file, the prefix or folder of a TensorFlow checkpoint, or a SavedModel; or one of these in a .tar.gz,
            .tgz or .zip, as google/automl publishes them.
        output: the weights file to write; default: <model>.safetensors.
        model: preset of the checkpoint, needed only if it is ambiguous (d6 and d7 have the same variables).
        raw: use the values of the last training step even if there are averaged ones.
        classes: file with the class names, one per line, or a COCO or dataset JSON with `categories`; not needed for
            COCO's 90 classes.
        reset_classes: `classes` differ from the checkpoint's; start with a new class predictor.
        advprop: the weights were trained with AdvProp: pixels in -1..1, black padding.
        overwrite: replace the output.

    Returns:
        What was read, skipped and decided.

    Raises:
        UserError: the file cannot be read, or does not match the model.
    """
    file = Path(file)
    if reading.is_archive(file):
        with tempfile.TemporaryDirectory(dir=output.parent if output and output.parent.is_dir() else None) as folder:
            unpacked = archives.unpack(
                file, Path(folder, file.name.split(".")[0]), max_bytes=LARGEST_CHECKPOINT, max_files=1000
            )
            return import_weights(
                _sole_checkpoint(unpacked, file),
                output=output,
                model=model,
                raw=raw,
                classes=classes,
                reset_classes=reset_classes,
                advprop=advprop,
                overwrite=overwrite,
            )
    checkpoint = reading.open_checkpoint(file)
    _check_detector(checkpoint)
    config = recognize(checkpoint, model)
    target = output or Path(f"{config.name}{weights.SUFFIX}")
    if target.exists() and not overwrite:
        raise UserError(f"`{target}` already exists; use another `--output`, or `--overwrite`.")
    files.check_writable(target)
    notes: list[str] = []
    config = with_habits(config, checkpoint, advprop=advprop, notes=notes)
    if reset_classes and classes is None:
        raise UserError("`reset_classes` is on, but `classes` is not set; pass the new classes with `--classes FILE`.")
    table = None if classes is None else class_tables.read_classes(classes)
    arrays = read_detector(checkpoint, config, raw=raw)
    if checkpoint.naming == "nvidia_objects" and config.num_classes == _NVIDIA_CLASSES:
        arrays = _without_last_class(arrays, _NVIDIA_CLASSES)
        config = dataclasses.replace(config, num_classes=_NVIDIA_CLASSES - 1)
        notes.append("91 outputs per anchor, the last of which was never used; kept 90")
    categories = _categories(checkpoint, config, table, reset_classes)
    initialized: list[str] = []
    if reset_classes:
        config = dataclasses.replace(config, num_classes=len(categories))
        arrays, initialized = _with_fresh_predictor(arrays, config)
    weights.save(target, arrays, config, categories)
    if checkpoint.averages:
        notes.append("values are " + ("those of the last step (`--raw`)" if raw else "averages"))
    return ImportResult(
        output=str(target),
        format=checkpoint.format,
        model=config.name,
        num_classes=len(categories),
        num_variables=len(arrays),
        num_averaged=0 if raw else len(checkpoint.averages),
        initialized=initialized,
        set_aside=dict(checkpoint.set_aside),
        notes=notes,
    )


def _check_detector(checkpoint: tensors.Checkpoint) -> None:
    """Raises if a checkpoint has no detector that can be imported."""
    if checkpoint.naming in names.BACKBONES:
        raise UserError(
            f"`{checkpoint.path}` ({checkpoint.format}) is a backbone without a detector; "
            "train from it with `efficientdet train PRESET --backbone FILE`."
        )
    tensors = checkpoint.tensors
    heads = [name for name in tensors if re.match(r"class_net\.conv_rep\.\d+\.conv_pw\.", name)]
    if heads and not any(name.endswith("bias") for name in heads):
        raise UserError(
            f"`{checkpoint.path}` is one of effdet's own models, which lack the biases and padding of the published "
            "ones; only its `tf_efficientdet_*` models can be imported."
        )


def recognize(checkpoint: tensors.Checkpoint, model: str = "", *, any_twin: bool = False) -> ModelConfig:
    """Detects the preset of a checkpoint by the names and shapes of its tensors.

    Args:
        checkpoint: the file.
        model: name of a preset, or empty.
        any_twin: if several presets have the same variables (d6 and d7), use any of them.

    Returns:
        The preset's model, with the checkpoint's number of classes.

    Raises:
        UserError: no preset matches, or several do.
    """
    present = {*checkpoint.tensors, *checkpoint.averages}
    candidates = [model] if model else [name for name in presets.MODELS if name != "demo"]
    distances = {}
    for name in candidates:
        config = presets.find_preset(name).model
        expected = {source.name for source in names.variable_sources(config, checkpoint.naming).values()}
        distance: tuple[int, bool] = (len(expected ^ present), not _has_channels(checkpoint, config))
        if model or 2 * len(expected & present) > len(expected):
            distances[name] = distance
    if not distances:
        raise UserError(
            f"`{checkpoint.path}` is not a known EfficientDet ({len(present)} tensors, such as "
            f"`{min(present, default='none')}`)."
        )
    best = [name for name, distance in distances.items() if distance == min(distances.values())]
    named = [name for name in best if re.search(rf"(?<![0-9a-z]){name}(?![0-9a-z])", _place(checkpoint))]
    if len(best) > 1 and len(named) != 1 and not any_twin:
        raise UserError(f"`{checkpoint.path}` may be {' or '.join(best)}; set `--model`.")
    config = presets.find_preset((named or best)[0]).model
    return dataclasses.replace(config, num_classes=_count_classes(checkpoint, config))


def _place(checkpoint: tensors.Checkpoint) -> str:
    """Returns the names of a file and its folder, which may reveal its content (`advprop/`, `efficientdet-d6/`)."""
    return "/".join(checkpoint.path.absolute().parts[-2:]).lower()


def _has_channels(checkpoint: tensors.Checkpoint, config: ModelConfig) -> bool:
    """Returns whether a checkpoint's heads have the channels of a model."""
    source = names.variable_sources(config, checkpoint.naming)["box_head/predict/pointwise/kernel"]
    tensor = matching.pick(checkpoint, source.name)
    return tensor is not None and matching.our_shape(tensor, source)[2:3] == (config.feature_channels,)


def _count_classes(checkpoint: tensors.Checkpoint, config: ModelConfig) -> int:
    """Computes the number of classes from the outputs of the class predictor."""
    source = names.variable_sources(config, checkpoint.naming)[f"{_PREDICTOR}pointwise/bias"]
    tensor = matching.pick(checkpoint, source.name)
    per_cell = config.num_octaves * len(config.aspect_ratios)
    if tensor is None or len(tensor.shape) != 1 or not tensor.shape[0] or tensor.shape[0] % per_cell:
        problem = "is missing" if tensor is None else f"has shape {tensor.shape}"
        raise UserError(
            f"`{checkpoint.path}`: the class predictor's bias `{source.name}` {problem}; expected {per_cell} numbers "
            "per class."
        )
    count = tensor.shape[0] // per_cell
    if count > _MOST_CLASSES:
        raise UserError(
            f"`{checkpoint.path}`: the class predictor's bias `{source.name}` has shape {tensor.shape}, which means "
            f"{count:,} classes; expected at most {_MOST_CLASSES:,}."
        )
    return count


def with_habits(
    config: ModelConfig, checkpoint: tensors.Checkpoint, *, advprop: bool = False, notes: list[str] | None = None
) -> ModelConfig:
    """Adapts a model to the ways in which a checkpoint's authors differ from google/automl.

    Args:
        config: the model.
        checkpoint: the file.
        advprop: whether the weights were trained with AdvProp, regardless of the file's name.
        notes: a sentence for each difference is appended.
    """
    notes = [] if notes is None else notes
    if checkpoint.naming == "nvidia_objects":
        notes.append(
            "NVIDIA: pixels normalized twice, no ReLU on fusion weights, images resampled from corners, features "
            "upsampled from centers"
        )
        config = dataclasses.replace(
            config, normalize_twice=True, fusion_relu=False, resize="legacy", upsampling="half_pixel"
        )
    if checkpoint.naming == "effdet":
        notes.append("effdet: antialiased resampling")
        config = dataclasses.replace(config, resize="antialiased")
        if config.name.startswith("efficientdet-lite"):
            config = dataclasses.replace(config, pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3)
    if advprop or re.search(r"advprop|_ap([-_./]|$)", _place(checkpoint)):
        notes.append("AdvProp: pixels in -1..1, black padding" + ("" if advprop else ", according to its name"))
        config = dataclasses.replace(config, pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3, padding="black")
    return config


def _categories(
    checkpoint: tensors.Checkpoint, config: ModelConfig, table: tuple[Category, ...] | None, reset_classes: bool
) -> tuple[Category, ...]:
    """Finds the class table of the imported weights."""
    count = config.num_classes
    if table is None and count == len(class_tables.CATEGORIES):
        return class_tables.CATEGORIES
    if table is None:
        raise UserError(
            f"`{checkpoint.path}` has {count} classes, not COCO's 90; pass their names with `--classes FILE`."
        )
    if len(table) != count and not reset_classes:
        raise UserError(
            f"`classes` has {len(table)} classes, but `{checkpoint.path}` has {count}; "
            "use `--reset-classes` to start with a new class predictor."
        )
    return table


def read_detector(checkpoint: tensors.Checkpoint, config: ModelConfig, *, raw: bool = False) -> dict[str, np.ndarray]:
    """Reads all variables of a model.

    Args:
        checkpoint: the file.
        config: the model, with the checkpoint's number of classes.
        raw: use the values of the last step, not averages.

    Returns:
        float32 values by the path of the variable.

    Raises:
        UserError: a tensor is missing, unexpected, of the wrong shape or type, or has invalid values.
    """
    sources = names.variable_sources(config, checkpoint.naming)
    return matching.read_variables(checkpoint, sources, variables.variable_shapes(config), raw=raw)


def _without_last_class(arrays: dict[str, np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
    """Drops the last class of each anchor from the class predictor."""
    changed = {}
    for leaf in ("kernel", "bias"):
        array = arrays[f"{_PREDICTOR}pointwise/{leaf}"]
        by_anchor = array.reshape(*array.shape[:-1], -1, num_classes)
        changed[f"{_PREDICTOR}pointwise/{leaf}"] = by_anchor[..., :-1].reshape(*array.shape[:-1], -1)
    return {**arrays, **changed}


def _sole_checkpoint(folder: Path, archive: Path) -> Path:
    """Finds the checkpoint in an unpacked archive: a folder at any depth, or a file.

    Raises:
        UserError: there is no checkpoint, or more than one.
    """
    folders = [path for path in (folder, *sorted(folder.rglob("*"))) if path.is_dir() and bundles.find_prefix(path)]
    alone = [path for path in sorted(folder.rglob("*")) if path.suffix in (".h5", ".pth", ".safetensors")]
    # A SavedModel is the folder around its variables.
    found = [path for path in folders if not any(path in other.parents for other in folders)] or alone
    if len(found) != 1:
        what = ", ".join(f"`{path.relative_to(folder)}`" for path in found[:5]) or "no checkpoint"
        raise UserError(f"`{archive}` contains {what}; expected one checkpoint. Unpack it and pass the path of one.")
    return found[0]


def _with_fresh_predictor(
    arrays: dict[str, np.ndarray], config: ModelConfig
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Replaces the class predictor in a model's arrays with initial values; also returns their paths."""
    from efficientdet.model import heads

    head = heads.class_head(config)
    head.build(None)
    fresh = {variable.path: variable.numpy() for variable in head.predict.weights}
    return {**arrays, **fresh}, list(fresh)
