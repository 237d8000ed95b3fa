"""Reads the description of a YOLO dataset: its class names, the images of each split, and where the labels are.

Supports `data.yaml` (Ultralytics, Roboflow), `obj.data` (darknet, CVAT's YOLO 1.1), and a list of class names
(`classes.txt`, `obj.names`, `_darknet.labels`) with `images/` and `labels/`, one folder per split, or everything in one
folder (labelImg).
"""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

from efficientdet.data import sources
from efficientdet.data.layouts import yolo_classes
from efficientdet.data.parsing import yaml_text
from efficientdet.data.reading import lookup
from efficientdet.errors import UserError

_SPLITS = ("train", "val", "test")
_YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_DESCRIPTIONS = (".yaml", ".yml", ".data")
_MISSING_SPLIT = "splits skipped, since their folder or list was not found"
_FOUND_BY_END = "folders found by matching the end of their path"
_OTHER_NAMES = "lists of classes ignored, since they differ from the names in the YAML file"
_OTHER_NUMBER = "class counts ignored, since they differ from the number of names"
_NOT_SPLITS = {
    "path",
    "names",
    "nc",
    "download",
    "classes",
    "backup",
    "results",
    "eval",
    "kpt_shape",
    "flip_idx",
    "task",
}
_LABEL_FOLDERS = ("labels", "Labels", "label")


@dataclasses.dataclass(kw_only=True)
class Description:
    """What the files of a dataset say about it.

    Attributes:
        names: name of each class number.
        splits: images of each split.
        files: files that this was read from.
        keypoints: keypoints after each box, and numbers per keypoint; None if not given.
        problems: what was changed or dropped.
    """

    names: dict[int, str]
    splits: dict[str, list[Path]]
    files: list[Path]
    keypoints: tuple[int, int] | None = None
    problems: list[sources.Problem] = dataclasses.field(default_factory=list)


def is_root(folder: Path) -> bool:
    """Checks whether the folder itself looks like a dataset in this format."""
    if _yaml_files(folder) or _find_data_file(folder) is not None:
        return True
    return bool(yolo_classes.find_lists(folder)) and _has_images(folder)


def describe(root: Path, finder: lookup.Files, wanted: tuple[str, ...], classes: Path | None) -> Description:
    """Reads the description of the dataset in a folder.

    Args:
        root: the folder.
        finder: finds the images named in lists.
        wanted: requested splits; all if empty.
        classes: file of class names that replaces the dataset's.
    """
    path = _choose_yaml(_yaml_files(root))
    document: dict[str, Any] = {}
    keypoints = None
    entries = _Entries(root, root, finder, wanted)
    if path is not None:
        document = yaml_text.load(path)
        keypoints = _keypoints(document.get("kpt_shape"), path)
        base = path.parent / str(document.get("path") or ".")
        # `path` is often the dataset's location on its author's machine.
        entries = _Entries(base if base.is_dir() else path.parent, path.parent, finder, wanted)
    elif (data_file := _find_data_file(root)) is not None:
        path = data_file
        document = _read_data_file(path)
    class_file = classes or yolo_classes.list_of(document, path, root)
    if class_file is not None:
        names = dict(enumerate(sources.read_classes(class_file)))
    elif path is not None:
        names = yolo_classes.parse(document.get("names"), path)
        entries.check_number(document.get("nc"), len(names), path)
        entries.check_lists(root, names, path)
    else:
        raise UserError(f"`{root}` has no class names; use `--classes` with a file that has one name per line.")
    splits = entries.of_document(document, path) if path is not None else entries.of_folders()
    files = [file for file in (path, class_file) if file is not None] + entries.lists
    return Description(names=names, splits=splits, files=files, keypoints=keypoints, problems=entries.problems)


def label_folders(image: Path) -> list[Path]:
    """Lists the folders where the label file of an image may be, best first.

    The path with its last `images` replaced by `labels`; next to the image; a folder `labels` next to the image's own.
    """
    parts = list(image.parent.parts)
    places = [i for i, part in enumerate(parts) if part.lower() == "images"]
    folders: list[Path] = []
    if places:
        before, after = Path(*parts[: places[-1]]), parts[places[-1] + 1 :]
        folders += [before.joinpath(name, *after) for name in _LABEL_FOLDERS]
    folders.append(image.parent)
    if places and parts[places[-1] + 1 :]:
        folders += [before / name for name in _LABEL_FOLDERS[:1]]
    folders += [image.parent / _LABEL_FOLDERS[0], image.parent.parent / _LABEL_FOLDERS[0]]
    folders.append(image.parent.parent / _LABEL_FOLDERS[0] / image.parent.name)
    return list(dict.fromkeys(folders))


