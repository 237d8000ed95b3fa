"""The `convert` command: turns a folder of images and annotations into a folder of records, all or nothing.

docs/data.md describes the formats and how faults are handled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from efficientdet import progress
from efficientdet.data import dataset_files, policy, recognition, registry, sources, summary
from efficientdet.data.formats import coco, voc, yolo
from efficientdet.data.reading import accounts, interpretation, lookup, rotation
from efficientdet.data.records import shards, staging, store
from efficientdet.errors import UserError
from efficientdet.storage import web

_IMAGES_A_SHARD = 1000
_BYTES_A_SHARD = 100 * 10**6
_MAX_SHARDS = 256
# Starting a process costs about as much as converting this many images.
_IMAGES_A_WORKER = 1000
_LEAST_TO_HOLD_OUT = 20
_HELD_OUT = "validation split held out from the training images, since the dataset has none"
# Options that apply to only one format.
_FORMAT_OF = {
    "files": "coco",
    "crowds_as_objects": "coco",
    "drop_difficult": "voc",
    "keypoints": "yolo",
    "drop_confidence": "yolo",
}
_CLASS_SUFFIXES = (".data", ".names")


def convert(
    format: registry.Choice,
    source: Path,
    /,
    *,
    output: Path,
    splits: tuple[str, ...] = (),
    files: tuple[tuple[str, Path, Path], ...] = (),
    val_fraction: float | None = None,
    num_shards: int | dict[str, int] = 0,
    num_workers: int = 0,
    classes: Path | None = None,
    drop_difficult: bool = False,
    keypoints: tuple[int, int] | None = None,
    drop_confidence: bool = False,
    crowds_as_objects: bool = False,
    swap_corners: bool = False,
    exif_boxes: rotation.BoxesDrawn = "auto",
    skip_broken_images: bool = False,
    skip_broken_annotations: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
) -> summary.Summary:
    """Converts images and annotations into records for training.

    All splits go into one folder and share one class table. Problems in the dataset are either fixed and reported,
    or stop the conversion with a one-line message that names the file; a failed conversion leaves nothing behind. Large
    datasets are converted by several spawned processes, so a script that calls this needs
    `if __name__ == "__main__":`.

    Args:
        format: annotation format; auto detects it from the files. On the command line it can be omitted, which means
            auto.
        source: folder of the dataset.
        output: folder to write; it must be empty or not exist yet.
        splits: convert only these splits; all if empty.
        files: COCO only: name, annotation file and image folder of each split, if they are not found automatically;
            relative paths are relative to the source.
        val_fraction: share of the training images to use as the val split, if the dataset has none. Default: a tenth,
            if there are at least 20 images. splits.json in the output lists the images of each split.
        num_shards: files per split, or a name and a number for each of several splits (`train 256 val 32`), never more
            than there are images; 0: one per 1000 images or 100 MB, at most 256.
        num_workers: processes; 0: one per core, fewer if there are few images; 1: only this process.
        classes: file with the class names, one per line, in the order of their ids; not for COCO, which lists them.
        drop_difficult: VOC: drop the objects marked as difficult.
        keypoints: YOLO: number of keypoints after each box, and numbers per keypoint, if data.yaml has no `kpt_shape`.
        drop_confidence: YOLO: ignore a confidence in the last column, as written by detectors.
        crowds_as_objects: COCO: ignore `iscrowd`, which some tools set for every mask.
        swap_corners: fix corners that are in the wrong order instead of dropping the box.
        exif_boxes: which version of an image with an EXIF rotation its boxes were drawn on, if that is unclear:
            `upright` or as `stored`; `auto` follows the rest of the dataset, or assumes upright.
        skip_broken_images: skip and report images that are missing, cannot be decoded, or differ in size from their
            annotation, instead of stopping.
        skip_broken_annotations: skip and report annotations that cannot be read, instead of stopping.
        dry_run: only check everything and report all problems; write nothing.
        overwrite: replace the output, if it is a converted dataset.

    Returns:
        What was converted, fixed and skipped.

    Raises:
        UserError: the dataset or an argument cannot be used.
    """
    source, output = Path(source), Path(output)
    if format == "auto":
        format = "coco" if files else detect_format(source)
    own = {
        "files": files,
        "drop_difficult": drop_difficult,
        "keypoints": keypoints,
        "drop_confidence": drop_confidence,
        "crowds_as_objects": crowds_as_objects,
    }
    _check_arguments(format, own, val_fraction, num_shards, num_workers, classes)
    faults = sources.Faults(keeps=True)
    reading = sources.Reading(
        faults=faults, keypoints=keypoints, drop_confidence=drop_confidence, crowds_as_objects=crowds_as_objects
    )
    dataset = _read(format, source, splits, files, classes, drop_difficult, reading)
    wanted = splits or tuple(name for name, _, _ in files)
    dataset = interpretation.interpret(
        dataset,
        wanted=wanted,
        faults=faults,
        swap_corners=swap_corners,
        exif_boxes=exif_boxes,
        is_lenient=skip_broken_annotations or dry_run,
    )
    if val_fraction is not None:
        dataset = _hold_out(dataset, val_fraction)
    elif not wanted:
        dataset = _hold_out_by_default(dataset)
    # A dry run that found faults lists them, even if nothing else is left.
    if not (dry_run and faults.problems):
        _check_not_empty(dataset, source)
    account = accounts.account(source, dataset, wanted)
    workers = num_workers or _num_workers(sum(map(len, dataset.splits.values())))
    with staging.output_folder(output, source, dry_run, overwrite) as folder:
        written = shards.write_all(_plan(dataset, folder, num_shards), workers)
        result = _summarize(format, source, "" if dry_run else str(output), dataset, written, account)
        if result.num_broken and not (skip_broken_images or dry_run):
            raise UserError(_describe_broken(result))
        for name, split in result.splits.items():
            if not split.num_examples and not dry_run:
                raise UserError(f"`{source}`: every image in the split `{name}` is broken.")
        annotated = [split for name, split in result.splits.items() if name not in dataset.unannotated]
        may_lack_boxes = dry_run and bool(result.num_broken or faults.problems)
        if annotated and not may_lack_boxes and not any(split.num_boxes for split in annotated):
            raise UserError(summary.explain_no_boxes(result))
        if folder is not None:
            dataset_files.write_manifest(folder, result, written)
            dataset_files.write_splits(folder, dataset, result)
    if dry_run:
        stop = summary.explain_stop(
            result, skip_broken_images=skip_broken_images, skip_broken_annotations=skip_broken_annotations
        )
        result = dataclasses.replace(result, would_stop=stop)
    return result


def detect_format(folder: Path) -> registry.Format:
    """Detects the annotation format of a dataset.

    Raises:
        UserError: the dataset is in none of the known formats, or in more than one.
    """
    return recognition.recognize(folder)


def convert_once(source: Path, cache_dir: Path | None = None) -> Path:
    """Converts a dataset of any known format into the cache, unless it is already there and unchanged.

    If there is no val split, a tenth of the training images becomes one, given at least 20 images.

    Args:
        source: folder of the dataset.
        cache_dir: where converted datasets are kept; None means the user's cache.

    Returns:
        Folder of the converted dataset.
    """
    parent = cache_dir or web.cache_dir() / "datasets"
    folder = parent / f"{source.resolve().name}-{_fingerprint(source)}"
    if (folder / store.MANIFEST).is_file():
        return folder
    format = detect_format(source)
    progress.console.print(
        f"Converting {source} ({format}) into {folder}, to be reused by later runs", markup=False, soft_wrap=True
    )
    try:
        result = convert(format, source, output=folder)
    except UserError:
        if (folder / store.MANIFEST).is_file():  # another process finished first
            return folder
        raise
    result.show(progress.console)
    return folder


def _check_arguments(
    format: str,
    own: dict[str, Any],
    val_fraction: float | None,
    num_shards: int | dict[str, int],
    num_workers: int,
    classes: Path | None,
) -> None:
    """Raises a UserError for an invalid argument; `own` are the options that apply to only one format."""
    if format not in registry.NAMES:
        raise UserError(f"`format` is `{format}`; choose from auto, {', '.join(registry.NAMES)}.")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"`val_fraction` is {val_fraction}; it must be at least 0 and less than 1.")
    for number in num_shards.values() if isinstance(num_shards, dict) else [num_shards]:
        if not 0 <= number <= 99_999:
            raise UserError(f"`num_shards` is {number}; it must be from 0 (chosen by size) to 99999.")
    if num_workers < 0:
        raise UserError(f"`num_workers` is {num_workers}; it must be 0 (one per core) or more.")
    if classes is not None and format == "coco":
        raise UserError(f"`classes` is {classes}, but COCO files have their own class table; remove `--classes`.")
    for name, value in own.items():
        if value and format != _FORMAT_OF[name]:
            raise UserError(f"`{name}` only works with {_FORMAT_OF[name].upper()}, but the format is {format}.")


def _read(
    format: registry.Format,
    source: Path,
    splits: tuple[str, ...],
    files: tuple[tuple[str, Path, Path], ...],
    classes: Path | None,
    drop_difficult: bool,
    reading: sources.Reading,
) -> sources.Source:
    """Reads the annotations with the options of their format."""
    if format in registry.READERS:
        return registry.read(format, source, splits=splits, classes=classes, reading=reading)
    if format == "coco":
        return coco.read(source, splits=splits, files=files, reading=reading)
    if format == "voc":
        return voc.read(source, splits=splits, classes=classes, drop_difficult=drop_difficult, reading=reading)
    return yolo.read(source, splits=splits, classes=classes, reading=reading)


def _hold_out_by_default(dataset: sources.Source) -> sources.Source:
    """Makes a tenth of the training images the val split if there is none, and reports it.

    Small datasets are used for training as a whole: AP on a handful of images means nothing.
    """
    count = len(dataset.splits.get("train", []))
    if "val" in dataset.splits or count < _LEAST_TO_HOLD_OUT:
        return dataset
    dataset = _hold_out(dataset, 0.1)
    detail = f"{len(dataset.splits['val'])} of {count} images; change this with `--val-fraction` (0: no val split)"
    problem = sources.Problem(kind=_HELD_OUT, split="", file_name="val", detail=detail)
    return dataclasses.replace(dataset, problems=[*dataset.problems, problem])


def _hold_out(dataset: sources.Source, val_fraction: float) -> sources.Source:
    """Moves a share of train to val: the images whose names hash lowest, so that adding images moves few old ones."""
    if not val_fraction:
        return dataset
    if "val" in dataset.splits or "train" not in dataset.splits:
        raise UserError(
            f"`val_fraction` is {val_fraction}, but it needs a dataset with a train split and no val split; "
            f"this one has {', '.join(dataset.splits)}."
        )
    train = dataset.splits["train"]
    num_val = max(1, round(len(train) * val_fraction))
    if num_val >= len(train):
        raise UserError(f"`val_fraction` is {val_fraction}, which leaves none of the {len(train)} images for training.")
    ranked = sorted(train, key=lambda example: hashlib.sha256(example.file_name.encode()).digest())
    held_out = {example.id for example in ranked[:num_val]}
    splits = {
        "train": [example for example in train if example.id not in held_out],
        "val": [example for example in train if example.id in held_out],
    }
    moved = {("train", example.file_name) for example in splits["val"]}
    problems = [
        dataclasses.replace(problem, split="val") if (problem.split, problem.file_name) in moved else problem
        for problem in dataset.problems
    ]
    return dataclasses.replace(
        dataset, splits=splits | {k: v for k, v in dataset.splits.items() if k != "train"}, problems=problems
    )


def _check_not_empty(dataset: sources.Source, source: Path) -> None:
    """Raises a UserError if there is nothing to train on."""
    for name, examples in dataset.splits.items():
        if not examples:
            raise UserError(f"`{source}` has no images in the split `{name}`. {accounts.describe_files(source)}")
    if not dataset.splits:
        raise UserError(f"`{source}` has no images. {accounts.describe_files(source)}")
    annotated = [examples for name, examples in dataset.splits.items() if name not in dataset.unannotated]
    has_boxes = any(len(example.labels) for examples in annotated for example in examples)
    if annotated and not has_boxes:
        looked = accounts.explain_nothing(dataset)
        raise UserError(
            f"`{source}` has no boxes at all, so there is nothing to learn.{looked} {accounts.describe_files(source)}"
        )


def _num_workers(num_examples: int) -> int:
    """Chooses the number of processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, -(-num_examples // _IMAGES_A_WORKER))


def _plan(dataset: sources.Source, folder: Path | None, num_shards: int | dict[str, int]) -> list[shards.Task]:
    """Distributes the examples of each split over its shards in turn."""
    wanted = num_shards if isinstance(num_shards, dict) else dict.fromkeys(dataset.splits, num_shards)
    unknown = sorted(wanted.keys() - dataset.splits.keys())
    if unknown:
        raise UserError(f"`num_shards` names the split `{unknown[0]}`; choose from {', '.join(dataset.splits)}.")
    tasks = []
    for split, examples in dataset.splits.items():
        num_bytes = sum(example.path.stat().st_size for example in examples if example.path.is_file())
        by_size = max(1, -(-len(examples) // _IMAGES_A_SHARD), -(-num_bytes // _BYTES_A_SHARD))
        total = min(wanted.get(split, 0) or min(by_size, _MAX_SHARDS), len(examples))
        for index in range(total):
            name = f"{split}-{index:05d}-of-{total:05d}.tfrecord"
            path = None if folder is None else folder / name
            part = examples[index::total]
            tasks.append(shards.Task(split=split, path=path, examples=part, categories=dataset.categories))
    return tasks


def _summarize(
    format: str,
    source: Path,
    output: str,
    dataset: sources.Source,
    written: list[shards.Shard],
    account: accounts.Account,
) -> summary.Summary:
    """Adds up the figures of all shards."""
    splits = {}
    for name in dataset.splits:
        own = [shard for shard in written if shard.split == name]
        per_class = tuple(sum(shard.boxes_per_class[i] for shard in own) for i in range(len(dataset.categories)))
        splits[name] = summary.SplitSummary(
            num_examples=sum(len(shard.lengths) for shard in own),
            num_boxes=sum(per_class),
            num_crowds=sum(shard.num_crowds for shard in own),
            max_boxes=max((shard.max_boxes for shard in own), default=0),
            boxes_per_class=per_class,
        )
    order = {name: position for position, name in enumerate(dataset.splits)}
    broken = [problem for shard in written for problem in shard.broken]
    problems = [*dataset.problems, *broken, *(problem for shard in written for problem in shard.problems)]
    problems.sort(key=lambda problem: (order.get(problem.split, -1), problem.file_name))
    return summary.Summary(
        format=format,
        source=str(source),
        output=output,
        categories=dataset.categories,
        splits=splits,
        problems=tuple(problems),
        num_broken=len(broken),
        account=account,
    )


def _describe_broken(result: summary.Summary) -> str:
    """Describes the first broken image, the number of others, and what to do."""
    first = next(problem for problem in result.problems if problem.kind == policy.BROKEN)
    others = result.num_broken - 1
    more = f" {others} more image{'s are' if others > 1 else ' is'} broken." if others else ""
    return f"{first.detail}{more} List them all with `--dry-run`, or skip them with `--skip-broken-images`."


def _fingerprint(source: Path) -> str:
    """Hashes what changes with the dataset: its path, and name, size and time of each image and annotation file."""
    # Other files in the folder may change.
    suffixes = (*lookup.IMAGE_SUFFIXES, *sources.ANNOTATION_SUFFIXES, *_CLASS_SUFFIXES)
    digest = hashlib.sha256(f"{store.VERSION}\t{source.resolve()}".encode())
    for parent, folders, names in os.walk(source.resolve()):
        # Runs and predictions inside the folder are not part of the dataset.
        folders[:] = sorted(
            f for f in folders if f not in sources.NOT_DATA and not Path(parent, f, "checkpoints").exists()
        )
        for name in sorted(names):
            if not name.lower().endswith(suffixes):
                continue
            path = os.path.join(parent, name)  # noqa: PTH118 - a Path a file would be slow
            # A dangling link is no reason to stop; whatever needs the file will report it.
            state = os.stat(path) if os.path.exists(path) else os.lstat(path)  # noqa: PTH110, PTH116
            digest.update(f"\n{parent}/{name}\t{state.st_size}\t{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
