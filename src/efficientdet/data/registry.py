"""The supported annotation formats by name.

`coco`, `voc` and `yolo` have their own options and are called by `conversion`; the others collect images and boxes in a
`Collection`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from efficientdet.data import sources
from efficientdet.data.formats import (
    createml,
    cvat,
    image_folder,
    label_studio,
    labelme,
    open_images,
    supervisely,
    tables,
    via,
)
from efficientdet.data.reading import collection

Format = Literal[
    "coco",
    "voc",
    "yolo",
    "csv",
    "labelme",
    "cvat",
    "openimages",
    "createml",
    "labelstudio",
    "via",
    "supervisely",
    "imagefolder",
]

Choice = Literal["auto", Format]
"""A format, or `auto` to detect it from the files."""

NAMES: tuple[Format, ...] = get_args(Format)


READERS: dict[str, Callable[[collection.Collection], None]] = {
    "csv": tables.read,
    "labelme": labelme.read,
    "cvat": cvat.read,
    "openimages": open_images.read,
    "createml": createml.read,
    "labelstudio": label_studio.read,
    "via": via.read,
    "supervisely": supervisely.read,
    "imagefolder": image_folder.read,
}


def read(
    format: str,
    source: Path,
    *,
    splits: tuple[str, ...] = (),
    classes: Path | None = None,
    reading: sources.Reading | None = None,
) -> sources.Source:
    """Reads a dataset in a format of `READERS`.

    Args:
        format: its name.
        source: the folder.
        splits: take only these; all if empty.
        classes: file with the class names, one per line, in the order of their ids 1..C; without it, the classes are
            those that the format lists, or else all names that occur, sorted.
        reading: where faults of annotations go; None means that the first is raised.
    """
    gathered = collection.Collection(source, classes=classes, reading=reading)
    READERS[format](gathered)
    return gathered.finish(splits)
