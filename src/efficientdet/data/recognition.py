"""Detects the annotation format of a folder by the contents of its files, not by their names.

A few files of each type in each folder are opened. If no supported format is found, the error says what the files look
like and where they are.
"""

import collections
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efficientdet.data import registry, sources
from efficientdet.data.formats import (
    coco,
    createml,
    image_folder,
    label_studio,
    labelme,
    open_images,
    supervisely,
    tables,
    via,
    voc,
    yolo,
)
from efficientdet.data.parsing import fields
from efficientdet.data.reading import gallery
from efficientdet.errors import UserError

_SAMPLES_A_FOLDER = 12
_MAX_SAMPLES = 400
_HEAD_BYTES = 2**20
_MAX_PARSED_BYTES = 2**26
_NUMBERS = re.compile(r"\d+(\s+[-+0-9.eE]+){4,}\s*")
_TEXTS = {
    "KITTI labels": re.compile(r"[A-Za-z_]+(\s+-?[0-9.]+){14,15}\s*"),
    "DOTA labels (convert them to YOLO oriented boxes)": re.compile(
        r"(imagesource|gsd):.*|(-?[0-9.]+\s+){8}\S+\s+[0-2]\s*"
    ),
    "VisDrone or MOT labels (convert them to CSV)": re.compile(r"-?[0-9.]+(,-?[0-9.]+){7,9},?\s*"),
    "OIDv4 toolkit labels, `class xmin ymin xmax ymax` (convert them to CSV)": re.compile(
        r"[^\d\s].*?(\s+[0-9.]+){4}\s*"
    ),
    "a keras-yolo3 list, `image xmin,ymin,xmax,ymax,class ...` (convert it to CSV)": re.compile(
        r"\S.*?(\s+[0-9.]+(,[0-9.]+){4})+\s*"
    ),
}

_JSON: dict[str, Callable[[Any], bool]] = {
    "labelme": labelme.is_document,
    "via": via.is_document,
    "supervisely": supervisely.is_document,
    "labelstudio": label_studio.is_document,
    "createml": createml.is_document,
}
# Unsupported formats, by the fields of a JSON object or of the objects in a JSON list.
_OTHERS = {
    "VoTT JSON (export as `Pascal VOC` or CSV)": {"asset", "regions"},
    "a VIA 3 project (export the annotations as COCO)": {"project", "config", "metadata", "view"},
    "Datumaro JSON (export as COCO)": {"categories", "items"},
    "detections in COCO's results format (use them with `evaluate`)": {"image_id", "category_id", "score"},
    "BDD100K or Scalabel JSON": {"name", "labels"},
    "a Labelbox export": {"data_row", "projects"},
    "Azure JSON lines": {"image_url", "label"},
    "Vertex AI JSON lines": {"imageGcsUri"},
    "COCO captions (no boxes; use instances_*.json)": {"images", "annotations"},
}
# Generic descriptions of files that may belong to another program.
_TABLE_WITH, _JSON_OF_FIELDS = "a table with the columns", "JSON with the fields"
_BY_SUFFIX = {
    ".tfrecord": "TFRecords (train on them directly: `--data.train 'FOLDER/*.tfrecord'`)",
    ".tfrecords": "TFRecords (train on them directly: `--data.train 'FOLDER/*.tfrecords'`)",
    ".record": "TFRecords (train on them directly: `--data.train 'FOLDER/*.record'`)",
    ".parquet": "a Parquet file (load it with `datasets` and save images and a metadata.jsonl)",
    ".manifest": "a SageMaker manifest",
    ".xlsx": "an Excel workbook (save the sheet as `CSV UTF-8`)",
    ".xls": "an Excel workbook (save the sheet as `CSV UTF-8`)",
    ".mat": "MATLAB data",
    ".pkl": "a Python pickle, which is never opened",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    **dict.fromkeys(sources.ARCHIVE_SUFFIXES, "an archive (unpack it first)"),
}


