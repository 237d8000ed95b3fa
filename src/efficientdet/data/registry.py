"""The annotation formats that are read, by name.

`coco`, `voc` and `yolo` have options of their own and are called by `conversion`; the readers here take splits, class
names, and where faults go.
"""

from pathlib import Path
from typing import Literal, Protocol, get_args

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
"""A format, or `auto`: what the files look like."""

NAMES: tuple[Format, ...] = get_args(Format)


class Reader(Protocol):
    """Reads a dataset: takes the splits that are named, the class names of a file, and where faults go."""

    def __call__(
        self,
        source: Path,
        *,
        splits: tuple[str, ...] = (),
        classes: Path | None = None,
        reading: sources.Reading | None = None,
    ) -> sources.Source: ...  # fmt: skip


READERS: dict[str, Reader] = {
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
