"""The verb `import-weights`: a checkpoint of another project becomes a weights file of ours.

Every tensor of the file is accounted for: it fills a variable, or is one of the kinds that are set aside and counted;
anything missing, left over, or of another shape stops the import. What the authors did otherwise than google/automl
(normalisation, fusion, resampling) is set in the model's config and travels with the weights.
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
# A file may claim any number without being large; ImageNet-21k has 21,841.
_MOST_CLASSES = 30_000
_PREDICTOR = "class_head/predict/"
LARGEST_CHECKPOINT = 8 * 10**9
"""Bytes that may come out of an archive; D7x, with two copies of each variable and the optimizer's, has a third."""


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
    """Of them with averaged values."""
    initialized: list[str]
    """Variables with fresh values, since the classes are others."""
    set_aside: dict[str, int]
    """What the file holds beside the network -> number of tensors."""
    notes: list[str]
    """What was decided on the way."""

    def text(self) -> str:
        """Says in a few lines what was done."""
        filled = self.num_variables - len(self.initialized)
        lines = [
            f"{self.format}: {self.model}, {self.num_classes} classes",
            f"{filled} of {self.num_variables} variables filled, {self.num_averaged} with averaged values",
        ]
        lines += [f"{count} {kind} set aside" for kind, count in self.set_aside.items() if count]
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
    """Turns a published checkpoint into a weights file of this project.

    Reads TensorFlow 1 checkpoints and Keras .h5 files of google/automl, its and NVIDIA's TensorFlow 2 checkpoints and
    SavedModels, and .pth and .safetensors files of effdet (its `tf_` models). The format and the model are found out
    from the file. Nothing in the file is executed.

    Args:
        file: a file, the prefix of a TensorFlow checkpoint, the folder of one, or a SavedModel; or one of these in a
            .tar.gz, .tgz or .zip, as google/automl publishes them.
        output: the weights file to write; <model>.safetensors if not given.
        model: preset that the checkpoint belongs to, where the file does not tell (d6 and d7 have the same variables).
        raw: take the values of the last training step also where there are averaged ones.
        classes: file with the names of the classes, one a line, or a COCO or dataset JSON with `categories`; not
            needed for COCO's 90.
        reset_classes: `classes` are others than the checkpoint's, as many or not: the class predictor starts afresh.
        advprop: the weights were trained with AdvProp: pixels in -1..1, black padding.
        overwrite: replace the output.

    Returns:
        What was read, what was set aside, what was decided.

    Raises:
        UserError: the file cannot be read, or does not fit the model.
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
        raise UserError(f"`{target}` exists; give another `--output`, or `--overwrite`.")
    files.check_writable(target)
    notes: list[str] = []
    config = with_habits(config, checkpoint, advprop=advprop, notes=notes)
    if reset_classes and classes is None:
        raise UserError(
            "`reset_classes` is on, but `classes` is not given; name the new classes with `--classes FILE`."
        )
    table = None if classes is None else class_tables.read_classes(classes)
    arrays = read_detector(checkpoint, config, raw=raw)
    if checkpoint.naming == "nvidia_objects" and config.num_classes == _NVIDIA_CLASSES:
        arrays = _without_last_class(arrays, _NVIDIA_CLASSES)
        config = dataclasses.replace(config, num_classes=_NVIDIA_CLASSES - 1)
        notes.append("91 outputs an anchor, of which the last was never used; 90 are kept")
    categories = _categories(checkpoint, config, table, reset_classes)
    initialized: list[str] = []
    if reset_classes:
        config = dataclasses.replace(config, num_classes=len(categories))
        arrays, initialized = _with_fresh_predictor(arrays, config)
    weights.save(target, arrays, config, categories)
    if checkpoint.averages:
        notes.append("the values are " + ("those of the last step (`--raw`)" if raw else "averages"))
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
    """Raises if a checkpoint holds no detector of a kind that can be imported."""
    if checkpoint.naming in names.BACKBONES:
        raise UserError(
            f"`{checkpoint.path}` ({checkpoint.format}) holds a backbone without a detector; "
            "train from it with `efficientdet train PRESET --backbone FILE`."
        )
    tensors = checkpoint.tensors
    heads = [name for name in tensors if re.match(r"class_net\.conv_rep\.\d+\.conv_pw\.", name)]
    if heads and not any(name.endswith("bias") for name in heads):
        raise UserError(
            f"`{checkpoint.path}` is one of effdet's own models, without the biases and the padding of the published "
            "ones; its `tf_efficientdet_*` models can be imported."
        )


def recognize(checkpoint: tensors.Checkpoint, model: str = "", *, any_twin: bool = False) -> ModelConfig:
    """Finds out which preset a checkpoint belongs to, by the names and shapes of its tensors.

    Args:
        checkpoint: the file.
        model: name of a preset, or empty.
        any_twin: of presets with the same variables (d6 and d7), take any.

    Returns:
        The preset's model, with the checkpoint's number of classes.

    Raises:
        UserError: it belongs to none, or could belong to several.
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
            f"`{checkpoint.path}` holds no EfficientDet that is known here ({len(present)} tensors, such as "
            f"`{min(present, default='none')}`)."
        )
    best = [name for name, distance in distances.items() if distance == min(distances.values())]
    named = [name for name in best if re.search(rf"(?<![0-9a-z]){name}(?![0-9a-z])", _place(checkpoint))]
    if len(best) > 1 and len(named) != 1 and not any_twin:
        raise UserError(f"`{checkpoint.path}` may be {' or '.join(best)}; say which with `--model`.")
    config = presets.find_preset((named or best)[0]).model
    return dataclasses.replace(config, num_classes=_count_classes(checkpoint, config))