def recognize(folder: Path) -> registry.Format:
    """Detects the annotation format of a dataset.

    Args:
        folder: the dataset.

    Returns:
        The format.

    Raises:
        UserError: no known format, or more than one; the error says what the folder contains.
    """
    listed = gallery.Gallery(folder)
    seen = _survey(listed)
    found: list[registry.Format] = [name for name in registry.NAMES if name in seen]
    if not found:  # by names only now, since they fit several formats: annotations/*.json could be any of them
        roots: dict[registry.Format, Callable[[Path], bool]]
        roots = {"coco": coco.is_root, "voc": voc.is_root, "yolo": yolo.is_root}
        if any(path.suffix.lower() == ".json" for paths in seen.values() for path in paths):
            del roots["coco"]  # its content was recognized as something else
        if seen.keys() & _TEXTS.keys():
            del roots["yolo"]
        found = [name for name, is_root in roots.items() if _has_root(folder, is_root)]
    if len(found) > 1:
        which = " and ".join(f"{name} ({_example(listed, seen.get(name, []))})" for name in found)
        raise UserError(f"`{folder}` looks like {which}; choose one: `efficientdet convert {found[0]} {folder} ...`.")
    if not found:
        raise UserError(_describe(folder, listed, seen))
    return found[0]


def _has_root(folder: Path, is_root: Callable[[Path], bool]) -> bool:
    """Checks whether the folder or a subfolder is a dataset; if there are several, the reader reports it."""
    try:
        return sources.find_root(folder, is_root) is not None
    except UserError:
        return True


def _survey(listed: gallery.Gallery) -> dict[str, list[Path]]:
    """Samples a few files of each type in each folder; returns what they look like -> the files."""
    taken: collections.Counter[tuple[Path, str]] = collections.Counter()
    num_samples = 0
    seen: dict[str, list[Path]] = {}
    for path in listed.others:
        suffix = path.suffix.lower()
        if not path.is_file():  # reading a pipe would block
            continue
        if taken[path.parent, suffix] >= _SAMPLES_A_FOLDER or num_samples >= _MAX_SAMPLES:
            continue
        taken[path.parent, suffix] += 1
        num_samples += 1
        kind = _kind(path, suffix)
        if kind:
            seen.setdefault(kind, []).append(path)
    return seen


def _kind(path: Path, suffix: str) -> str | None:
    """Returns what a file looks like: a format's name, a phrase for an unsupported one, or None."""
    try:
        if suffix == ".json":
            return _kind_of_json(path)
        if suffix == ".xml":
            return _kind_of_xml(_head(path))
        if suffix in (*tables.SUFFIXES, ".jsonl"):
            return _kind_of_table(path, suffix)
        if suffix == ".txt":
            return _kind_of_text(path)
        if suffix in (".yaml", ".yml"):
            return "yolo" if re.search(rb"^names\s*:", _head(path), re.MULTILINE) else None
    except UserError as error:
        return f"a file that cannot be read: {str(error).rstrip('.')}"
    return _BY_SUFFIX.get(suffix)


def _kind_of_json(path: Path) -> str | None:
    """Returns what a JSON file looks like; only the beginning of very large files is read."""
    if path.stat().st_size > _MAX_PARSED_BYTES:
        head = _head(path)
        return "coco" if re.search(rb'"(images|info|licenses)"\s*:', head) else None
    document = fields.load_json(path)
    if isinstance(document, dict) and isinstance(document.get("images"), list) and "categories" in document:
        return "coco"
    if isinstance(document, dict) and {"version", "format", "source", "categories", "splits"} <= document.keys():
        return "already converted (train on it: `--data.train FOLDER`)"
    for name, is_document in _JSON.items():
        if is_document(document):
            return name
    entry = document[0] if isinstance(document, list) and document else document
    if isinstance(entry, dict) and isinstance(entry.get("images"), list) and _has_boxes(entry):
        if document is entry:
            return "COCO without `categories`, which name the classes (add them to the file)"
        return "a list of COCO documents (expected one per file)"
    return _phrase_for_json(entry) if isinstance(entry, dict) else None


def _phrase_for_json(entry: dict[str, Any]) -> str | None:
    """Describes a JSON object in an unsupported format by its fields."""
    known = next((phrase for phrase, needed in _OTHERS.items() if needed <= entry.keys()), None)
    return known or (f"{_JSON_OF_FIELDS} `{_shown(list(entry))}`" if entry else None)


