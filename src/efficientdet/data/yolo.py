"""YOLO's annotation format: one text file a picture, a line `class x y width height` a box.

x and y are the centre; all four are fractions of the upright picture. A longer line `class x1 y1 x2 y2 ...` is a
polygon and becomes its bounding box. Category ids are YOLO's class numbers, from 0. A picture without a label file has
no boxes.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import yaml

from efficientdet.data import images, sources
from efficientdet.errors import UserError
from efficientdet.structures import Category

_SPLITS = ("train", "val", "test")
_LARGEST = 2.0


def is_root(folder: Path) -> bool:
    """Says whether the folder itself looks like a dataset in this format."""
    return _find_yaml(folder) is not None or ((folder / "classes.txt").is_file() and (folder / "images").is_dir())


def read(source: Path, *, splits: tuple[str, ...] = (), classes: Path | None = None) -> sources.Source:
    """Reads a dataset: `data.yaml`, or `classes.txt` with images/ and labels/ (which may have a folder a split).

    Args:
        source: the folder.
        splits: take only these; all if empty.
        classes: file with the class names, one a line, in the order of their numbers from 0; replaces the dataset's.
    """
    root = sources.find_root(source, is_root)
    if root is None and classes is not None and (source / "images").is_dir():
        root = source
    if root is None:
        raise UserError(
            f"`source` {source} holds no YOLO dataset; expected data.yaml, or classes.txt with images/ and labels/."
        )
    path = _find_yaml(root)
    document = {} if path is None else _load(path)
    folders = _folders_in(root) if path is None else _folders_of(document, path)
    if path is None or classes is not None:
        names = dict(enumerate(sources.read_classes(classes or root / "classes.txt")))
    else:
        names = _names(document.get("names"), path)
    labels = {number: label for label, number in enumerate(sorted(names))}
    examples: dict[str, list[sources.Example]] = {}
    first_id = 1
    for split in sources.take_splits(folders, splits, source):
        pictures = sorted(picture for entry in folders[split] for picture in _pictures(entry, root))
        for one, next_one in itertools.pairwise(pictures):
            if one == next_one:
                raise UserError(f"`{path or root}` lists the picture {one} twice in `{split}`.")
        examples[split] = [_read_example(picture, first_id + i, labels, root) for i, picture in enumerate(pictures)]
        first_id += len(pictures)
    categories = tuple(Category(id=number, name=names[number]) for number in sorted(names))
    return sources.Source(categories=categories, splits=examples, problems=[])


def _find_yaml(folder: Path) -> Path | None:
    """Finds the dataset's YAML file: data.yaml, else the only one that has `names`."""
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (folder / name).is_file():
            return folder / name
    candidates = [
        p for p in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))) if "names:" in sources.read_text(p)
    ]
    return candidates[0] if len(candidates) == 1 else None


