"""Weights in one self-describing file: safetensors, with model, classes and version as metadata.

Reading such a file never executes code, unlike pickle or a Keras archive. Variables are named by their path in the
network, `backbone/stem/kernel`; values are float32. The files of a run contain the averaged weights.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import efficientdet
from efficientdet import config as configs
from efficientdet import knobs
from efficientdet.errors import UserError
from efficientdet.model import variables
from efficientdet.storage import files
from efficientdet.structures import Category

FORMAT = "efficientdet-keras weights 1"
SUFFIX = ".safetensors"
_LONGEST_HEAD = 100 * 10**6  # bytes, the limit of safetensors; the metadata come first in the file


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """The contents of a weights file."""

    path: Path
    model: configs.ModelConfig
    categories: tuple[Category, ...]
    postprocess: configs.PostprocessConfig
    """Settings that the run with these weights was evaluated with."""
    arrays: Mapping[str, np.ndarray]
    """Path of the variable -> float32 values."""


def variable_name(variable: Any) -> str:
    """Names a variable by its path inside the model: `efficientdet/backbone/stem/kernel` -> `backbone/stem/kernel`."""
    return variable.path.split("/", 1)[1]


def named(model: Any, values: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Names arrays in the order of a model's variables; skips random generator states.

    Args:
        model: EfficientDet.
        values: one array per variable, trainable ones first.
    """
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    pairs = zip(variables, values, strict=True)
    return {variable_name(variable): value for variable, value in pairs if value.dtype == np.float32}


def save(
    path: Path,
    arrays: Mapping[str, Any],
    model: configs.ModelConfig,
    categories: Iterable[Category],
    postprocess: configs.PostprocessConfig | None = None,
) -> None:
    """Writes a weights file to a temporary file and renames it.

    Args:
        path: the file.
        arrays: path of the variable -> values.
        model: config of the model.
        categories: the classes, in the order of the labels.
        postprocess: limits and thresholds to store with the weights; None: the defaults.
    """
    metadata = {
        "format": FORMAT,
        "version": efficientdet.__version__,
        "model": json.dumps(knobs.to_dict(model)),
        "categories": json.dumps([dataclasses.asdict(category) for category in categories]),
        "postprocess": json.dumps(knobs.to_dict(postprocess or configs.PostprocessConfig())),
    }
    write_safetensors(path, {name: np.asarray(value) for name, value in arrays.items()}, metadata)


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a safetensors file to a temporary file and renames it; equal contents give equal bytes.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # ascontiguousarray turns a scalar into an array of one number, so the shape is restored.
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(contiguous, temporary, metadata)
        except SafetensorError as error:  # raised if the disk is full
            raise OSError(str(error)) from error
        _sort_metadata(temporary)

    files.write_aside(path, write)


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata of a safetensors file in place; safetensors 0.8 writes them in random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the same JSON has the same length"
        file.seek(8)
        file.write(text.ljust(length))


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays and the metadata of a safetensors file.

    Raises:
        UserError: the file is missing, truncated, or not a safetensors file.
    """
    with _opened(path) as file:
        return _read_arrays(file), dict(file.metadata() or {})


def _read_arrays(file: Any) -> dict[str, np.ndarray]:
    """Reads all arrays; together they are not larger than the file."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file; errors while reading it become a UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"`{path}` does not exist.") from error
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"`{path}` is not a complete safetensors file: {error}.") from error


def load(location: str | Path) -> Weights:
    """Reads a weights file, or the best weights of a run.

    Args:
        location: a file, or a run folder.

    Returns:
        The weights, with every variable of the model, of the right shape and finite.

    Raises:
        UserError: the file is not found or not a weights file of this project, or a variable is missing, unknown, of
            the wrong shape, or not finite; the message names the first and counts the others.
    """
    path = find(location)
    with _opened(path) as file:
        model, categories, postprocess = _read_facts(path, dict(file.metadata() or {}))
        _check_variables(path, model, file)
        arrays = _read_arrays(file)
    _check_values(path, arrays)
    return Weights(path=path, model=model, categories=categories, postprocess=postprocess, arrays=arrays)


