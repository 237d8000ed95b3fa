"""The class names of a YOLO dataset: `names` in its YAML file, or a list with one name per line.

The list is `classes.txt` (labelImg, Label Studio), `obj.names` (darknet, CVAT) or `_darknet.labels` (Roboflow). It is
at the top of the dataset or among the labels; if each split has one, the copies must agree.
"""

from pathlib import Path
from typing import Any

from efficientdet.data import sources
from efficientdet.data.parsing import values, yaml_text
from efficientdet.data.reading import lookup
from efficientdet.errors import UserError

_LISTS = ("classes.txt", "obj.names", "predefined_classes.txt", "labels/classes.txt", "Labels/classes.txt")
_LISTS_OF_SPLITS = ("*/_darknet.labels", "*/classes.txt", "[Ll]abels/*/classes.txt", "*/[Ll]abels/classes.txt")


def find_lists(folder: Path) -> list[Path]:
    """Finds the list of class names of a dataset, or the lists of its splits."""
    for name in _LISTS:
        if (folder / name).is_file():
            return [folder / name]
    others = lookup.visible((*folder.glob("*.names"), *folder.glob("_darknet.labels")))
    if others:
        return others[:1]
    of_splits = lookup.visible(path for pattern in _LISTS_OF_SPLITS for path in folder.glob(pattern))
    return [path for path in of_splits if any(map(sources.split_in, path.relative_to(folder).parts[:-1]))]


def list_of(document: dict[str, Any], path: Path | None, root: Path) -> Path | None:
    """Finds the list of class names of a dataset without YAML; returns None if a YAML file contains the names.

    Args:
        document: contents of the file that describes the dataset.
        path: that file; None if there is none.
        root: folder of the dataset.

    Raises:
        UserError: the list named by darknet's description was not found, or the lists of the splits differ.
    """
    if path is None:
        return _only(find_lists(root))
    if path.suffix != ".data":
        return None
    name = str(document["names"]).replace("\\", "/")
    candidates = [path.parent / name, path.parent / name.rsplit("/", 1)[-1]]
    found = next((file for file in candidates if file.is_file()), None) or _only(find_lists(path.parent))
    if found is None:
        raise UserError(f"`{path}` names `{name}` as the list of classes, but {candidates[1]} was not found.")
    return found


def parse(value: Any, path: Path) -> dict[int, str]:
    """Reads `names` of a YAML file, a list or a mapping from number to name.

    Args:
        value: the value of `names`.
        path: the file, for errors.
    """
    if yaml_text.is_absent(value) or not value:
        raise UserError(
            f"`{path}` has no `names`; add a list of class names, or use `--classes` with a file that has one per line."
        )
    if not isinstance(value, list | dict):
        raise UserError(
            f"`{path}`: `names` is {str(value)[:60]!r}; expected a list of class names, such as [cat, dog]."
        )
    names: dict[int, str] = {}
    for key, name in enumerate(value) if isinstance(value, list) else value.items():
        if not (str(key).isascii() and str(key).isdecimal()):
            raise UserError(f"`{path}`: `names` has the class number {key!r}; expected 0, 1, 2 ...")
        if int(key) in names:
            raise UserError(f"`{path}`: `names` has the class number {int(key)} twice.")
        names[int(key)] = values.name(name, f"`{path}`: class {key} in `names` is")
    return names


def _only(files: list[Path]) -> Path | None:
    """Picks the only list; several must be equal."""
    for other in files[1:]:
        if sources.read_classes(other) != sources.read_classes(files[0]):
            raise UserError(
                f"`{files[0]}` and {other} differ, so the order of the classes is unclear; pass the right list with "
                "`--classes`."
            )
    return files[0] if files else None
