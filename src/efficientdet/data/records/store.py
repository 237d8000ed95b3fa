"""A split of records, ready for random access: where each record begins, and which classes there are.

A converted dataset is a folder with `dataset.json` and an index next to the shards (written by `conversion`); records
of other programs are scanned once (`foreign`). Neither needs TensorFlow once the index exists.

A split is identified by its checksum, wherever it is: the SHA-256 of its records in order, computed once by the
conversion or the scan.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.data import sources
from efficientdet.data.records import foreign, tfrecord
from efficientdet.errors import UserError
from efficientdet.structures import Category

MANIFEST = "dataset.json"
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """One split, ready for random access.

    Attributes:
        name: the split.
        paths: the shards.
        shards: int32[E], position in `paths` of each record.
        offsets: int64[E], first byte of each record's payload in its shard.
        lengths: int64[E], bytes of each record's payload.
        categories: the classes; a label is a position in it.
        max_boxes: boxes of the image that has the most, including crowds.
        num_boxes: boxes of all images, including crowds.
        boxes_per_class: boxes of each label, including crowds; None if an earlier version converted the split.
        checksum: hexadecimal checksum of the content of the whole split, even if this is only a part of it.
    """

    name: str
    paths: tuple[str, ...]
    shards: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    categories: tuple[Category, ...]
    max_boxes: int
    num_boxes: int
    boxes_per_class: tuple[int, ...] | None
    checksum: str

    def __len__(self) -> int:
        """Counts the records."""
        return len(self.offsets)


def open_records(location: str, split: str, *, may_lack_boxes: bool = False) -> Records:
    """Opens a split.

    Args:
        location: folder of a converted dataset; or the path or glob of TFRecord files, written by google/automl or the
            TF Object Detection API, which together are the split.
        split: train, val, ...
        may_lack_boxes: accept a split without any boxes instead of raising an error.

    Raises:
        UserError: nothing was found, the split does not exist, a shard is damaged, or no image has a box.
    """
    folder = Path(location).expanduser()
    if folder.is_dir():
        records = _open_converted(folder, split)
    else:
        paths = foreign.find(location)
        records = Records(name=split, paths=tuple(map(str, paths)), **vars(foreign.scan(paths)))
    if not records.num_boxes and not may_lack_boxes:
        raise UserError(
            f"`{location}` has {len(records)} images in `{split}` but no boxes, so there is no AP to compute; choose a "
            "split with boxes. (To write detections for images without boxes, use `evaluate` with an `output`.)"
        )
    return records


def first(records: Records, count: int) -> Records:
    """Takes the first records of a split.

    Raises:
        UserError: the split has fewer.
    """
    if count > len(records):
        raise UserError(f"`overfit` is {count}, but the split `{records.name}` has only {len(records)} images.")
    return _take(records, np.arange(count))


def spread(records: Records, count: int) -> Records:
    """Takes `count` records, evenly spaced over the whole split; `count` must not exceed their number."""
    return _take(records, np.arange(count) * len(records) // count)


def _take(records: Records, numbers: np.ndarray) -> Records:
    index = {name: getattr(records, name)[numbers] for name in ("shards", "offsets", "lengths")}
    return dataclasses.replace(records, **index)


def split_names(folder: Path) -> list[str]:
    """Lists the splits of a converted dataset."""
    return list(_read_manifest(folder)["splits"])


def choose_split(location: str) -> str:
    """Chooses the split to evaluate on by default: val, or else test, or else the only split.

    Args:
        location: as for `open_records`.

    Raises:
        UserError: there are several splits, but neither val nor test.
    """
    folder = Path(location).expanduser()
    names = split_names(folder) if folder.is_dir() else ["val"]
    for name in ("val", "test", *(names if len(names) == 1 else ())):
        if name in names:
            return name
    raise UserError(f"`{location}` has the splits {', '.join(names)}; choose one with `--split`.")


def index_name(split: str) -> str:
    """Returns the name of a split's index file."""
    return f"{split}.index.npz"


