"""The `download` command: fetches COCO from its server and converts it into records.

Everything is in one folder: `archives/`, `annotations/`, `images/<split>2017/`, `records/`. Steps whose result exists
are skipped, so the same command resumes after an interruption, reuses existing images, and does nothing if everything
is done. NVIDIA's script for the same purpose passed captions instead of instances to its converter, so its records had
no boxes; here the splits are converted from `instances_*.json`.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from efficientdet import progress
from efficientdet.data import conversion
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.result import Result
from efficientdet.storage import archives, connection, files, web

Split = Literal["train", "val"]

_MARKER = "download.json"
# As in NVIDIA's script.
_SHARDS = {"train": 256, "val": 32}
# Files occupy whole disk blocks, and a record is longer than its image.
_MARGIN = 1.05
# Any archive may unpack to this size, however small it is.
_LEAST_LIMIT = 10**8  # bytes

SERVER = "http://images.cocodataset.org"
"""COCO's own server, which does not support https."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Archive:
    """An archive on COCO's server.

    Attributes:
        place: path on the server.
        published_size: size that COCO publishes, bytes; used if the server does not report it.
        sha256: SHA-256 of the file on COCO's own server, as published by TensorFlow Datasets.
        growth: estimated upper bound of the unpacked size over the archive's size.
        root: folder in the archive to unpack.
        folder: where to unpack it, in the output.
    """

    place: str
    published_size: int
    sha256: str
    growth: float
    root: str
    folder: str

    @property
    def name(self) -> str:
        return self.place.rpartition("/")[2]


