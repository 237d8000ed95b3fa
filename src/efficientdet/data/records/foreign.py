"""TFRecords written by another program (google/automl, TF Object Detection API): scanned once for index and classes.

The scan reads every record with TensorFlow, which verifies both checksums, and hashes it. The result is cached under a
key made of the files' paths, sizes and times.
"""

import collections
import dataclasses
import glob
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import progress
from efficientdet.data.records import tfrecord
from efficientdet.errors import UserError
from efficientdet.storage import files, web
from efficientdet.structures import Category

_FORMAT = "2"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """The result of a scan: the fields of `store.Records` that do not come from the caller."""

    shards: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    categories: tuple[Category, ...]
    max_boxes: int
    num_boxes: int
    boxes_per_class: tuple[int, ...]
    checksum: str


def find(pattern: str) -> list[Path]:
    """Lists the files that match a path or a glob, by name."""
    plain = Path(pattern).expanduser()
    paths = [plain] if plain.is_file() else [Path(p) for p in sorted(glob.glob(str(plain), recursive=True))]  # noqa: PTH207
    paths = [path.absolute() for path in paths if path.is_file()]
    if not paths:
        raise UserError(f"`{pattern}` matches no files; expected a folder of records or TFRecord files.")
    return paths


def scan(paths: list[Path]) -> Scan:
    """Scans the files, or reuses an earlier scan of the same files.

    Raises:
        UserError: a file is damaged, compressed, or contains other records.
    """
    cached = web.cache_dir() / "record-indexes" / f"{_fingerprint(paths)}.npz"
    known = _load(cached)
    if known is None:
        known = _scan(paths)
        _save(known, cached)
    return known


def _scan(paths: list[Path]) -> Scan:
    """Scans every record of the files."""
    rows: list[tuple[int, int, int, int]] = []
    names: dict[int, str] = {}
    counts: collections.Counter[int] = collections.Counter()
    digest = hashlib.sha256()
    with progress.track("Scanning records", len(paths), unit="files") as tracker:
        for shard, path in enumerate(paths):
            for offset, payload in _payloads(path):
                labels = _read_record(payload, f"`{path}`, record at byte {offset - tfrecord.NUM_HEADER_BYTES}", names)
                rows.append((shard, offset, len(payload), len(labels)))
                counts.update(labels)
                digest.update(f"{len(payload)}\n".encode() + payload)
            tracker.advance()
    if not rows:
        raise UserError(f"`{paths[0]}`{' and the other files have' if len(paths) > 1 else ' has'} no records.")
    table = np.asarray(rows, np.int64)
    return Scan(
        shards=table[:, 0].astype(np.int32),
        offsets=table[:, 1],
        lengths=table[:, 2],
        categories=tuple(Category(id=number, name=names[number] or f"class_{number}") for number in sorted(names)),
        max_boxes=int(table[:, 3].max()),
        num_boxes=int(table[:, 3].sum()),
        boxes_per_class=tuple(counts[number] for number in sorted(names)),
        checksum=digest.hexdigest(),
    )


def _payloads(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields each payload of a file and its offset; TensorFlow verifies the checksums."""
    import tensorflow as tf

    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise UserError(f"`{path}` is compressed (gzip), which rules out random access; decompress it first.")
    end = 0
    try:
        with tf.device("CPU:0"):
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                yield end + tfrecord.NUM_HEADER_BYTES, record
                end += tfrecord.NUM_HEADER_BYTES + len(record) + tfrecord.NUM_FOOTER_BYTES
    except tf.errors.OpError as error:
        raise UserError(
            f"`{path}` is damaged, truncated or not a TFRecord file: the record at byte {end} cannot be read."
        ) from error
    if end != path.stat().st_size:
        raise UserError(f"`{path}` is truncated: it ends inside the record at byte {end}.")


def _read_record(payload: bytes, where: str, names: dict[int, str]) -> list[int]:
    """Checks one record, adds its classes to `names`, and returns the class id of each box."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        feature = tf.train.Example.FromString(payload).features.feature
    except DecodeError:
        raise UserError(f"{where}: not a tf.train.Example.") from None

    def values(key: str, kind: str) -> list[Any]:
        return list(getattr(feature[key], kind).value) if key in feature else []

    if not any(values(tfrecord.ENCODED, "bytes_list")):
        raise UserError(f"{where}: `{tfrecord.ENCODED}` has no image.")
    labels = values(tfrecord.LABEL, "int64_list")
    texts = values(tfrecord.TEXT, "bytes_list")
    lists = {key: values(key, "float_list") for key in tfrecord.SIDES}
    lists |= {
        tfrecord.IS_CROWD: values(tfrecord.IS_CROWD, "int64_list"),
        tfrecord.AREA: values(tfrecord.AREA, "float_list"),
    }
    lists[tfrecord.TEXT] = texts
    may_be_missing = (tfrecord.TEXT, tfrecord.IS_CROWD, tfrecord.AREA)
    for key, entries in lists.items():
        if len(entries) != len(labels) and (entries or key not in may_be_missing):
            raise UserError(f"{where}: `{key}` has {len(entries)} values, but `{tfrecord.LABEL}` has {len(labels)}.")
    for key in tfrecord.SIDES:
        if not np.isfinite(lists[key]).all():
            raise UserError(f"{where}: `{key}` has a value that is not finite.")
    for label, text in zip(labels, texts or [b""] * len(labels), strict=True):
        name = text.decode("utf-8", "replace")
        known = names.get(label) or name
        if name and name != known:
            raise UserError(f"{where}: class {label} is `{name}`, but an earlier record calls it `{known}`.")
        names[label] = known
    return labels


def _fingerprint(paths: list[Path]) -> str:
    """Hashes what changes with the files: path, size and time of each."""
    digest = hashlib.sha256(_FORMAT.encode())
    for path in paths:
        state = path.stat()
        digest.update(f"\n{path}\t{state.st_size}\t{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _save(result: Scan, path: Path) -> None:
    """Caches a scan, if the folder can be written."""

    def write(aside: Path) -> None:
        np.savez(
            aside,
            shards=result.shards,
            offsets=result.offsets,
            lengths=result.lengths,
            category_ids=np.asarray([category.id for category in result.categories], np.int64),
            category_names=np.asarray([category.name for category in result.categories], np.str_),
            num_boxes=np.asarray([result.max_boxes, result.num_boxes], np.int64),
            boxes_per_class=np.asarray(result.boxes_per_class, np.int64),
            checksum=np.asarray(result.checksum, np.str_),
        )

    try:
        files.write_aside(path, write)
    except UserError as error:
        progress.console.print(f"Warning: the index cannot be cached for next time: {error}", markup=False)


def _load(path: Path) -> Scan | None:
    """Reads a cached scan; returns None if it is missing or damaged, so that the files are scanned again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            pairs = zip(file["category_ids"].tolist(), file["category_names"].tolist(), strict=True)
            max_boxes, num_boxes = file["num_boxes"].tolist()
            return Scan(
                shards=file["shards"],
                offsets=file["offsets"],
                lengths=file["lengths"],
                categories=tuple(Category(id=number, name=name) for number, name in pairs),
                max_boxes=max_boxes,
                num_boxes=num_boxes,
                boxes_per_class=tuple(file["boxes_per_class"].tolist()),
                checksum=str(file["checksum"]),
            )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
