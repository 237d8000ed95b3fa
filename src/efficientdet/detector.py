"""Raw pictures -> detections in their own pixels: letterbox, runtime, undo the letterbox.

    import efficientdet

    detector = efficientdet.Detector("runs/d0")
    detector("photograph.jpg").draw().save("found.jpg")

One detector serves any number of threads. Keras takes their batches side by side, on both backends; of other runtimes
not each bears two calls at once, so there one batch waits for the other; pictures are read and scaled side by side.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
from PIL import Image

from efficientdet import runtimes
from efficientdet import tiles as tile_grids
from efficientdet.config import Depthwise, PostprocessConfig, Precision, RuntimeName, Switch
from efficientdet.data import images as image_files
from efficientdet.data import preprocess
from efficientdet.detections import PictureDetections
from efficientdet.errors import UserError
from efficientdet.runtimes import keras as keras_runtime
from efficientdet.structures import Category

Tiles = tuple[int, int] | Literal["input"]
"""Height and width of a tile, px of the picture; "input": as large as the network input."""

_Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of one picture: boxes float32[K, 4], yxyx px of it; labels int32[K]; scores float32[K]."""


class Detector:
    """Weights, ready to look at pictures; may be called from several threads at once."""

    def __init__(
        self,
        weights: str | Path,
        *,
        score_threshold: float = 0.3,
        classes: Sequence[str | int] | None = None,
        batch_size: int = 8,
        image_size: tuple[int, int] | None = None,
        precision: Precision = "float32",
        runtime: RuntimeName = "auto",
        xla: Switch = "auto",
        postprocess: PostprocessConfig | None = None,
        depthwise: Depthwise = "auto",
    ):
        """Loads weights.

        Args:
            weights: weights file, folder of a run (its best weights), a published name such as coco-d0, or an export.
            score_threshold: detections below this are left out.
            classes: names or the dataset's ids of the classes that are wanted; none: all.
            batch_size: most pictures, or tiles, in the network at once; longer lists go through in parts.
            image_size: height and width of the network input, px; None: what the weights were trained with.
            precision: of the arithmetic inside the network.
            runtime: what runs the network; auto: OpenVINO on a CPU where it is installed, else Keras.
            xla: compile Keras's graph with XLA; auto: on a GPU.
            postprocess: limits and thresholds of the suppression.
            depthwise: how Keras's runtime computes depthwise convolutions; auto: pallas with JAX on a GPU,
                which it needs, else convolution.

        Raises:
            UserError: the weights cannot be used, or have no such class.
        """
        _check_threshold(score_threshold)
        if batch_size < 1:
            raise UserError(f"`batch_size` is {batch_size}; it must be at least 1.")
        self.runtime = runtimes.load_runtime(
            weights,
            runtime=runtime,
            postprocess=postprocess,
            image_size=image_size,
            precision=precision,
            xla=xla,
            depthwise=depthwise,
        )
        self.score_threshold = score_threshold
        self.batch_size = batch_size
        self.categories = self.runtime.categories
        self.classes = _find_classes(classes, self.categories)
        is_reentrant = isinstance(self.runtime, keras_runtime.KerasRuntime)
        self._turn = contextlib.nullcontext() if is_reentrant else threading.Lock()

    @overload
    def detect(  # type: ignore[overload-overlap]  # a string is a sequence of strings too
        self,
        images: image_files.Picture,
        *,
        score_threshold: float | None = None,
        classes: Sequence[str | int] | None = None,
        tiles: Tiles | None = None,
        tile_overlap: float = 0.2,
    ) -> PictureDetections: ...

    @overload
    def detect(
        self,
        images: Iterable[image_files.Picture],
        *,
        score_threshold: float | None = None,
        classes: Sequence[str | int] | None = None,
        tiles: Tiles | None = None,
        tile_overlap: float = 0.2,
    ) -> list[PictureDetections]: ...

    def detect(
        self,
        images: image_files.Picture | Iterable[image_files.Picture],
        *,
        score_threshold: float | None = None,
        classes: Sequence[str | int] | None = None,
        tiles: Tiles | None = None,
        tile_overlap: float = 0.2,
    ) -> PictureDetections | list[PictureDetections]:
        """Detects in a picture, or in several. `detector(...)` is the same.

        Args:
            images: uint8[h, w, 3], RGB, upright; a picture of Pillow's; a path; or several of these, in any sizes.
            score_threshold: detections below it are left out; none: the detector's.
            classes: names or ids of the classes that are wanted; none: the detector's.
            tiles: look at pieces of this size too, for small objects in large pictures; none: at the whole only.
            tile_overlap: least share of a tile's side that the next one sees too, 0..0.9.

        Returns:
            What was found: of one picture, or a list in the order of the pictures.

        Raises:
            UserError: a picture cannot be used, or the weights have no such class.
        """
        found = self.detect_each(
            [images] if _is_one(images) else images,  # type: ignore[list-item, arg-type]
            score_threshold=score_threshold,
            classes=classes,
            tiles=tiles,
            tile_overlap=tile_overlap,
        )
        return next(found) if _is_one(images) else list(found)

    __call__ = detect

    def detect_each(
        self,
        images: Iterable[image_files.Picture],
        *,
        score_threshold: float | None = None,
        classes: Sequence[str | int] | None = None,
        tiles: Tiles | None = None,
        tile_overlap: float = 0.2,
    ) -> Iterator[PictureDetections]:
        """Detects in pictures one after the other, for more than fit into memory; arguments as of `detect`.

        A batch is read when its first answer is asked for.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        _check_threshold(threshold)
        wanted = self.classes if classes is None else _find_classes(classes, self.categories)

        def answer(picture: image_files.Picture, size: tuple[int, int], found: _Found) -> PictureDetections:
            boxes, labels, scores = found
            is_shown = (scores >= threshold) & np.isin(labels, wanted)
            return PictureDetections(
                size=size,
                boxes=boxes[is_shown],
                labels=labels[is_shown],
                scores=scores[is_shown],
                categories=self.categories,
                picture=picture,
            )

        if tiles is None:
            return self._in_batches(images, answer)
        tile_size = self.runtime.image_size if tiles == "input" else tiles
        return self._in_tiles(images, tile_size, tile_overlap, answer)

    def _in_batches(
        self, images: Iterable[image_files.Picture], answer: Callable[..., PictureDetections]
    ) -> Iterator[PictureDetections]:
        """Looks at whole pictures."""
        pictures = iter(images)
        while batch := list(itertools.islice(pictures, self.batch_size)):
            # Of what is read only the small network input stays in memory.
            boxed = [self._letterbox(image_files.to_array(picture)) for picture in batch]
            for picture, (_, _, _, size), found in zip(batch, boxed, self._run(boxed), strict=True):
                yield answer(picture, size, found)

    def _in_tiles(
        self,
        images: Iterable[image_files.Picture],
        tile_size: tuple[int, int],
        overlap: float,
        answer: Callable[..., PictureDetections],
    ) -> Iterator[PictureDetections]:
        """Looks at each picture as a whole, and at its tiles if it has more than one."""
        for picture in images:
            pixels = image_files.to_array(picture)
            height, width = pixels.shape[:2]
            grid = tile_grids.split((height, width), tile_size, overlap)
            origins = np.array([[0, 0, height, width], *(grid if len(grid) > 1 else [])])
            parts: list[_Found] = []
            for start in range(0, len(origins), self.batch_size):
                batch = origins[start : start + self.batch_size]
                parts += self._run([self._letterbox(pixels[y1:y2, x1:x2]) for y1, x1, y2, x2 in batch])
            boxes = np.concatenate(
                [found[0] + origin[[0, 1, 0, 1]] for found, origin in zip(parts, origins, strict=True)]
            )
            labels, scores = (np.concatenate([found[part] for found in parts]) for part in (1, 2))
            seen_in = origins.repeat([len(found[2]) for found in parts], axis=0)
            kept = tile_grids.merge(boxes, labels, scores, seen_in, grid, (height, width))
            yield answer(picture, (height, width), (boxes[kept].astype(np.float32), labels[kept], scores[kept]))

    def _letterbox(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int], float, tuple[int, int]]:
        """Makes a network input of a picture: uint8[H, W, 3], the size inside, the scale, the picture's own size."""
        boxed = preprocess.letterbox(pixels, self.runtime.image_size, self.runtime.resize)
        return *boxed, (pixels.shape[0], pixels.shape[1])

    def _run(self, boxed: list[tuple[np.ndarray, tuple[int, int], float, tuple[int, int]]]) -> list[_Found]:
        """Runs the network on a batch of `_letterbox`."""
        pixels, valid_sizes, scales, sizes = zip(*boxed, strict=True)
        batch, valid_size = np.stack(pixels), np.array(valid_sizes, np.int32)
        with self._turn:
            found = self.runtime.detect(batch, valid_size)
        boxes = preprocess.undo_letterbox(found["boxes"], np.array(scales), np.array(sizes, np.int32))
        is_found = found["labels"] >= 0
        return [
            (boxes[row][is_found[row]], found["labels"][row][is_found[row]], found["scores"][row][is_found[row]])
            for row in range(len(boxed))
        ]


def _is_one(images: object) -> bool:
    """Tells a picture from several."""
    return isinstance(images, np.ndarray | Image.Image | Path | str)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UserError(f"`score_threshold` is {threshold}; it must be in [0, 1].")


def _find_classes(classes: Sequence[str | int] | None, categories: tuple[Category, ...]) -> np.ndarray:
    """Finds the labels of classes by their names or ids.

    Returns:
        int[N], positions in `categories`.

    Raises:
        UserError: there is no such class.
    """
    if classes is None:
        return np.arange(len(categories))
    if isinstance(classes, str) or not len(classes):
        raise UserError(f"`classes` is {classes!r}; expected a list of one or more names or ids.")
    labels: dict[str, list[int]] = {}
    for label, category in enumerate(categories):
        labels.setdefault(category.name, []).append(label)
    for label, category in enumerate(categories):  # a number is an id unless a class is called so
        labels.setdefault(str(category.id), [label])
    unknown = [each for each in classes if str(each) not in labels]
    if unknown:
        known = ", ".join(f"{category.name} ({category.id})" for category in categories)
        raise UserError(f"`classes` has {unknown[0]!r}; these weights know {known}.")
    return np.array([label for each in classes for label in labels[str(each)]])