def _load(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(sources.read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"`{path}` is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(document, dict):
        raise UserError(f"`{path}` has no fields; expected `names`, `train` and `val`.")
    return document


def _names(value: Any, path: Path) -> dict[int, str]:
    """Reads `names`, a list or a dict from number to name."""
    pairs = (
        list(enumerate(value)) if isinstance(value, list) else list(value.items()) if isinstance(value, dict) else []
    )
    if not pairs:
        raise UserError(f"`{path}` has no `names`; expected a list of class names.")
    names: dict[int, str] = {}
    for key, name in pairs:
        if not str(key).isdecimal():
            raise UserError(f"`{path}` has the class number {key!r} in `names`; expected 0, 1, 2 ...")
        names[int(key)] = str(name).strip()
    return names


def _folders_of(document: dict[str, Any], path: Path) -> dict[str, list[Path]]:
    """Finds the folders (or list files) of each split that a YAML file names."""
    parent = path.parent
    root = parent / str(document.get("path") or ".")
    # `path` often is where the dataset lay on its author's machine.
    root = root if root.is_dir() else parent
    folders: dict[str, list[Path]] = {}
    for key in (*_SPLITS, "valid"):
        entries = document.get(key) or []
        entries = [entries] if isinstance(entries, str) else entries
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"`{path}` has {str(entries)[:60]!r} as `{key}`; expected a folder of pictures.")
        for entry in entries:
            # Roboflow writes ../train/images for what is train/images beside the file.
            candidates = [root / entry, parent / entry, parent / entry.removeprefix("../")]
            found = next((c for c in candidates if c.exists()), None)
            if found is None:
                raise UserError(f"`{path}` names `{entry}` as `{key}`, but there is no {candidates[0]}.")
            folders.setdefault(sources.normalize_split(key), []).append(found)
    if not folders:
        raise UserError(f"`{path}` names no folder of pictures; expected `train` and `val`.")
    return folders


def _folders_in(root: Path) -> dict[str, list[Path]]:
    """Finds the splits of a dataset without a YAML file: the folders in images/, else all of it as train."""
    nested = sorted(path for path in (root / "images").iterdir() if path.is_dir())
    known = {sources.normalize_split(path.name): [path] for path in nested}
    if known and set(known) <= set(_SPLITS):
        return {name: known[name] for name in _SPLITS if name in known}
    return {"train": [root / "images"]}


def _pictures(entry: Path, root: Path) -> list[Path]:
    """Lists the pictures in a folder and the folders below, or in a list file."""
    if entry.is_file():
        lines = [line.strip() for line in sources.read_text(entry).splitlines() if line.strip()]
        if not lines:
            raise UserError(f"`{entry}` is empty; expected one picture a line.")
        return [sources.inside(entry.parent if line.startswith("./") else root, line, entry) for line in lines]
    return sorted(path for path in entry.rglob("*") if path.suffix.lower() in images.SUFFIXES and path.is_file())


def _read_example(picture: Path, number: int, labels: dict[int, int], root: Path) -> sources.Example:
    """Reads the label file of one picture."""
    path = _label_path(picture)
    boxes, box_labels = [], []
    if path.is_file():
        for line_number, line in enumerate(sources.read_text(path).splitlines(), start=1):
            if line.strip():
                label, box = _read_line(line.split(), f"`{path}`, line {line_number}", labels)
                boxes.append(box)
                box_labels.append(label)
    return sources.make_example(
        id=number,
        path=picture,
        file_name=picture.relative_to(root).as_posix() if picture.is_relative_to(root) else picture.name,
        declared_size=None,
        boxes=boxes,
        labels=box_labels,
        is_normalized=True,
    )


def _label_path(picture: Path) -> Path:
    """Finds the label file: the last `images` of the path becomes `labels`; without one, beside the picture."""
    parts = list(picture.parts)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if not folders:
        return picture.with_suffix(".txt")
    parts[folders[-1]] = "labels"
    swapped = Path(*parts).with_suffix(".txt")
    beside = picture.with_suffix(".txt")
    return beside if beside.is_file() and not swapped.is_file() else swapped


def _read_line(words: list[str], where: str, labels: dict[int, int]) -> tuple[int, list[float]]:
    """Reads one line: the label, and the box yxyx as fractions of the picture."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise UserError(
            f"{where}: {' '.join(words)[:60]!r} is no list of numbers; expected `class x y width height`."
        ) from None
    if len(numbers) < 5 or (len(numbers) > 5 and (len(numbers) < 7 or len(numbers) % 2 == 0)):
        raise UserError(f"{where}: has {len(numbers)} numbers; expected `class x y width height`, or a polygon.")
    if numbers[0] not in labels:
        raise UserError(f"{where}: has the unknown class {words[0]}; `names` has {min(labels)}..{max(labels)}.")
    if any(abs(number) > _LARGEST for number in numbers[1:] if math.isfinite(number)):
        raise UserError(f"{where}: has {max(numbers[1:], key=abs):g}; expected fractions of the picture, 0..1, not px.")
    label = labels[int(numbers[0])]
    if len(numbers) == 5:
        x, y, width, height = numbers[1:]
        return label, [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
    xs, ys = numbers[1::2], numbers[2::2]
    if not all(map(math.isfinite, numbers)):
        return label, [math.nan] * 4
    return label, [min(ys), min(xs), max(ys), max(xs)]
