"""What an export says of itself: export.json beside its files.

Format and precision, classes, what an image must be like, the settings of anchors and suppression, the version that
wrote it, how far its answers were from Keras's, and the SHA-256 of each file, which is compared whenever it is loaded.
That finds damage and mix-ups. It proves nothing about who wrote it: whoever can change a file can change its sum.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import efficientdet
from efficientdet import config as configs
from efficientdet import knobs
from efficientdet.config import Answer, ExportFormat, ExportPrecision, ModelConfig, PostprocessConfig
from efficientdet.errors import UserError
from efficientdet.storage import files
from efficientdet.structures import Category

FILE = "export.json"
FORMAT = "efficientdet-keras export 1"
GRAPHS: dict[ExportFormat, str] = {
    "saved_model": "saved_model.pb",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "openvino": "model.xml",
}
"""The file of each format that a program opens first."""
OUTPUTS: dict[Answer, tuple[str, ...]] = {
    "raw": ("class_logits", "box_deltas", "best_logits"),
    "detections": ("boxes", "labels", "scores", "num_detections"),
}
"""What each answer consists of."""

Program = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""uint8[B, H, W, 3], int32[B, 2] -> the outputs by name; B is the export's where it has one."""

LARGEST_BATCH = 4096
"""Images a call of a graph that takes a certain number."""

_LARGEST = 10**7  # bytes of export.json
_MOST_FILES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What belongs to a graph."""

    target: ExportFormat
    precision: ExportPrecision
    answer: Answer
    batch_size: int
    """Images a call; 0: any number."""
    has_letterbox: bool
    """Whether it also takes images of any size, and files of images."""
    model: ModelConfig
    """With the image size of the export."""
    categories: tuple[Category, ...]
    postprocess: PostprocessConfig
    version: str = efficientdet.__version__
    """Of the program that wrote it."""
    agreement: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How far its answers were from Keras's when it was written."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name -> SHA-256, of every file but this one."""

    def to_dict(self) -> dict[str, Any]:
        """Turns the manifest into plain JSON values, what a person wants to know first."""
        return {
            "format": FORMAT,
            "version": self.version,
            "target": self.target,
            "precision": self.precision,
            "answer": self.answer,
            "batch_size": self.batch_size,
            "has_letterbox": self.has_letterbox,
            "categories": [dataclasses.asdict(category) for category in self.categories],
            **_excerpts(self.model),
            "postprocess": knobs.to_dict(self.postprocess),
            "model": knobs.to_dict(self.model),
            "agreement": self.agreement,
            "files": self.files,
        }


def _excerpts(model: ModelConfig) -> dict[str, Any]:
    """Repeats what other programs need of the model's settings, in words of its own."""
    return {
        "preprocessing": {
            "image_size": list(model.image_size),
            "channels": "RGB",
            "type": "uint8",
            "resize": model.resize,
            "keeps_aspect_ratio": True,
            "padding": "zeros, at the bottom and right",
            "normalisation": "inside",
        },
        "anchors": {
            "levels": [model.min_level, model.max_level],
            "scale": model.anchor_scale,
            "octaves": model.num_octaves,
            "aspect_ratios": [list(ratio) for ratio in model.aspect_ratios],
        },
    }


def is_export(location: str | Path) -> bool:
    """Tells whether a location is meant as an export: its folder, or the file in it that is opened first."""
    path = Path(location).expanduser()
    if path.is_dir():
        return any((path / name).exists() for name in (FILE, *GRAPHS.values()))
    return path.suffix in {Path(name).suffix for name in GRAPHS.values()} or path.name == FILE


def write(folder: Path, manifest: Manifest) -> Manifest:
    """Writes export.json with the sums of all other files of a folder.

    Returns:
        The manifest with the sums.
    """
    found = {name: files.sha256(folder / name) for name in _list(folder)}
    complete = dataclasses.replace(manifest, files=found)
    files.write_json(folder / FILE, complete.to_dict())
    return complete


def read(location: str | Path) -> tuple[Path, Manifest]:
    """Reads the manifest of an export and compares its files with it.

    Args:
        location: the folder of an export, or a file in it.

    Returns:
        The folder and what is in it.

    Raises:
        UserError: there is no export, export.json cannot be understood, or a file is missing, left over or not the one
            that was written.
    """
    path = Path(location).expanduser()
    if not path.exists():
        raise UserError(f"`{location}` does not exist; give the folder of an export.")
    folder = path if path.is_dir() else path.parent
    manifest = _parse(folder / FILE)
    if path.is_file() and path.name not in (FILE, GRAPHS[manifest.target]):
        raise UserError(f"`{location}` does not belong to `{folder / FILE}`, which is of {GRAPHS[manifest.target]}.")
    found = set(_list(folder))
    if missing := sorted(manifest.files.keys() - found):
        raise UserError(f"`{folder / missing[0]}` is missing; export the weights again.")
    if unknown := sorted(found - manifest.files.keys()):
        raise UserError(f"`{folder / unknown[0]}` is not in `{FILE}`; an export has no other files.")
    for name, expected in manifest.files.items():
        if files.sha256(folder / name) != expected:
            raise UserError(f"`{folder / name}` is damaged or was changed: its SHA-256 is not the one in `{FILE}`.")
    return folder, manifest