def _has_boxes(document: dict[str, Any]) -> bool:
    """Checks whether the first annotation of a document has a box."""
    entries = document.get("annotations")
    return isinstance(entries, list) and bool(entries) and isinstance(entries[0], dict) and "bbox" in entries[0]


def _kind_of_xml(head: bytes) -> str | None:
    """Returns what an XML file looks like by its beginning, in UTF-16 too."""
    plain = head.replace(b"\0", b"")
    if re.search(rb"<annotations[\s>]", plain):
        if re.search(rb"<track[\s>]", plain):
            return "CVAT's video format (export as `CVAT for images 1.1`)"
        return "cvat" if re.search(rb"<image[\s>]", plain) else None
    return "voc" if re.search(rb"<annotation[\s>]", plain) else None


def _kind_of_table(path: Path, suffix: str) -> str | None:
    """Returns what a CSV file looks like by its first lines, or a JSON-lines file by its first line."""
    if path.name.lower() in image_folder.FILES:
        rows = [row for row, _ in image_folder.load_rows(path)]
        if any(map(image_folder.is_row, rows)):
            return "imagefolder"
    if suffix == ".jsonl":
        return _kind_of_json_lines(path)
    rows_of_cells = list(itertools.islice(fields.stream_rows(path), 1))
    if not rows_of_cells:
        return None
    if open_images.is_header(rows_of_cells[0][1]):
        return "openimages"
    if via.is_header(rows_of_cells[0][1]):
        return "via"
    if tables.is_boxes(rows_of_cells):
        return "csv"
    return None if tables.is_classes(rows_of_cells) else _phrase_for_table(rows_of_cells[0][1])


def _kind_of_json_lines(path: Path) -> str | None:
    """Returns what a JSON-lines file looks like by its first line."""
    first = _head(path).decode("utf-8-sig", "replace").strip().partition("\n")[0]
    try:
        entry = json.loads(first)
    except (ValueError, RecursionError):
        return None
    return _phrase_for_json(entry) if isinstance(entry, dict) else None


def _phrase_for_table(cells: list[str]) -> str:
    """Describes a CSV file without boxes by its first line."""
    return (
        f"{_TABLE_WITH} `{_shown(cells)}` (expected filename, class, xmin, ymin, xmax, ymax, or bbox_x, bbox_y, "
        "bbox_width, bbox_height instead of the corners)"
    )


def _shown(names: list[str]) -> str:
    """Lists the first few names in one line."""
    return ", ".join(" ".join(name.split())[:30] for name in names[:8]) + (", ..." if len(names) > 8 else "")


def _kind_of_text(path: Path) -> str | None:
    """Returns what a text file looks like by its first lines."""
    lines = [line for line in _head(path).decode("utf-8", "replace").splitlines()[:5] if line.strip()]
    if lines and all(_NUMBERS.fullmatch(line) for line in lines):
        return "yolo"
    phrases = (phrase for phrase, form in _TEXTS.items() if lines and all(form.fullmatch(line) for line in lines))
    return next(phrases, None)


def _head(path: Path) -> bytes:
    """Reads the beginning of a file."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}.") from error


def _example(listed: gallery.Gallery, paths: list[Path]) -> str:
    """Names the evidence for a format: one file, or the folders."""
    return f"see `{listed.key(paths[0])}`" if paths else "by its folder names"


def _describe(folder: Path, listed: gallery.Gallery, seen: dict[str, list[Path]]) -> str:
    """Describes the contents of a folder that is not a dataset in a known format."""
    kinds = sorted(seen, key=lambda kind: kind.startswith((_TABLE_WITH, _JSON_OF_FIELDS)))
    looks = [f"`{listed.key(seen[kind][0])}` looks like {kind}" for kind in kinds]
    looks = [text.replace("looks like a file that", "is a file that") for text in looks]
    looks = [text.replace("looks like already converted", "is already converted") for text in looks]
    looks_like = f" {'; '.join(looks[:3])}." if looks else ""
    return (
        f"`{folder}` is not a dataset in a known format. It contains {listed.contents()}.{looks_like} "
        f"Supported formats: {', '.join(registry.NAMES)}; docs/data.md describes their layouts."
    )