class _Entries:
    """Finds the images of splits, and reports what is missing.

    Attributes:
        lists: list files that were read.
        problems: what was skipped or found elsewhere.
    """

    def __init__(self, base: Path, parent: Path, finder: lookup.Files, wanted: tuple[str, ...]):
        self._base, self._parent, self._finder = base, parent, finder
        self._wanted = tuple(sources.normalize_split(name) for name in wanted)
        self.lists: list[Path] = []
        self.problems: list[sources.Problem] = []

    def of_document(self, document: dict[str, Any], path: Path) -> dict[str, list[Path]]:
        """Reads the splits named in a YAML or .data file; missing ones are skipped, except train and requested ones."""
        keys = [key for key in document if sources.normalize_split(key) in _SPLITS] or [
            key for key, value in document.items() if key not in _NOT_SPLITS and self._is_there(value)
        ]
        keys.sort(key=lambda key: [*_SPLITS, sources.normalize_split(key)].index(sources.normalize_split(key)))
        if keys and self._wanted:
            sources.take_splits([sources.normalize_split(key) for key in keys], self._wanted, path)
        splits: dict[str, list[Path]] = {}
        missing: list[tuple[str, str]] = []
        for key in keys:
            split = sources.normalize_split(key)
            entries = document[key]
            if yaml_text.is_absent(entries) or (self._wanted and split not in self._wanted):
                continue
            entries = [entries] if isinstance(entries, str) else entries
            if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
                raise UserError(f"`{path}`: `{key}` is {str(entries)[:60]!r}; expected an image folder.")
            for entry in entries:
                found = self._find(entry, split)
                if found is not None:
                    splits.setdefault(split, []).extend(self._images(found, split))
                elif split == "train" or split in self._wanted:
                    raise UserError(
                        f"`{path}`: `{key}` is `{entry}`, but {self._base / entry} was not found"
                        f"{self._what_is_there()}."
                    )
                else:
                    missing.append((split, entry))
        if not splits and (path.suffix == ".data" or not keys):
            return self.of_folders()
        if not splits:
            raise UserError(
                f"`{path}` names no existing image folder; expected `train` and `val`{self._what_is_there()}."
            )
        for split, entry in missing:
            detail = f"in {path.name}, `{split}` is `{entry}`, but {self._base / entry} was not found"
            self.problems.append(
                sources.Problem(kind=_MISSING_SPLIT, split=next(iter(splits)), file_name=path.name, detail=detail)
            )
        return splits

    def check_number(self, declared: Any, number: int, path: Path) -> None:
        """Reports a number of classes that differs from the number of names."""
        if not yaml_text.is_absent(declared) and str(declared).strip() != str(number):
            detail = f"`nc` is {declared}, `names` has {number}"
            self.problems.append(sources.Problem(kind=_OTHER_NUMBER, split="train", file_name=path.name, detail=detail))

    def check_lists(self, root: Path, names: dict[int, str], path: Path) -> None:
        """Reports a list of class names that differs from the YAML file, even if only in its order."""
        for file in yolo_classes.find_lists(root):
            with contextlib.suppress(UserError):  # an unreadable list contradicts nothing, and is reported as unused
                other = sources.read_classes(file)
                self.lists.append(file)
                if other != [names[number] for number in sorted(names)]:
                    detail = f"{', '.join(other[:5])}, but {path.name} has {', '.join(list(names.values())[:5])}"
                    self.problems.append(
                        sources.Problem(kind=_OTHER_NAMES, split="train", file_name=file.name, detail=detail)
                    )

    def of_folders(self) -> dict[str, list[Path]]:
        """Finds the splits of a dataset that does not name them: folders in images/, or else at the top level."""
        for parent in (self._base / "images", self._base / "Images", self._base):
            if not parent.is_dir():
                continue
            inner = lookup.visible(path for path in parent.iterdir() if path.is_dir())
            with_images = [path for path in inner if lookup.Files(path).images()]
            known = {split: path for path in with_images if (split := sources.split_in(path.name))}
            is_base = parent == self._base
            if known and (is_base or len(known) == len(with_images)):
                names = sources.take_splits([name for name in _SPLITS if name in known], self._wanted, parent)
                return {name: self._images(known[name], name) for name in names}
            if not is_base or not known:
                sources.take_splits(["train"], self._wanted, parent)
                return {"train": self._images(parent, "train")}
        return {}

    def _is_there(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value) and self._find(value, "train") is not None

    def _find(self, entry: str, split: str) -> Path | None:
        """Finds a folder or list file that the dataset names, if necessary without the outdated start of its path."""
        plain = entry.replace("\\", "/")
        # Roboflow writes ../train/images for train/images next to the file; darknet writes data/train.txt.
        candidates = [self._base / plain, self._parent / plain, self._parent / plain.removeprefix("../")]
        found = next((path for path in candidates if path.exists()), None)
        found = found or lookup.resolve(self._parent, plain)
        if found is not None:
            return found
        parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
        named = [i for i, part in enumerate(parts) if sources.split_in(Path(part).stem)]
        for start in range(1, (named[-1] if named else len(parts) - 1) + 1):
            path = self._parent.joinpath(*parts[start:])
            if path.exists():
                if parts[0] != "data":
                    detail = f"{entry} -> {path.relative_to(self._parent).as_posix()}"
                    self.problems.append(
                        sources.Problem(kind=_FOUND_BY_END, split=split, file_name=path.name, detail=detail)
                    )
                return path
        return None

    def _what_is_there(self) -> str:
        names = [path.name for path in lookup.visible(self._parent.iterdir()) if path.is_dir()][:8]
        return f" ({self._parent} has the folders {', '.join(names)})" if names else ""

    def _images(self, entry: Path, split: str) -> list[Path]:
        """Lists the images in a folder and its subfolders, or in a list file."""
        if not entry.is_file():
            return [Path(path) for path in lookup.Files(entry).images()]
        self.lists.append(entry)
        lines = [line.strip() for line in sources.read_text(entry).splitlines() if line.strip()]
        if not lines:
            raise UserError(f"`{entry}` is empty; expected one image per line.")
        return [self._listed(line, entry, split) for line in lines]

    def _listed(self, line: str, entry: Path, split: str) -> Path:
        """Finds one image of a list file."""
        folders = [entry.parent, self._base] if line.startswith("./") else [self._base, entry.parent]
        if line.startswith("data/") and (self._base / line[5:]).is_file():
            return self._base / line[5:]
        path, is_mended = self._finder.find(line, folders, entry)
        if path is None:
            return lookup.missing(folders[0], line, entry)
        if is_mended:
            name = path.relative_to(self._finder.root).as_posix()
            self.problems.append(
                sources.Problem(kind=sources.MENDED_NAME, split=split, file_name=name, detail=f"{line} -> {name}")
            )
        return path


