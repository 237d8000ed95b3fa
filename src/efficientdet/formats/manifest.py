"""The manifest of an export: export.json next to its files.

It records format and precision, classes, the expected images, the settings of anchors and suppression, the version that
wrote it, how far its results were from Keras's, and the SHA-256 of each file, which is checked on every load. That
detects damage and mix-ups but not tampering: whoever can change a file can also change its checksum.
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
"""Names of the outputs for each kind of answer."""

Program = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""uint8[B, H, W, 3], int32[B, 2] -> the outputs by name; B is the export's batch size if it is fixed."""

LARGEST_BATCH = 4096
"""Maximum fixed batch size of a graph."""

_LARGEST = 10**7  # bytes of export.json
_MOST_FILES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything there is to know about the graph of an export."""

    target: ExportFormat
    precision: ExportPrecision
    answer: Answer
    batch_size: int
    """Images per call; 0 means any number."""
    has_letterbox: bool
    """Whether it also accepts images of any size, and image files."""
    model: ModelConfig
    """Model config, with the image size of the export."""
    categories: tuple[Category, ...]
    postprocess: PostprocessConfig
    version: str = efficientdet.__version__
    """Version of the program that wrote it."""
    agreement: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How far its results were from Keras's when it was written."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 of every other file, by name."""

    def to_dict(self) -> dict[str, Any]:
        """Converts the manifest to plain JSON values, the most interesting ones first."""
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
    """Repeats the model settings that other programs need, in a self-explanatory form."""
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
    """Returns whether a location is an export: its folder, its manifest or its graph."""
    path = Path(location).expanduser()
    if path.is_dir():
        return any((path / name).exists() for name in (FILE, *GRAPHS.values()))
    return path.suffix in {Path(name).suffix for name in GRAPHS.values()} or path.name == FILE


def write(folder: Path, manifest: Manifest) -> Manifest:
    """Writes export.json with the checksums of all other files of a folder.

    Returns:
        The manifest with the checksums.
    """
    found = {name: files.sha256(folder / name) for name in _list(folder)}
    complete = dataclasses.replace(manifest, files=found)
    files.write_json(folder / FILE, complete.to_dict())
    return complete


def read(location: str | Path) -> tuple[Path, Manifest]:
    """Reads the manifest of an export and checks its files against it.

    Args:
        location: the folder of an export, or a file in it.

    Returns:
        The folder and the manifest.

    Raises:
        UserError: there is no export, export.json is not valid, or a file is missing, unexpected or changed.
    """
    path = Path(location).expanduser()
    if not path.exists():
        raise UserError(f"`{location}` does not exist; pass the folder of an export.")
    folder = path if path.is_dir() else path.parent
    manifest = _parse(folder / FILE)
    if path.is_file() and path.name not in (FILE, GRAPHS[manifest.target]):
        raise UserError(f"`{location}` does not belong to `{folder / FILE}`, which is for {GRAPHS[manifest.target]}.")
    found = set(_list(folder))
    if missing := sorted(manifest.files.keys() - found):
        raise UserError(f"`{folder / missing[0]}` is missing; export the weights again.")
    if unknown := sorted(found - manifest.files.keys()):
        raise UserError(f"`{folder / unknown[0]}` is not listed in `{FILE}`; remove it, or export the weights again.")
    for name, expected in manifest.files.items():
        if files.sha256(folder / name) != expected:
            raise UserError(f"`{folder / name}` was damaged or changed: its SHA-256 does not match `{FILE}`.")
    return folder, manifest


def check_wishes(
    path: Path, manifest: Manifest, postprocess: PostprocessConfig | None, image_size: tuple[int, int] | None
) -> None:
    """Raises a UserError if an export has a different size or different thresholds than requested."""
    if image_size not in (None, manifest.model.image_size):
        height, width = manifest.model.image_size
        raise UserError(f"`image_size` is {image_size}, but `{path}` was exported for ({height}, {width}).")
    if manifest.answer == "detections" and postprocess not in (None, manifest.postprocess):
        raise UserError(
            f"`postprocess` differs from the settings in the graph of `{path}`; export with `--answer raw`."
        )