def read(records: Records, number: int) -> bytes:
    """Reads the payload of one record.

    Args:
        records: the split.
        number: position of the record in it.
    """
    with Path(records.paths[records.shards[number]]).open("rb") as file:
        file.seek(records.offsets[number])
        return file.read(records.lengths[number])


def locate(lengths: np.ndarray) -> np.ndarray:
    """Computes the offsets of the payloads in one shard.

    Args:
        lengths: int64[E], bytes of each payload in the order of the file.

    Returns:
        int64[E].
    """
    frame = tfrecord.NUM_HEADER_BYTES + tfrecord.NUM_FOOTER_BYTES
    before = np.concatenate([[0], np.cumsum(lengths + frame)[:-1]]) if len(lengths) else np.zeros(0)
    return (before + tfrecord.NUM_HEADER_BYTES).astype(np.int64)


def write_index(path: Path, shards: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
    """Writes the index of a split."""
    np.savez(path, shards=shards, offsets=offsets, lengths=lengths)


def _open_converted(folder: Path, split: str) -> Records:
    """Opens a split of a converted dataset."""
    manifest = _read_manifest(folder)
    if split not in manifest["splits"]:
        raise UserError(f"`{folder}` has no split `{split}`; choose from {', '.join(manifest['splits'])}.")
    try:
        entry = manifest["splits"][split]
        shards = [
            (sources.inside(folder, shard["name"], folder / MANIFEST), shard["bytes"]) for shard in entry["shards"]
        ]
        categories = tuple(Category(id=int(c["id"]), name=str(c["name"])) for c in manifest["categories"])
        num_examples, max_boxes, num_boxes = (int(entry[k]) for k in ("num_examples", "max_boxes", "num_boxes"))
        boxes_per_class = tuple(map(int, entry["boxes_per_class"])) if "boxes_per_class" in entry else None
        content = "\n".join(shard["sha256"] for shard in entry["shards"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`{folder / MANIFEST}` is damaged at {error}; convert the dataset again.") from error
    for path, size in shards:
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise UserError(f"`{path}` {state}, but {MANIFEST} says {size} bytes; copy or convert the dataset again.")
    index = _read_index(folder / index_name(split), num_examples, [size for _, size in shards])
    return Records(
        name=split,
        paths=tuple(str(path) for path, _ in shards),
        categories=categories,
        max_boxes=max_boxes,
        num_boxes=num_boxes,
        boxes_per_class=boxes_per_class,
        checksum=hashlib.sha256(content.encode()).hexdigest(),
        **index,
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Reads dataset.json."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"`{folder}` has no {MANIFEST}; pass the output folder of `efficientdet convert`, "
            f"or a glob of TFRecord files such as '{folder}{os.sep}train-*'."
        )
    try:
        manifest = json.loads(sources.read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not valid JSON: {error}; convert the dataset again.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("splits"), dict):
        raise UserError(f"`{path}` has no `splits`; convert the dataset again.")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"`{path}` has version {manifest.get('version')!r}; expected {VERSION}. Convert the dataset again."
        )
    return manifest


def _read_index(path: Path, num_examples: int, sizes: list[int]) -> dict[str, np.ndarray]:
    """Reads the index of a split and checks that each record is inside its shard."""
    try:
        with np.load(path, allow_pickle=False) as file:
            index = {name: file[name] for name in ("shards", "offsets", "lengths")}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"`{path}` is missing or damaged; convert the dataset again.") from error
    limits = np.asarray(sizes, np.int64)
    is_sound = all(values.shape == (num_examples,) for values in index.values())
    is_sound = is_sound and bool(((index["shards"] >= 0) & (index["shards"] < len(limits))).all())
    if not is_sound or not (index["offsets"] + index["lengths"] < limits[index["shards"]]).all():
        raise UserError(f"`{path}` does not match the shards; convert the dataset again.")
    return index
