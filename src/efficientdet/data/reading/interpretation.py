"""Resolves, for a dataset as a whole, what single annotations leave open, and reports it.

Every rule that chooses between two interpretations is here or in `rotation`. They run after the readers and before any
image is decoded.
"""

import dataclasses

import numpy as np

from efficientdet.data import sources
from efficientdet.data.reading import accounts, rotation
from efficientdet.errors import UserError

_EMPTY = "splits without images skipped"
_SWAPPED = "boxes with corners in the wrong order fixed"


def interpret(
    dataset: sources.Source,
    *,
    wanted: tuple[str, ...],
    faults: sources.Faults,
    swap_corners: bool,
    exif_boxes: rotation.BoxesDrawn,
    is_lenient: bool,
) -> sources.Source:
    """Decides what annotations leave open, and adds the faults that the reader kept to the problems.

    Args:
        dataset: as it was read.
        wanted: splits requested by name; all if empty.
        faults: faults of single annotations, kept by the reader.
        swap_corners: fix corners in the wrong order instead of dropping the box.
        exif_boxes: which image the boxes were drawn on, if that is unclear.
        is_lenient: report faults instead of raising them.

    Raises:
        UserError: an annotation is faulty, or nothing can be learned because all annotations are crowds.
    """
    if faults.problems and not is_lenient:
        raise UserError(_describe(faults.problems))
    dataset = dataclasses.replace(dataset, problems=[*dataset.problems, *faults.problems])
    dataset = _drop_empty(dataset, wanted)
    dataset = sources.train_on_only_split(dataset, wanted)
    _check_pixels(dataset)
    if swap_corners:
        dataset = _swap(dataset)
    dataset = rotation.settle(dataset, exif_boxes)
    found = [*accounts.find_repeats(dataset), *accounts.find_useless(dataset)]
    return dataclasses.replace(dataset, problems=[*dataset.problems, *found])


def _drop_empty(dataset: sources.Source, wanted: tuple[str, ...]) -> sources.Source:
    """Drops splits without images if others have some, except train and requested splits."""
    kept = {name: some for name, some in dataset.splits.items() if some or name == "train" or wanted}
    dropped = [name for name in dataset.splits if name not in kept]
    if not kept or not dropped:
        return dataset
    problems = [
        sources.Problem(kind=_EMPTY, split=next(iter(kept)), file_name=name, detail="no image") for name in dropped
    ]
    return dataclasses.replace(dataset, splits=kept, problems=[*dataset.problems, *problems])


def _check_pixels(dataset: sources.Source) -> None:
    """Raises a UserError if all boxes look like fractions of the image in a format that uses px."""
    examples = [e for some in dataset.splits.values() for e in some if len(e.labels) and not e.is_normalized]
    largest = max((float(np.abs(example.boxes).max()) for example in examples), default=0.0)
    has_area = any((example.boxes[:, 2:] > example.boxes[:, :2]).all(axis=1).any() for example in examples)
    if largest <= 1 and has_area:
        raise UserError(
            f"`{examples[0].file_name}` and all other images have no coordinate above {largest:g}; expected px, but "
            "these look like fractions of the image. Multiply them by its width and height."
        )


def _describe(broken: list[sources.Problem]) -> str:
    """Describes the first faulty annotation, the number of others, and what to do."""
    count = len(broken) - 1
    more = f" {count} more annotation{'s are' if count > 1 else ' is'} broken." if count else ""
    return f"{broken[0].detail}{more} List them all with `--dry-run`, or skip them with `--skip-broken-annotations`."


def _swap(dataset: sources.Source) -> sources.Source:
    """Puts the corners of every box in order."""
    problems = list(dataset.problems)
    splits: dict[str, list[sources.Example]] = {}
    for split, examples in dataset.splits.items():
        splits[split] = []
        for example in examples:
            first, second = example.boxes[:, :2], example.boxes[:, 2:]
            count = int((first > second).any(axis=1).sum())
            if count:
                boxes = np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
                example = dataclasses.replace(example, boxes=boxes)
                problems.append(sources.Problem(kind=_SWAPPED, split=split, file_name=example.file_name, count=count))
            splits[split].append(example)
    return dataclasses.replace(dataset, splits=splits, problems=problems)
