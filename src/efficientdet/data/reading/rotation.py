"""Whether boxes were drawn on an image as it is stored, or on it after the rotation of its EXIF tag.

The declared size tells, where the rotation changes it; else where the boxes fit, if they leave the image one way and
not the other. It cannot tell of a square image, of orientations 2 to 4, or where nothing is declared (as in YOLO). Then
the rest of the dataset decides, if all that can be told speaks for one reading: one tool drew all of it. Else the image
is taken as upright, which is how browsers and most tools of today show it, and that it could not be told is reported.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from efficientdet.data import sources
from efficientdet.errors import UserError
from efficientdet.media import images

BoxesDrawn = Literal["auto", "upright", "stored"]
"""On which image the boxes were drawn, where it cannot be told; auto: as the rest of the dataset shows."""

BY_THE_REST = "images whose EXIF rotation is read as the rest of the dataset shows"
UNTOLD = (
    "images with an EXIF rotation for which it cannot be told on which image their boxes were drawn: taken as upright "
    "(`--exif-boxes` settles it)"
)

_HEAD_BYTES = 65_536
_BOUNDARY_PX = 1.0


def settle(dataset: sources.Source, choice: BoxesDrawn) -> sources.Source:
    """Decides for each image with an EXIF rotation and boxes which image they were drawn on.

    Args:
        dataset: its images are opened as far as their header.
        choice: the reading where an image does not tell; `auto` asks the rest of the dataset.
    """
    told: set[bool] = set()
    untold: list[tuple[str, int, int]] = []
    splits = {name: list(examples) for name, examples in dataset.splits.items()}
    for name, examples in splits.items():
        for place, example in enumerate(examples):
            facts = _rotated(example.path) if len(example.labels) else None
            if facts is None:
                continue
            if example.declared_size not in (None, facts.upright_size, facts.stored_size):
                continue  # `policy` refuses it
            is_upright = _tells(example, facts)
            if is_upright is None:
                untold.append((name, place, facts.orientation))
            else:
                told.add(is_upright)
                examples[place] = dataclasses.replace(example, is_upright=is_upright)
    by_rest = len(told) == 1 and choice == "auto"
    is_upright = next(iter(told)) if by_rest else choice != "stored"
    problems = []
    for name, place, orientation in untold:
        example = splits[name][place] = dataclasses.replace(splits[name][place], is_upright=is_upright)
        if choice == "auto":
            detail = f"orientation {orientation}" + (f", {'upright' if is_upright else 'stored'}" if by_rest else "")
            kind = BY_THE_REST if by_rest else UNTOLD
            problems.append(sources.Problem(kind=kind, split=name, file_name=example.file_name, detail=detail))
    return dataclasses.replace(dataset, splits=splits, problems=[*dataset.problems, *problems])


def _tells(example: sources.Example, facts: images.Facts) -> bool | None:
    """Says whether boxes are of the upright image, by its declared size or by where they fit; none if neither tells."""
    if facts.upright_size == facts.stored_size:
        return None
    if example.declared_size is not None:
        return example.declared_size == facts.upright_size
    if example.is_normalized:
        return None
    fits_upright, fits_stored = (_fits(example, size) for size in (facts.upright_size, facts.stored_size))
    return fits_upright if fits_upright != fits_stored else None


def _fits(example: sources.Example, size: tuple[int, int]) -> bool:
    height, width = size
    y2, x2 = example.boxes[:, 2], example.boxes[:, 3]
    return bool((y2 <= height + _BOUNDARY_PX).all() and (x2 <= width + _BOUNDARY_PX).all())


def _rotated(path: Path) -> images.Facts | None:
    """Reads the header of an image with an EXIF rotation; none for any other, also for one that cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if not _may_have_exif(head, path):
            return None
        facts = images.inspect(path, path.name)
    except (OSError, UserError):
        return None  # `policy` reports it
    return facts if facts.orientation != 1 else None


def _may_have_exif(head: bytes, path: Path) -> bool:
    """Says whether a file may hold a rotation; most photographs and all drawings are settled by their first bytes."""
    if head[:2] == b"\xff\xd8":
        return b"Exif\x00" in head
    if head[:4] == b"RIFF":
        return len(head) > 20 and bool(head[20] & 0x08)
    if head[:4] == b"\x89PNG":
        return b"eXIf" in head or b"exif" in head or (len(head) == _HEAD_BYTES and b"eXIf" in path.read_bytes())
    return head[:2] in (b"II", b"MM")