def _place(checkpoint: tensors.Checkpoint) -> str:
    """Names a file and its folder, which may tell what is in it (`advprop/`, `efficientdet-d6/`); the rest does not."""
    return "/".join(checkpoint.path.absolute().parts[-2:]).lower()


def _has_channels(checkpoint: tensors.Checkpoint, config: ModelConfig) -> bool:
    """Tells whether a checkpoint's heads have the channels of a model."""
    source = names.variable_sources(config, checkpoint.naming)["box_head/predict/pointwise/kernel"]
    tensor = matching.pick(checkpoint, source.name)
    return tensor is not None and matching.our_shape(tensor, source)[2:3] == (config.feature_channels,)


def _count_classes(checkpoint: tensors.Checkpoint, config: ModelConfig) -> int:
    """Computes the classes from the outputs of the class predictor."""
    source = names.variable_sources(config, checkpoint.naming)[f"{_PREDICTOR}pointwise/bias"]
    tensor = matching.pick(checkpoint, source.name)
    per_cell = config.num_octaves * len(config.aspect_ratios)
    if tensor is None or len(tensor.shape) != 1 or not tensor.shape[0] or tensor.shape[0] % per_cell:
        shape = "missing" if tensor is None else f"of the shape {tensor.shape}"
        raise UserError(
            f"`{checkpoint.path}`: the class predictor's bias `{source.name}` is {shape}; expected {per_cell} numbers "
            "a class."
        )
    count = tensor.shape[0] // per_cell
    if count > _MOST_CLASSES:
        raise UserError(
            f"`{checkpoint.path}`: the class predictor's bias `{source.name}` is of the shape {tensor.shape}, which is "
            f"{count:,} classes; expected {_MOST_CLASSES:,} at most."
        )
    return count


def with_habits(
    config: ModelConfig, checkpoint: tensors.Checkpoint, *, advprop: bool = False, notes: list[str] | None = None
) -> ModelConfig:
    """Sets what the authors of a checkpoint did otherwise than google/automl.

    Args:
        config: the model.
        checkpoint: the file.
        advprop: the weights were trained with AdvProp, whatever the file is called.
        notes: gets a sentence for each difference.
    """
    notes = [] if notes is None else notes
    if checkpoint.naming == "nvidia_objects":
        notes.append(
            "NVIDIA: pixels normalised twice, no ReLU on fusion weights, images resampled from corners, features "
            "enlarged from centres"
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
        notes.append("AdvProp: pixels in -1..1, black padding" + ("" if advprop else ", as its name says"))
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
            f"`{checkpoint.path}` has {count} classes, not COCO's 90; give their names with `--classes FILE`."
        )
    if len(table) != count and not reset_classes:
        raise UserError(
            f"`classes` has {len(table)} classes, `{checkpoint.path}` has {count}; "
            "give `--reset-classes` to begin with a new class predictor."
        )
    return table


def read_detector(checkpoint: tensors.Checkpoint, config: ModelConfig, *, raw: bool = False) -> dict[str, np.ndarray]:
    """Reads all variables of a model.

    Args:
        checkpoint: the file.
        config: the model, with the checkpoint's number of classes.
        raw: take the values of the last step, not averages.

    Returns:
        Path of the variable -> float32 values.

    Raises:
        UserError: a tensor is missing, left over, or of another shape or type, or has values that cannot be.
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
    """Finds what an archive holds: the folder of a checkpoint, also inside others, or a file that could be one.

    Raises:
        UserError: there is nothing of that kind, or more than one.
    """
    folders = [path for path in (folder, *sorted(folder.rglob("*"))) if path.is_dir() and bundles.find_prefix(path)]
    alone = [path for path in sorted(folder.rglob("*")) if path.suffix in (".h5", ".pth", ".safetensors")]
    # A SavedModel is the folder around its variables.
    found = [path for path in folders if not any(path in other.parents for other in folders)] or alone
    if len(found) != 1:
        what = ", ".join(f"`{path.relative_to(folder)}`" for path in found[:5]) or "no checkpoint"
        raise UserError(f"`{archive}` holds {what}; expected one checkpoint. Unpack it and name one.")
    return found[0]


def _with_fresh_predictor(
    arrays: dict[str, np.ndarray], config: ModelConfig
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Puts the initial values of a class predictor into a model's arrays; also returns their paths."""
    from efficientdet.model import heads

    head = heads.class_head(config)
    head.build(None)
    fresh = {variable.path: variable.numpy() for variable in head.predict.weights}
    return {**arrays, **fresh}, list(fresh)
