"""The verb `convert`: a folder of images and annotations becomes a folder of records, whole or not at all.

Formats and policy are in docs/data.md.
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
# Starting a process costs about as much as converting so many images.
_IMAGES_A_WORKER = 1000
_LEAST_TO_HOLD_OUT = 20
_HELD_OUT = "split held out from the training images, since the dataset has no other"
# Options that only one format has.
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

    All splits go into one folder and share one class table. What is not as it should be is mended and reported, or
    stops the conversion with one line that names the file; a conversion that fails leaves nothing behind. Several
    processes are spawned for many images, so a script that calls this needs `if __name__ == "__main__":`.

    Args:
        format: how the annotations are written; auto: what the files look like. The command line takes it as auto where
            it is left out.
        source: folder of the dataset.
        output: folder to write; it must not exist or be empty.
        splits: convert only these splits; all if empty.
        files: COCO only: name, annotation file and folder of images of each split, where they are not found by
            themselves; relative paths start at the source.
        val_fraction: share of the training images that becomes the split val, for a dataset without one; by default a
            tenth of 20 images or more. splits.json in the output names the images of each split.
        num_shards: files of each split, or the name and files of several (`train 256 val 32`), but never more than
            images; 0: one for about 1000 images or 100 MB, at most 256.
        num_workers: processes; 0: as many as there are cores, fewer for few images; 1: this process only.
        classes: file with the class names, one a line, in the order of their ids; not for COCO, which lists them.
        drop_difficult: VOC: leave out the objects marked as difficult.
        keypoints: YOLO: number of keypoints behind each box, and of numbers of each, if data.yaml has no `kpt_shape`.
        drop_confidence: YOLO: leave out a confidence in the last column, which detectors write.
        crowds_as_objects: COCO: ignore `iscrowd`, which some tools set for every mask.
        swap_corners: put corners in the wrong order right, instead of dropping the box.
        exif_boxes: which image the boxes were drawn on where an EXIF rotation leaves that open: `upright`, or `stored`
            as the file has it; `auto`: as the rest of the dataset shows, else upright.
        skip_broken_images: leave out and report images that are missing, cannot be decoded, or have another size than
            their annotation says, instead of stopping.
        skip_broken_annotations: leave out and report annotations that cannot be read, instead of stopping.
        dry_run: only check everything and report all faults; nothing is written.
        overwrite: replace the output, if it is a converted dataset.

    Returns:
        What was done.

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
    # A dry run that has found faults lists them, even if nothing else is left.
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
                raise UserError(f"`{source}` has no usable image in `{name}`; all of them are broken.")
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
    """Finds out how the annotations of a dataset are written.

    Raises:
        UserError: none of the known formats, or more than one.
    """
    return recognition.recognize(folder)


def convert_once(source: Path, cache_dir: Path | None = None) -> Path:
    """Converts a dataset of any known format into the cache, unless it has been converted and not changed since.

    A tenth of the training images becomes the split val if there is none, of 20 images or more.

    Args:
        source: folder of the dataset.
        cache_dir: where converted datasets are kept; none: the user's cache.

    Returns:
        Folder of the converted dataset.
    """
    parent = cache_dir or web.cache_dir() / "datasets"
    folder = parent / f"{source.resolve().name}-{_fingerprint(source)}"
    if (folder / store.MANIFEST).is_file():
        return folder
    format = detect_format(source)
    progress.console.print(f"Converting {source} ({format}) once into {folder}", markup=False, soft_wrap=True)
    try:
        result = convert(format, source, output=folder)
    except UserError:
        if (folder / store.MANIFEST).is_file():  # another process was faster
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
    """Raises a UserError for an argument that cannot work; `own` are those of one format each."""
    if format not in registry.NAMES:
        raise UserError(f"`format` is `{format}`; expected auto or one of {', '.join(registry.NAMES)}.")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"`val_fraction` is {val_fraction}; expected a fraction from 0 to below 1.")
    for number in num_shards.values() if isinstance(num_shards, dict) else [num_shards]:
        if not 0 <= number <= 99_999:
            raise UserError(f"`num_shards` is {number}; expected 0 (by size) to 99999.")
    if num_workers < 0:
        raise UserError(f"`num_workers` is {num_workers}; expected 0 (all cores) or more.")
    if classes is not None and format == "coco":
        raise UserError(f"`classes` is {classes}, but COCO files carry their own class table; leave it out.")
    for name, value in own.items():
        if value and format != _FORMAT_OF[name]:
            raise UserError(f"`{name}` is for {_FORMAT_OF[name].upper()}; the format is {format}.")


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
    """Makes a tenth of the training images the split val where there is none, and reports it.

    Of few images all are for training: a handful tells nothing about AP.
    """
    count = len(dataset.splits.get("train", []))
    if "val" in dataset.splits or count < _LEAST_TO_HOLD_OUT:
        return dataset
    dataset = _hold_out(dataset, 0.1)
    detail = f"{len(dataset.splits['val'])} of {count} images; `--val-fraction` sets how many, 0 none"
    problem = sources.Problem(kind=_HELD_OUT, split="", file_name="val", detail=detail)
    return dataclasses.replace(dataset, problems=[*dataset.problems, problem])


def _hold_out(dataset: sources.Source, val_fraction: float) -> sources.Source:
    """Moves a share of train to val: those whose names hash lowest, so that new images move few of the old ones."""
    if not val_fraction:
        return dataset
    if "val" in dataset.splits or "train" not in dataset.splits:
        raise UserError(
            f"`val_fraction` is {val_fraction}, but the dataset has the splits {', '.join(dataset.splits)}; "
            "it is for a dataset with train and without val."
        )
    train = dataset.splits["train"]
    num_val = max(1, round(len(train) * val_fraction))
    if num_val >= len(train):
        raise UserError(f"`val_fraction` is {val_fraction} of {len(train)} images; none would be left to train on.")
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
    """Raises a UserError if there is nothing to learn from."""
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
            f"`{source}` has no boxes at all; there is nothing to learn.{looked} {accounts.describe_files(source)}"
        )


def _num_workers(num_examples: int) -> int:
    """Chooses the number of processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, -(-num_examples // _IMAGES_A_WORKER))


def _plan(dataset: sources.Source, folder: Path | None, num_shards: int | dict[str, int]) -> list[shards.Task]:
    """Deals the examples of each split to shards, one to each in turn."""
    wanted = num_shards if isinstance(num_shards, dict) else dict.fromkeys(dataset.splits, num_shards)
    unknown = sorted(wanted.keys() - dataset.splits.keys())
    if unknown:
        raise UserError(f"`num_shards` names the split `{unknown[0]}`; there are {', '.join(dataset.splits)}.")
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
    """Adds up the shards."""
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
    """Says which image is broken, how many more are, and what to do."""
    first = next(problem for problem in result.problems if problem.kind == policy.BROKEN)
    others = result.num_broken - 1
    more = f" {others} more image{'s are' if others > 1 else ' is'} broken." if others else ""
    return f"{first.detail}{more} `--skip-broken-images` leaves such images out; `--dry-run` lists them all."


def _fingerprint(source: Path) -> str:
    """Hashes what tells a changed dataset: path, and name, size and time of each image and annotation file."""
    # Other files in its folder may change.
    suffixes = (*lookup.IMAGE_SUFFIXES, *sources.ANNOTATION_SUFFIXES, *_CLASS_SUFFIXES)
    digest = hashlib.sha256(f"{store.VERSION}\t{source.resolve()}".encode())
    for parent, folders, names in os.walk(source.resolve()):
        # A run or predictions inside the folder are no part of the dataset.
        folders[:] = sorted(
            f for f in folders if f not in sources.NOT_DATA and not Path(parent, f, "checkpoints").exists()
        )
        for name in sorted(names):
            if not name.lower().endswith(suffixes):
                continue
            path = os.path.join(parent, name)  # noqa: PTH118 - a Path a file would be slow
            # A link that leads nowhere is no reason to stop; whoever needs the file will say so.
            state = os.stat(path) if os.path.exists(path) else os.lstat(path)  # noqa: PTH110, PTH116
            digest.update(f"\n{parent}/{name}\t{state.st_size}\t{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