def _yaml_files(folder: Path) -> list[Path]:
    """Finds the dataset's YAML file: data.yaml in any case, or else all YAML files with `names`."""
    files = lookup.visible(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    known = [path for name in _YAML_FILES for path in files if path.name.lower() == name]
    return known[:1] or [path for path in files if path.is_file() and _has_names(path)]


def _choose_yaml(files: list[Path]) -> Path | None:
    """Picks the only YAML file; several must have the same content."""
    for other in files[1:]:
        if yaml_text.load(other) != yaml_text.load(files[0]):
            raise UserError(
                f"`{files[0]}` and {other.name} both have `names`; rename the right one to data.yaml, or move the "
                "other one away."
            )
    return files[0] if files else None


def _has_names(path: Path) -> bool:
    return re.search(r"^[\"']?names[\"']?\s*:", sources.read_text(path), re.MULTILINE) is not None


def _find_data_file(folder: Path) -> Path | None:
    """Finds darknet's description: the only *.data file with `names = ...`."""
    files = [path for path in lookup.visible(folder.glob("*.data")) if "names" in _read_data_file(path)]
    return files[0] if len(files) == 1 else None


def _read_data_file(path: Path) -> dict[str, Any]:
    """Reads `key = value` lines."""
    try:
        lines = [line.partition("=") for line in sources.read_text(path).splitlines()]
    except UserError:  # a binary file that happens to have this suffix
        return {}
    return {key.strip(): value.strip() for key, sign, value in lines if sign}


def _has_images(folder: Path) -> bool:
    """Checks whether a folder has images: directly, in an image or split folder, or anywhere below."""
    if (folder / "images").is_dir() or (folder / "Images").is_dir():
        return True
    inner = [path for path in folder.iterdir() if path.is_dir() and sources.split_in(path.name)]
    if any((path / "images").is_dir() for path in inner):
        return True
    if any(lookup.is_image(path) for one in (folder, *inner) for path in one.iterdir()):
        return True
    files = lookup.Files(folder)
    # A description further down is better than a list of classes.
    return bool(files.images()) and not any(path.lower().endswith(_DESCRIPTIONS) for path in files.paths())


def _keypoints(value: Any, path: Path) -> tuple[int, int] | None:
    """Reads `kpt_shape`: the number of keypoints after each box, and of numbers per keypoint."""
    if yaml_text.is_absent(value):
        return None
    numbers = [str(number) for number in value] if isinstance(value, list) else []
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or numbers[1] not in ("2", "3"):
        raise UserError(f"`{path}`: `kpt_shape` is {str(value)[:60]!r}; expected [number of keypoints, 2 or 3].")
    return int(numbers[0]), int(numbers[1])
