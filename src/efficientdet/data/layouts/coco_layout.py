"""Finds the JSON files and images of a COCO dataset in the layouts that tools write.

In this order: `<split>/_annotations.coco.json` (Roboflow); `annotations/instances_<split>.json` (COCO, CVAT) or another
file there; one file next to `images/` (`instances.json`, Label Studio's `result.json`, any name); `<split>/<any>.json`.
"""

import re
from pathlib import Path

from efficientdet.data import sources
from efficientdet.data.reading import lookup

CocoSplit = tuple[str, Path, Path]
"""Name of a split, its annotation file, its image folder."""

_ROBOFLOW = "_annotations.coco.json"
_SINGLE = ("instances.json", "annotations.json", _ROBOFLOW)
_OTHER_TASKS = ("captions", "person_keypoints", "stuff", "image_info", "panoptic")
_IMAGE_FOLDERS = ("images", "Images", "JPEGImages", "data", "img", "imgs")
_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_HEAD_BYTES, _TAIL_BYTES, _LITTLE_BYTES = 2**20, 2**18, 256
_BEFORE_JSON = b"\xef\xbb\xbf \t\r\n"


def find(root: Path) -> list[CocoSplit]:
    """Finds the splits of a known layout; empty if there are none."""
    nested = [path for path in sorted(root.glob("*/" + _ROBOFLOW)) if not lookup.is_hidden(path.parent)]
    if nested:
        return [(sources.normalize_split(path.parent.name), path, _beside(path)) for path in nested]
    for folder in sorted(root.glob("[Aa]nnotations")):
        files = _choose(lookup.visible(folder.glob("*.json")))
        if files:
            return [_pair(root, path) for path in files]
    singles = [root / name for name in _SINGLE if (root / name).is_file()]
    if singles:
        return [("train", singles[0], _beside(singles[0]))]
    files = _choose(lookup.visible(root.glob("*.json")))
    if files:
        return [_pair(root, path, is_only=len(files) == 1) for path in files]
    inner = [path for path in lookup.visible(root.glob("*/*.json")) if sources.split_in(path.parent.name)]
    inner = [path for path in inner if looks_like_coco(path) and not lookup.is_hidden(path.parent)]
    return [(sources.split_in(path.parent.name) or "", path, _beside(path)) for path in inner]


def looks_like_coco(path: Path) -> bool:
    """Checks whether the beginning and end of a JSON file have at least two of COCO's three lists."""
    try:
        with path.open("rb") as file:
            content = file.read(_HEAD_BYTES)
            size = file.seek(0, 2)
            if size > _HEAD_BYTES:
                file.seek(max(size - _TAIL_BYTES, _HEAD_BYTES))
                content += file.read()
    except OSError:
        return False
    is_object = content.lstrip(_BEFORE_JSON).startswith(b"{")
    return is_object and len(set(_LISTS.findall(content))) >= 2


def describe_other_tasks(files: lookup.Files) -> str:
    """Names the first COCO file for another task, for an error; empty if there is none."""
    names = (Path(path).name for path in files.paths() if path.endswith(".json"))
    found = next((name for name in names if name.startswith(_OTHER_TASKS)), None)
    return f"`{found}` is for another task and has no boxes. " if found else ""


def _choose(files: list[Path]) -> list[Path]:
    """Picks the files with boxes: instances_*.json, or else those that look like COCO's, keypoints last.

    Skips lists of detections, which programs write next to them (instances_val_results.json).
    """
    instances = [path for path in files if path.name.startswith("instances_")]
    others = [path for path in files if not path.name.startswith(_OTHER_TASKS) and looks_like_coco(path)]
    keypoints = [path for path in files if path.name.startswith("person_keypoints_")]
    return [path for path in instances if not _is_list(path)] or others or keypoints or instances


def _is_list(path: Path) -> bool:
    """Checks whether a JSON file is a list."""
    try:
        with path.open("rb") as file:
            return file.read(_LITTLE_BYTES).lstrip(_BEFORE_JSON).startswith(b"[")
    except OSError:
        return False


def _pair(root: Path, path: Path, is_only: bool = False) -> CocoSplit:
    """Pairs annotations/instances_<split>.json with its image folder."""
    name = path.stem.removeprefix("instances_").removeprefix("person_keypoints_")
    known = sources.normalize_split(name)
    split = sources.split_in(name) or ("train" if is_only else name) if known == name else known
    names = [name, split, *(word for word in name.split("_") if sources.normalize_split(word) == split)]
    return split, path, find_images(root, names)


def _beside(path: Path) -> Path:
    """Finds the image folder of an annotation file that is in it or next to it."""
    return find_images(path.parent, [])


def find_images(root: Path, names: list[str]) -> Path:
    """Picks an image folder: that of the split, or else images/, or else the root."""
    of_split = [root / name for name in names] + [root / f / name for f in _IMAGE_FOLDERS[:2] for name in names]
    candidates = [*of_split, *(root / name for name in _IMAGE_FOLDERS)]
    return next((folder for folder in candidates if folder.is_dir()), root)
