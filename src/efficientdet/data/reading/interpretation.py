"""What single annotations leave open, decided for a dataset as a whole, and reported.

Every rule that chooses between two readings is here or in `rotation`, after the readers and before an image is decoded.
"""

import dataclasses

import numpy as np

from efficientdet.data import sources
from efficientdet.data.reading import accounts, rotation
from efficientdet.errors import UserError

_EMPTY = "splits without an image left out"
_SWAPPED = "boxes whose corners were in the wrong order swapped"


def interpret(
    dataset: sources.Source,
    *,
    wanted: tuple[str, ...],
    faults: sources.Faults,
    swap_corners: bool,
    exif_boxes: rotation.BoxesDrawn,
    is_lenient: bool,
) -> sources.Source:
    """Decides what is open, and gathers what the reader met.

    Args:
        dataset: as it was read.
        wanted: splits that were asked for by name; all if empty.
        faults: of single annotations, as the reader kept them.
        swap_corners: makes a box of corners in the wrong order, instead of dropping it.
        exif_boxes: which image boxes were drawn on, where it cannot be told.
        is_lenient: faults are reported only.

    Raises:
        UserError: an annotation is faulty, or nothing can be learnt, since all annotations are crowds.
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
    """Leaves out splits without an image beside others that have some, unless it is train or was asked for."""
    kept = {name: some for name, some in dataset.splits.items() if some or name == "train" or wanted}
    dropped = [name for name in dataset.splits if name not in kept]
    if not kept or not dropped:
        return dataset
    problems = [
        sources.Problem(kind=_EMPTY, split=next(iter(kept)), file_name=name, detail="no image") for name in dropped
    ]
    return dataclasses.replace(dataset, splits=kept, problems=[*dataset.problems, *problems])


def _check_pixels(dataset: sources.Source) -> None:
    """Raises a UserError where all boxes are fractions of an image in a format whose boxes are px."""
    examples = [e for some in dataset.splits.values() for e in some if len(e.labels) and not e.is_normalized]
    largest = max((float(np.abs(example.boxes).max()) for example in examples), default=0.0)
    has_area = any((example.boxes[:, 2:] > example.boxes[:, :2]).all(axis=1).any() for example in examples)
    if largest <= 1 and has_area:
        raise UserError(
            f"`{examples[0].file_name}` and all other images have boxes of at most {largest:g} px; expected px. They "
            "look like fractions of the image: multiply them by its width and height."
        )


def _describe(broken: list[sources.Problem]) -> str:
    """Says which annotation is faulty, how many more are, and what to do."""
    count = len(broken) - 1
    more = f" {count} more annotation{'s are' if count > 1 else ' is'} broken." if count else ""
    return f"{broken[0].detail}{more} `--skip-broken-annotations` leaves them out; `--dry-run` lists them all."


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
