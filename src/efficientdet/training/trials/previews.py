"""A sheet of training images with their boxes, as the network sees them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from efficientdet import backend
from efficientdet import config as configs
from efficientdet.config import ExperimentConfig, ModelConfig
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.media import draw
from efficientdet.result import Result
from efficientdet.storage import files
from efficientdet.training import dataset as datasets

_LEAST_SIDE = 256  # px of an image on the sheet, so that class names are readable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview(Result):
    """Result of `preview`."""

    output: str
    """The sheet."""
    images: list[dict[str, Any]]
    """For each image: its id, height and width without padding, and its boxes in px of the network input."""
    object_sizes: dict[str, float] | None
    """Smallest, median and largest object (square root of the area, px of the network input), and the share of objects
    smaller than the smallest anchor. None without boxes."""
    smallest_anchor: float
    """Its side, px of the network input."""

    def text(self) -> str:
        """Says what was drawn and how large the objects are."""
        boxes = sum(len(image["boxes"]) for image in self.images)
        drawn = f"{self.output}: {len(self.images)} images with {boxes} boxes"
        if self.object_sizes is None:
            return drawn
        sizes = self.object_sizes
        return (
            f"{drawn}\n"
            f"object sizes in the network input (square root of the area): {sizes['smallest']:.0f} to "
            f"{sizes['largest']:.0f} px, median {sizes['median']:.0f} px; {sizes['below_anchors']:.0%} are smaller "
            f"than the smallest anchor ({self.smallest_anchor:g} px)"
        )


def preview(
    data: Annotated[str, tyro.conf.arg(metavar="DATA")],
    /,
    *,
    output: Path = Path("preview.jpg"),
    num_images: int = 16,
    columns: int = 4,
    config: Annotated[ExperimentConfig, tyro.conf.arg(name="")] = ExperimentConfig(),  # noqa: B008
) -> Preview:
    """Draws the first training images of a run, augmented, with their boxes, and reports object sizes.

    Args:
        data: converted dataset, glob of TFRecord files, or folder of photographs with annotations.
        output: the sheet, a .jpg or .png file.
        num_images: number of images on the sheet.
        columns: images per row.
        config: config of the run; its image size, augmentation, seed and split are used.

    Returns:
        Path and contents of the sheet.

    Raises:
        UserError: the dataset or a knob cannot be used.
    """
    if num_images < 1 or columns < 1:
        raise UserError(f"`num_images` is {num_images} and `columns` is {columns}; both must be at least 1.")
    if output.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise UserError(f"`output` is `{output}`; it must end in .jpg or .png.")
    configs.check(config)
    files.check_writable(output)
    opened = datasets.open_dataset(_configure(config, data, num_images))
    names = [category.name for category in opened.categories]
    batch, ids = next(iter(opened.training_batches(0, 1)))
    drawn, described = [], []
    for row, count in enumerate(batch["num_boxes"]):
        boxes, labels = batch["boxes"][row, :count], batch["labels"][row, :count]
        image = _pad(batch["images"][row], batch["valid_size"][row], config.model)
        image, enlarged = draw.enlarge(image, boxes, _LEAST_SIDE)
        drawn.append(draw.draw_detections(image, enlarged, labels, None, names))
        described.append(_describe(int(ids[row]), batch["valid_size"][row], boxes, [names[label] for label in labels]))
    _write_sheet(output, draw.contact_sheet(drawn, columns))
    smallest_anchor = 2**config.model.min_level * config.model.anchor_scale
    return Preview(
        output=str(output),
        images=described,
        object_sizes=_object_sizes(batch, smallest_anchor),
        smallest_anchor=smallest_anchor,
    )


def _pad(image: np.ndarray, valid_size: np.ndarray, model: ModelConfig) -> np.ndarray:
    """Fills the padding of an image with the color that the network sees there; in a batch it is black."""
    if model.padding == "black":
        return image
    height, width = valid_size
    padded = np.empty_like(image)
    padded[:] = np.round(255 * np.array(model.pixel_mean))
    padded[:height, :width] = image[:height, :width]
    return padded


def _object_sizes(batch: Any, smallest_anchor: float) -> dict[str, float] | None:
    """Summarizes the sizes of the objects in a batch."""
    boxes = np.concatenate([boxes[:count] for boxes, count in zip(batch["boxes"], batch["num_boxes"], strict=True)])
    if not len(boxes):
        return None
    sizes = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return {
        "smallest": round(float(sizes.min()), 2),
        "median": round(float(np.median(sizes)), 2),
        "largest": round(float(sizes.max()), 2),
        "below_anchors": round(float(np.mean(sizes < smallest_anchor)), 4),
    }


def _configure(config: ExperimentConfig, data: str, num_images: int) -> ExperimentConfig:
    """Points the config of a run at `data`, with all images of the sheet in one batch and no validation."""
    if data == datasets.SYNTHETIC:
        raise UserError(
            "`data` is `synthetic`, but generated images are not augmented; `efficientdet demo` creates records to "
            "preview."
        )
    backend.require_tensorflow("`preview`")
    folder = Path(data).expanduser()
    is_source = folder.is_dir() and not (folder / store.MANIFEST).is_file()
    train, source = ("", data) if is_source else (data, "")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, validation="none", train=train, source=source),
        training=dataclasses.replace(config.training, batch_size=num_images),
    )


def _describe(id: int, valid_size: np.ndarray, boxes: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Converts the facts about one image to plain JSON values; corners in px, x before y."""
    found = [
        {"class": name, "box": {"x1": round(x1, 2), "y1": round(y1, 2), "x2": round(x2, 2), "y2": round(y2, 2)}}
        for name, (y1, x1, y2, x2) in zip(names, boxes.tolist(), strict=True)
    ]
    return {"id": id, "height": int(valid_size[0]), "width": int(valid_size[1]), "boxes": found}


def _write_sheet(path: Path, image: np.ndarray) -> None:
    """Writes the sheet to a temporary file and renames it."""
    from PIL import Image

    files.write_aside(path, lambda temporary: Image.fromarray(image).save(temporary, quality=92))