def require_raw(path: Path, manifest: Manifest) -> None:
    """Raises a UserError if an export returns detections."""
    if manifest.answer != "raw":
        raise UserError(f"`{path}` returns detections, not raw predictions; export with `--answer raw`.")


def check_outputs(path: Path, manifest: Manifest, names: Any) -> None:
    """Raises a UserError unless a graph has the inputs and outputs of its manifest."""
    expected = {"images", "valid_size", *OUTPUTS[manifest.answer]}
    if set(names) != expected:
        found = ", ".join(sorted(map(str, names)))
        raise UserError(f"`{path}` has inputs and outputs {found}; expected {', '.join(sorted(expected))}.")


def _parse(path: Path) -> Manifest:
    """Reads export.json.

    Raises:
        UserError: it is missing, or not in the form that `write` produces.
    """
    if not path.is_file():
        raise UserError(
            f"`{path}` is missing; an export is a folder with this file, as written by `efficientdet export`."
        )
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"`{path}` has more than {_LARGEST:,} bytes; it is not the manifest of an export.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror or error}.") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid JSON: {error}.") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise UserError(f"`{path}` has format {str(found)[:60]!r}; expected {FORMAT!r}. Export the weights again.")
    rest = {name: value for name, value in values.items() if name not in ("format", "preprocessing", "anchors")}
    sums, note = _check_sums(rest.pop("files", None), path), rest.pop("agreement", None)
    try:
        manifest: Manifest = knobs.from_dict(Manifest, rest, str(path))
    except TypeError as error:  # a field is missing
        raise UserError(f"`{path}` is incomplete ({error}); export the weights again.") from error
    if GRAPHS[manifest.target] not in sums:
        raise UserError(f"`{path}: files` has no {GRAPHS[manifest.target]}, the graph of {manifest.target}.")
    if any(values.get(name) != excerpt for name, excerpt in _excerpts(manifest.model).items()):
        raise UserError(f"`{path}` is inconsistent: `preprocessing` and `anchors` do not match `model`.")
    if len(manifest.categories) != manifest.model.num_classes:
        raise UserError(
            f"`{path}` has {len(manifest.categories)} classes, but its model has {manifest.model.num_classes}."
        )
    if not 0 <= manifest.batch_size <= LARGEST_BATCH:
        raise UserError(f"`{path}: batch_size` is {manifest.batch_size}; expected 0 (any) to {LARGEST_BATCH}.")
    try:
        configs.check(configs.ExperimentConfig(model=manifest.model, postprocess=manifest.postprocess))
    except UserError as error:
        raise UserError(f"`{path}` has invalid settings: {error}") from error
    return dataclasses.replace(manifest, files=sums, agreement=note if isinstance(note, dict) else {})


def _check_sums(sums: Any, path: Path) -> dict[str, str]:
    """Raises a UserError unless `sums` maps names inside the folder to checksums."""
    if not isinstance(sums, dict) or not 0 < len(sums) <= _MOST_FILES:
        raise UserError(f"`{path}: files` must list the files of the export, 1 to {_MOST_FILES}.")
    for name, value in sums.items():
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or not isinstance(value, str) or len(value) != 64:
            raise UserError(f"`{path}: files` has {name[:60]!r}; expected names inside the folder and their SHA-256.")
    return sums


def _list(folder: Path) -> list[str]:
    """Lists the files of an export except its manifest, sorted by name; symbolic links are errors."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"`{path}` is a symbolic link; the files of an export must be in its folder.")
        if path.is_file() and path != folder / FILE:
            found.append(path.relative_to(folder).as_posix())
        if len(found) > _MOST_FILES:
            raise UserError(f"`{folder}` has more than {_MOST_FILES} files; it is not an export.")
    return found
