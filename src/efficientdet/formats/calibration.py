"""Images for comparison and calibration, letterboxed one by one: from files, from records, or generated."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from efficientdet.config import ModelConfig
from efficientdet.data import preprocess, synthetic
from efficientdet.errors import UserError
from efficientdet.media import images
from efficientdet.structures import Category


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One image in the form of a network input."""

    images: np.ndarray
    """uint8[1, H, W, 3], letterboxed."""
    valid_size: np.ndarray
    """int32[1, 2], height and width of the image inside, px."""


def letterboxed(image: np.ndarray, model: ModelConfig) -> Sample:
    """Letterboxes an image, uint8[h, w, 3]."""
    pixels, valid_size, _ = preprocess.letterbox(image, model.image_size, model.resize)
    return Sample(images=pixels[None], valid_size=np.array([valid_size], np.int32))


def from_folder(folder: Path, model: ModelConfig, count: int, name: str) -> list[Sample]:
    """Reads the first images of a folder and its subfolders, sorted by path.

    Args:
        folder: folder of images.
        model: model config, for the size of the network input.
        count: maximum number of images.
        name: name of the argument in errors.

    Raises:
        UserError: there are no images, or one cannot be decoded.
    """
    if not folder.is_dir():
        raise UserError(f"`{name}` is `{folder}`, which is not a folder.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.SUFFIXES)[:count]
    if not paths:
        raise UserError(f"`{name}` is `{folder}`, which has no images ({', '.join(images.SUFFIXES)}).")
    return [letterboxed(images.read_image(path, str(path)), model) for path in paths]


def from_records(
    location: str, split: str, model: ModelConfig, categories: tuple[Category, ...], count: int
) -> list[Sample]:
    """Reads the first images of a split of records, as evaluation does."""
    from efficientdet.data import pipeline
    from efficientdet.data.records import store

    batches = pipeline.evaluation_batches(
        store.open_records(location, split, may_lack_boxes=True),
        categories=categories,
        image_size=model.image_size,
        resize=model.resize,
        batch_size=1,
        max_images=count,
    )
    return [Sample(images=batch["images"], valid_size=batch["valid_size"]) for batch, _ in batches]


def generated(model: ModelConfig, count: int) -> Iterator[Sample]:
    """Generates images of different shapes, so that padding is tested too."""
    height, width = model.image_size
    for number in range(count):
        size = (max(32, height - 9 * number), width) if number % 2 else (height, max(32, width - 9 * number))
        yield letterboxed(synthetic.draw_image(0, number, size)[0], model)


def find(
    location: str, model: ModelConfig, categories: tuple[Category, ...], count: int, *, split: str = "train"
) -> list[Sample]:
    """Reads images for calibration from a folder of images or from records.

    Raises:
        UserError: the location is neither.
    """
    folder = Path(location).expanduser()
    if folder.is_dir() and not (folder / "dataset.json").is_file():
        return from_folder(folder, model, count, "calibration")
    return from_records(location, split, model, categories, count)