def check_wishes(
    path: Path, manifest: Manifest, postprocess: PostprocessConfig | None, image_size: tuple[int, int] | None
) -> None:
    """Raises a UserError if an export was made for another size or other thresholds than those asked for."""
    if image_size not in (None, manifest.model.image_size):
        height, width = manifest.model.image_size
        raise UserError(f"`image_size` is {image_size}, but `{path}` was exported for ({height}, {width}).")
    if manifest.answer == "detections" and postprocess not in (None, manifest.postprocess):
        raise UserError(f"`postprocess` differs from that in the graph of `{path}`; export with `--answer raw`.")


def require_raw(path: Path, manifest: Manifest) -> None:
    """Raises a UserError if an export answers detections."""
    if manifest.answer != "raw":
        raise UserError(f"`{path}` answers detections, no raw predictions; export with `--answer raw`.")


def check_outputs(path: Path, manifest: Manifest, names: Any) -> None:
    """Raises a UserError unless a graph has the inputs and outputs of its manifest."""
    expected = {"images", "valid_size", *OUTPUTS[manifest.answer]}
    if set(names) != expected:
        found = ", ".join(sorted(map(str, names)))
        raise UserError(f"`{path}` has the inputs and outputs {found}; expected {', '.join(sorted(expected))}.")


def _parse(path: Path) -> Manifest:
    """Reads export.json.

    Raises:
        UserError: it is missing, or not as `write` writes it.
    """
    if not path.is_file():
        raise UserError(
            f"`{path}` is missing; an export is a folder with this file, as `efficientdet export` makes it."
        )
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"`{path}` has more than {_LARGEST:,} bytes; that is not a manifest of an export.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror or error}.") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid JSON: {error}.") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(f"`{path}` has the format {str(found)[:60]!r}; expected {FORMAT!r}. Export the weights again.")
    rest = {name: value for name, value in values.items() if name not in ("format", "preprocessing", "anchors")}
    sums, note = _check_sums(rest.pop("files", None), path), rest.pop("agreement", None)
    try:
        manifest: Manifest = knobs.from_dict(Manifest, rest, str(path))
    except TypeError as error:  # a field is missing
        raise UserError(f"`{path}` is incomplete ({error}); export the weights again.") from error
    if GRAPHS[manifest.target] not in sums:
        raise UserError(f"`{path}: files` has no {GRAPHS[manifest.target]}, the graph of {manifest.target}.")
    if any(values.get(name) != excerpt for name, excerpt in _excerpts(manifest.model).items()):
        raise UserError(f"`{path}` contradicts itself: `preprocessing` and `anchors` are not those of `model`.")
    if len(manifest.categories) != manifest.model.num_classes:
        raise UserError(
            f"`{path}` has {len(manifest.categories)} classes and a model for {manifest.model.num_classes}."
        )
    if not 0 <= manifest.batch_size <= LARGEST_BATCH:
        raise UserError(f"`{path}: batch_size` is {manifest.batch_size}; expected 0 (any) to {LARGEST_BATCH}.")
    try:
        configs.check(configs.ExperimentConfig(model=manifest.model, postprocess=manifest.postprocess))
    except UserError as error:
        raise UserError(f"`{path}` has settings that cannot work: {error}") from error
    return dataclasses.replace(manifest, files=sums, agreement=note if isinstance(note, dict) else {})


def _check_sums(sums: Any, path: Path) -> dict[str, str]:
    """Raises a UserError unless `sums` are names below the folder and sums."""
    if not isinstance(sums, dict) or not 0 < len(sums) <= _MOST_FILES:
        raise UserError(f"`{path}: files` must name the files of the export, 1 to {_MOST_FILES}.")
    for name, value in sums.items():
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or not isinstance(value, str) or len(value) != 64:
            raise UserError(f"`{path}: files` has {name[:60]!r}; expected names inside the folder and their SHA-256.")
    return sums


def _list(folder: Path) -> list[str]:
    """Lists the files of an export but its manifest, by name; links are not followed into other folders."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"`{path}` is a link; the files of an export are in its folder.")
        if path.is_file() and path != folder / FILE:
            found.append(path.relative_to(folder).as_posix())
        if len(found) > _MOST_FILES:
            raise UserError(f"`{folder}` has more than {_MOST_FILES} files; that is not an export.")
    return found