def _read_facts(
    path: Path, metadata: dict[str, str]
) -> tuple[configs.ModelConfig, tuple[Category, ...], configs.PostprocessConfig]:
    """Reads model, classes and post-processing settings from the metadata of a weights file."""
    if metadata.get("format") != FORMAT:
        raise UserError(f"`{path}` has the format {metadata.get('format')!r}; expected {FORMAT!r}.")
    try:
        model = knobs.from_dict(configs.ModelConfig, json.loads(metadata["model"]), f"{path}: model")
        values = json.loads(metadata["postprocess"])
        postprocess = knobs.from_dict(configs.PostprocessConfig, values, f"{path}: postprocess")
        rows = json.loads(metadata["categories"])
        categories = tuple(Category(id=int(row["id"]), name=str(row["name"])) for row in rows)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"`{path}` has damaged metadata ({error}); it must have `model`, `categories` and `postprocess`."
        ) from error
    if len(categories) != model.num_classes:
        raise UserError(f"`{path}` has {len(categories)} classes, but its model has {model.num_classes}.")
    if len({category.id for category in categories}) < len(categories):
        raise UserError(f"`{path}` has two classes with the same id.")
    try:
        configs.check(configs.ExperimentConfig(model=model, postprocess=postprocess))
    except UserError as error:
        raise UserError(f"`{path}` has invalid settings: {error}") from error
    return model, categories, postprocess


def _check_variables(path: Path, model: configs.ModelConfig, file: Any) -> None:
    """Raises if the tensors of a file don't match the variables of its model.

    Nothing is loaded for this, so a file that claims a huge network without containing it costs nothing.
    """
    expected = variables.variable_shapes(model)
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    problems = [f"`{name}` is missing" for name in expected if name not in found]
    problems += [f"`{name}` is not in the model" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        shape, dtype = tuple(found[name].get_shape()), found[name].get_dtype()
        if shape != expected[name]:
            problems.append(f"`{name}` has the shape {shape}; expected {expected[name]}")
        elif dtype != "F32":
            problems.append(f"`{name}` has the type {dtype}; expected F32 (float32)")
    _raise(path, problems)


def _check_values(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises if values are not valid for a network."""
    problems = [f"`{name}` has values that are not finite" for name in arrays if not np.isfinite(arrays[name]).all()]
    problems += [
        f"`{name}` has values below 0"
        for name, array in arrays.items()
        if name.endswith("/moving_variance") and (array < 0).any()
    ]
    _raise(path, problems)


def _raise(path: Path, problems: list[str]) -> None:
    """Raises a UserError with the first problem and the number of others, if there are any."""
    if problems:
        others = f", and {len(problems) - 1} more problems" if len(problems) > 1 else ""
        raise UserError(f"`{path}` does not match its model: {problems[0]}{others}.")


def is_ours(path: Path) -> bool:
    """Returns whether a path is a weights file of this project or a run folder."""
    if path.is_dir():
        return (path / "weights").is_dir()
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = file.read(length) if length <= _LONGEST_HEAD else b""
    except OSError:
        return False
    return head.startswith(b"{") and FORMAT.encode() in head


def find(location: str | Path) -> Path:
    """Finds the weights file for `location`: the file itself, or weights/best or weights/last of a run."""
    path = Path(location).expanduser()
    if not path.exists():
        raise UserError(f"`{location}` does not exist; pass a weights file or a run folder.")
    if path.is_file():
        return path
    for name in ("best", "last"):
        candidate = path / "weights" / f"{name}{SUFFIX}"
        if candidate.is_file():
            return candidate
    raise UserError(
        f"`{location}` has no weights/best{SUFFIX}; it is not a run folder, or the run has not saved weights yet."
    )


def assign(model: Any, weights: Weights) -> None:
    """Assigns weights to a model with the same variables."""
    named = {variable_name(variable): variable for variable in model.weights}
    assert named.keys() == weights.arrays.keys()
    for name, variable in named.items():
        variable.assign(weights.arrays[name])
