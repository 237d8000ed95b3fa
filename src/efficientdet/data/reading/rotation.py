"""Decides whether boxes were drawn on an image as stored or after the rotation in its EXIF tag.

The declared size decides if the rotation changes it; otherwise the boxes do, if they fit the image only one way.
Neither helps for square images, for orientations 2 to 4, or if no size is declared (as in YOLO). Then the rest of the
dataset decides, if all its clear images agree, since one tool probably drew all of it. Otherwise the image is assumed
to be upright, as browsers and most current tools show it, and the assumption is reported.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from efficientdet.data import sources
from efficientdet.errors import UserError
from efficientdet.media import images

BoxesDrawn = Literal["auto", "upright", "stored"]
"""Which image the boxes were drawn on, if that is unclear; auto follows the rest of the dataset."""

BY_THE_REST = "images whose EXIF rotation is treated like that of the rest of the dataset"
UNTOLD = (
    "images with an EXIF rotation whose boxes could be for the rotated or the unrotated image: upright assumed (set "
    "`--exif-boxes` to choose)"
)

_HEAD_BYTES = 65_536
_BOUNDARY_PX = 1.0


def settle(dataset: sources.Source, choice: BoxesDrawn) -> sources.Source:
    """Decides, for each image with an EXIF rotation and boxes, which version the boxes were drawn on.

    Args:
        dataset: only the headers of its images are read.
        choice: what to assume if an image leaves it open; `auto` follows the rest of the dataset.
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
                continue  # `policy` rejects it
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
    """Decides by declared size or by where the boxes fit whether they belong to the upright image; None: unclear."""
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
    """Reads the header of an image with an EXIF rotation; returns None for other images and unreadable ones."""
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
    """Checks whether a file may hold a rotation; for most files the first bytes are enough to rule it out."""
    if head[:2] == b"\xff\xd8":
        return b"Exif\x00" in head
    if head[:4] == b"RIFF":
        return len(head) > 20 and bool(head[20] & 0x08)
    if head[:4] == b"\x89PNG":
        return b"eXIf" in head or b"exif" in head or (len(head) == _HEAD_BYTES and b"eXIf" in path.read_bytes())
    return head[:2] in (b"II", b"MM")