_ANNOTATIONS = _Archive(
    place="annotations/annotations_trainval2017.zip",
    published_size=252_907_541,
    sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    growth=5.0,
    root="annotations",
    folder="annotations",
)
# Archiving images saves no space.
_IMAGES = {
    "val": _Archive(
        place="zips/val2017.zip",
        published_size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        growth=_MARGIN,
        root="val2017",
        folder="images/val2017",
    ),
    "train": _Archive(
        place="zips/train2017.zip",
        published_size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        growth=_MARGIN,
        root="train2017",
        folder="images/train2017",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download(Result):
    """What a download did.

    Attributes:
        dataset: its name.
        output: folder that contains everything.
        records: folder of the records, for `--data.train`.
        splits: images, boxes and files of each split.
        fetched: name and bytes of the archives that were downloaded.
        unpacked: folders that were unpacked.
        is_converted: whether this call wrote the records.
        removed: files and folders removed on request.
    """

    dataset: str
    output: str
    records: str
    splits: dict[str, dict[str, int]]
    fetched: dict[str, int]
    unpacked: tuple[str, ...]
    is_converted: bool
    removed: tuple[str, ...]

    def text(self) -> str:
        """Describes the records."""
        lines = [
            f"{name}: {split['num_examples']:,} images, {split['num_boxes']:,} boxes, {split['num_shards']} files"
            for name, split in self.splits.items()
        ]
        lines += [f"removed: {name}" for name in self.removed]
        if not (self.is_converted or self.removed):
            lines.append("Everything is already there; nothing to do.")
        return "\n".join([*lines, f"Train on it: efficientdet train d0 --data.train {self.records}"])


def download(
    dataset: Literal["coco2017"],
    /,
    *,
    output: Path,
    splits: tuple[Split, ...] = ("train", "val"),
    mirror: str = SERVER,
    num_workers: int = 0,
    remove_archives: bool = False,
    remove_images: bool = False,
) -> Download:
    """Downloads a dataset and converts it into records for training.

    Run the same command again to resume after an interruption; it does nothing if everything is there. To reuse images
    and annotations that you already have, put them into OUTPUT/images/train2017, OUTPUT/images/val2017 and
    OUTPUT/annotations, or the archives into OUTPUT/archives. The conversion uses several processes, so a script
    that calls this needs `if __name__ == "__main__":`.

    Args:
        dataset: coco2017, the images and boxes of COCO 2017.
        output: folder for archives, annotations, images and records.
        splits: download and convert only these splits.
        mirror: URL of another server with the same files at the same paths. Files from COCO's own server are checked
            against published checksums, but files from a mirror are not.
        num_workers: processes for the conversion; 0: one per core.
        remove_archives: remove the archives once the records are complete.
        remove_images: remove the images once the records, which contain them too, are complete.

    Returns:
        What was downloaded, converted and removed.

    Raises:
        UserError: an archive cannot be downloaded or is not as expected, or there is not enough disk space.
    """
    output = Path(output)
    _check_arguments(dataset, splits, mirror, num_workers)
    fetched: dict[str, int] = {}
    unpacked: list[str] = []
    with _claim(output, dataset):
        is_converted = not set(splits) <= _figures(output).keys()
        if is_converted:
            # All splits share a class table and a folder, so existing ones are converted again.
            wanted = [name for name in _SHARDS if name in splits or name in _read_splits(output)]
            missing = _missing(output, wanted)
            sizes = _announce(output, missing, wanted, mirror)
            for archive in missing:
                fetched |= _fetch(archive, output, mirror)
                unpacked.append(_unpack(archive, output, wanted, sizes[archive.name]))
            _convert(output, wanted, num_workers)
        removed = _remove(output, remove_archives, remove_images)
    return Download(
        dataset=dataset,
        output=str(output),
        records=str(output / "records"),
        splits=_figures(output),
        fetched=fetched,
        unpacked=tuple(unpacked),
        is_converted=is_converted,
        removed=tuple(removed),
    )


def _check_arguments(dataset: str, splits: tuple[str, ...], mirror: str, num_workers: int) -> None:
    """Raises a UserError for an invalid argument."""
    if dataset != "coco2017":
        raise UserError(f"`dataset` is `{dataset}`; it must be coco2017.")
    if not splits or set(splits) - _SHARDS.keys():
        raise UserError(f"`splits` is `{' '.join(splits)}`; expected train, val or both.")
    if num_workers < 0:
        raise UserError(f"`num_workers` is {num_workers}; it must be 0 (one per core) or more.")
    connection.check_url(mirror)


@contextlib.contextmanager
def _claim(output: Path, dataset: str) -> Iterator[None]:
    """Locks the folder against other downloads, and rejects a folder that has records of another dataset."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with files.one_at_a_time(output / _MARKER):
            if not (output / _MARKER).exists():
                if (output / "records").exists():
                    raise UserError(
                        f"`output` is `{output}`, which has records from another dataset; choose another folder."
                    )
                files.write_json(output / _MARKER, {"dataset": dataset})
            yield
    except OSError as error:
        raise UserError(f"`output` is `{output}`, which cannot be written: {error.strerror or error}.") from error


def _read_splits(output: Path) -> dict[str, Any]:
    """Reads the splits of the records from their manifest; empty if there are none."""
    try:
        splits = json.loads((output / "records" / store.MANIFEST).read_text(encoding="utf-8"))["splits"]
        return splits if isinstance(splits, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _figures(output: Path) -> dict[str, dict[str, int]]:
    """Counts images, boxes and files of the splits that are converted and complete."""
    folder = output / "records"
    figures = {}
    for name, split in _read_splits(output).items():
        try:
            sizes = {folder / shard["name"]: shard["bytes"] for shard in split["shards"]}
            counts = {key: split[key] for key in ("num_examples", "num_boxes")}
        except (KeyError, TypeError):  # damaged: converted again
            continue
        is_whole = all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
        if is_whole and (folder / store.index_name(name)).is_file():
            figures[name] = counts | {"num_shards": len(sizes)}
    return figures


def _instances(split: str) -> str:
    return f"instances_{split}2017.json"


def _missing(output: Path, wanted: Iterable[str]) -> list[_Archive]:
    """Lists the archives whose content is missing, small ones first, so that errors show early."""
    missing = []
    absent = [name for name in map(_instances, wanted) if not (output / _ANNOTATIONS.folder / name).is_file()]
    if absent:
        if files.is_filled(output / _ANNOTATIONS.folder):
            raise UserError(
                f"`{output / _ANNOTATIONS.folder}` has no `{absent[0]}`; remove the folder to download it again."
            )
        missing.append(_ANNOTATIONS)
    images = [archive for name, archive in _IMAGES.items() if name in wanted]
    return missing + [archive for archive in images if not files.is_filled(output / archive.folder)]


def _announce(output: Path, missing: list[_Archive], wanted: Iterable[str], mirror: str) -> dict[str, int]:
    """Prints what will be done, and raises a UserError if there is not enough disk space.

    Returns:
        Bytes of each missing archive, by name.
    """
    paths = {archive.name: _path(archive, output) for archive in missing}
    sizes = {archive.name: _size(archive, output, mirror) for archive in missing}
    to_fetch = sum(max(size - web.arrived(paths[name]), 0) for name, size in sizes.items())
    to_unpack = sum(int(sizes[archive.name] * archive.growth) for archive in missing)
    images = [_IMAGES[name] for name in wanted]
    num_bytes = sum(sizes.get(archive.name) or _num_bytes(output / archive.folder) for archive in images)
    to_write = int(num_bytes * _MARGIN)
    absent = [f"{name} ({files.size_text(size)})" for name, size in sizes.items() if not paths[name].is_file()]
    if absent:
        server = connection.without_secrets(mirror)
        progress.console.print(f"Downloading {', '.join(absent)} from {server}", markup=False, soft_wrap=True)
    progress.console.print(
        f"Disk space: {files.size_text(to_fetch)} for archives, {files.size_text(to_unpack)} for their contents, "
        f"{files.size_text(to_write)} for records; {files.size_text(shutil.disk_usage(output).free)} free",
        markup=False,
        soft_wrap=True,
    )
    files.check_space(output, to_fetch + to_unpack + to_write, "COCO 2017")
    return sizes


def _path(archive: _Archive, output: Path) -> Path:
    return output / "archives" / archive.name


def _url(archive: _Archive, mirror: str) -> str:
    return f"{mirror.rstrip('/')}/{archive.place}"


def _size(archive: _Archive, output: Path, mirror: str) -> int:
    """Returns the size of an archive in bytes: from the file, the server, or the size that COCO publishes."""
    path = _path(archive, output)
    return path.stat().st_size if path.is_file() else web.remote_size(_url(archive, mirror)) or archive.published_size


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _fetch(archive: _Archive, output: Path, mirror: str) -> dict[str, int]:
    """Downloads an archive, if it is missing; returns its name and size if it was downloaded."""
    path = _path(archive, output)
    if path.is_file():
        return {}
    # COCO's server has no https, so its files are checked; a mirror may have its own archives.
    web.fetch(_url(archive, mirror), path, sha256=archive.sha256 if mirror == SERVER else None)
    return {archive.name: path.stat().st_size}


def _unpack(archive: _Archive, output: Path, wanted: Iterable[str], size: int) -> str:
    """Unpacks an archive and returns the folder."""
    folder = archives.unpack(
        _path(archive, output),
        output / archive.folder,
        max_bytes=max(_LEAST_LIMIT, int(2 * archive.growth * size)),
        root=archive.root,
        require=[_instances(name) for name in wanted] if archive is _ANNOTATIONS else (),
    )
    return str(folder)


def _convert(output: Path, wanted: list[str], num_workers: int) -> None:
    """Converts the splits into one folder of records."""
    for left in output.glob(f"{files.PARTIAL}records-*"):  # left by a process that was killed
        shutil.rmtree(left)
    result = conversion.convert(
        "coco",
        output,
        output=output / "records",
        files=tuple((name, Path("annotations", _instances(name)), Path(_IMAGES[name].folder)) for name in wanted),
        num_shards={name: _SHARDS[name] for name in wanted},
        num_workers=num_workers,
        overwrite=True,
    )
    result.show(progress.console)


def _remove(output: Path, remove_archives: bool, remove_images: bool) -> list[str]:
    """Removes what is no longer needed once there are records, but nothing that did not come from COCO."""
    removed = []
    if remove_archives:
        for archive in (_ANNOTATIONS, *_IMAGES.values()):
            for path in sorted((output / "archives").glob(f"{archive.name}*")):  # including partial downloads
                path.unlink()
                removed.append(str(path))
    if remove_images:
        for folder in (output / archive.folder for archive in _IMAGES.values()):
            if folder.is_symlink():
                folder.unlink()
            elif folder.is_dir():
                shutil.rmtree(folder)
            else:
                continue
            removed.append(str(folder))
    for parent in (output / "archives", output / "images"):
        if removed and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    return removed
