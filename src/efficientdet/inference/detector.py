"""Detects objects in raw images: letterboxes them, runs the network, and maps the boxes back to their pixels.

    import efficientdet

    detector = efficientdet.Detector("runs/d0")
    detector("photograph.jpg").draw().save("found.jpg")

A detector can be used from any number of threads. Keras runs their batches concurrently on both backends. Not all other
runtimes are thread-safe, so they run one batch at a time; images are always read and scaled concurrently.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from efficientdet.config import Depthwise, PostprocessConfig, Precision, RuntimeName, Switch, Tiles
from efficientdet.data import preprocess
from efficientdet.errors import UserError
from efficientdet.formats import keras as keras_runtime
from efficientdet.formats import loading
from efficientdet.inference import selection
from efficientdet.inference import tiles as tile_grids
from efficientdet.inference.detections import ImageDetections
from efficientdet.media import inputs

_Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Detections of one image: boxes float32[K, 4], yxyx px; labels int32[K]; scores float32[K]."""


class Detector:
    """Detects objects in images with loaded weights; safe to call from several threads."""

    def __init__(
        self,
        weights: str | Path,
        *,
        score_threshold: float = 0.3,
        class_thresholds: Mapping[str, float] | Mapping[int, float] | None = None,
        classes: Sequence[str | int] | None = None,
        class_agnostic: bool = False,
        max_detections: int | None = None,
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
            weights: weights file, run folder (uses its best weights), published name such as coco-d0, or export.
            score_threshold: drop detections with a lower score.
            class_thresholds: score thresholds for individual classes, by name or dataset id.
            classes: names or dataset ids of the classes to keep; None keeps all.
            class_agnostic: among boxes with an IoU of at least 0.5, keep only the best, regardless of class.
            max_detections: maximum number of detections per image, best first; None keeps all that the network returns
                (at most 100, unless `postprocess` sets another limit or tiles are used).
            batch_size: maximum number of images or tiles per batch; longer lists are split.
            image_size: height and width of the network input, px; None means what the weights were trained with.
            precision: precision of the network's arithmetic.
            runtime: what runs the network; auto picks OpenVINO on a CPU if it is installed, else Keras.
            xla: compile Keras's graph with XLA; auto does so on a GPU.
            postprocess: limits and thresholds of the suppression.
            depthwise: how Keras's runtime computes depthwise convolutions; auto picks pallas with JAX on a GPU
                (the only place it works), else convolution.

        Raises:
            UserError: the weights cannot be used, or have no such class.
        """
        selection.check_threshold(score_threshold, "score_threshold")
        if batch_size < 1:
            raise UserError(f"`batch_size` is {batch_size}; it must be at least 1.")
        self.runtime = loading.load_runtime(
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
        self.classes = classes
        self.class_thresholds = class_thresholds
        self.class_agnostic = class_agnostic
        self.max_detections = max_detections
        self._choose()  # checks the options now rather than at the first call
        self._process = os.getpid()
        is_reentrant = isinstance(self.runtime, keras_runtime.KerasRuntime)
        self._turn = contextlib.nullcontext() if is_reentrant else threading.Lock()

    @overload
    def detect(  # type: ignore[overload-overlap]  # a string is a sequence of strings too
        self,
        images: inputs.AnyImage,
        *,
        score_threshold: float | None = None,
        class_thresholds: Mapping[str, float] | Mapping[int, float] | None = None,
        classes: Sequence[str | int] | None = None,
        class_agnostic: bool | None = None,
        max_detections: int | None = None,
        tiles: Tiles | None = None,
        tile_overlap: float = 0.2,
    ) -> ImageDetections: ...

    @overload
    def detect(
        self,
        images: Iterable[inputs.AnyImage],
        *,
        score_threshold: float | None = None,
        class_thresholds: Mapping[str, float] | Mapping[int, float] | None = None,
        classes: Sequence[str | int] | None = None,
        class_agnostic: bool | None = None,
        max_detections: int | None = None,
        tiles: Tiles | None = None,
        tile_overlap: float = 0.2,
    ) -> list[ImageDetections]: ...

    def detect(
        self,
        images: inputs.AnyImage | Iterable[inputs.AnyImage],
        *,
        score_threshold: float | None = None,
        class_thresholds: Mapping[str, float] | Mapping[int, float] | None = None,
        classes: Sequence[str | int] | None = None,
        class_agnostic: bool | None = None,
        max_detections: int | None = None,
        tiles: Tiles | None = None,
        tile_overlap: float = 0.2,
    ) -> ImageDetections | list[ImageDetections]:
        """Detects objects in one or more images; the same as `detector(...)`.

        Args:
            images: a path; a URL (http, https, file, data); the bytes of an image file; a file open in binary mode; a
                Pillow image; uint8[h, w, 3], upright, in RGB (OpenCV's `imread` returns BGR: pass `image[..., ::-1]`);
                or several of these, in any sizes.
            score_threshold: drop detections with a lower score; None means the detector's value.
            class_thresholds: score thresholds for individual classes, by name or id; None means the detector's.
            classes: names or ids of the classes to keep; None means the detector's.
            class_agnostic: keep one box per object, whatever its class; None means the detector's value.
            max_detections: maximum number of detections per image; None means the detector's value.
            tiles: also detect in tiles of this size, for small objects in large images; None uses no tiles.
            tile_overlap: minimum overlap of neighboring tiles, as a fraction of a tile's side, 0 to 0.9.

        Returns:
            Detections of the image, or a list in the order of the images.

        Raises:
            UserError: an image cannot be used, or the weights have no such class.
        """
        is_one = inputs.is_one(images)
        found = self.detect_each(
            [images] if is_one else images,  # type: ignore[list-item, arg-type]
            score_threshold=score_threshold,
            class_thresholds=class_thresholds,
            classes=classes,
            class_agnostic=class_agnostic,
            max_detections=max_detections,
            tiles=tiles,
            tile_overlap=tile_overlap,
        )
        return next(found) if is_one else list(found)

    __call__ = detect

    def detect_each(
        self,
        images: Iterable[inputs.AnyImage],
        *,
        score_threshold: float | None = None,
        class_thresholds: Mapping[str, float] | Mapping[int, float] | None = None,
        classes: Sequence[str | int] | None = None,
        class_agnostic: bool | None = None,
        max_detections: int | None = None,
        tiles: Tiles | None = None,
        tile_overlap: float = 0.2,
    ) -> Iterator[ImageDetections]:
        """Yields detections image by image, for more images than fit into memory; takes the arguments of `detect`.

        A batch is read when its first result is requested.
        """
        self._check_process()
        if isinstance(images, Mapping | set | frozenset) or not isinstance(images, Iterable):
            images = [images]  # type: ignore[list-item]  # neither one image nor several: rejected as one
        choice = self._choose(score_threshold, class_thresholds, classes, class_agnostic, max_detections)

        def answer(image: inputs.AnyImage, size: tuple[int, int], found: _Found) -> ImageDetections:
            boxes, labels, scores = found
            rows = choice.rows(boxes, labels, scores)
            return ImageDetections(
                size=size,
                boxes=boxes[rows],
                labels=labels[rows],
                scores=scores[rows],
                categories=self.categories,
                image=image,
            )

        if tiles is None:
            return self._in_batches(images, answer)
        tile_size = self.runtime.image_size if tiles == "input" else tiles
        return self._in_tiles(images, tile_size, tile_overlap, answer)

    def _choose(
        self,
        score_threshold: float | None = None,
        class_thresholds: Mapping[str, float] | Mapping[int, float] | None = None,
        classes: Sequence[str | int] | None = None,
        class_agnostic: bool | None = None,
        max_detections: int | None = None,
    ) -> selection.Choice:
        """Chooses what to show: the options of a call, else those of the detector."""
        return selection.choose(
            self.categories,
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
            class_thresholds=self.class_thresholds if class_thresholds is None else class_thresholds,
            classes=self.classes if classes is None else classes,
            class_agnostic=self.class_agnostic if class_agnostic is None else class_agnostic,
            max_detections=self.max_detections if max_detections is None else max_detections,
        )

    def _check_process(self) -> None:
        """Raises a UserError in a process that was forked from the one that loaded the weights.

        The runtime's threads do not survive a fork, so a call there would wait for them forever.
        """
        if os.getpid() != self._process:
            raise UserError(
                f"This Detector was created in process {self._process} and cannot be used in {os.getpid()}, which was "
                "forked from it. Create one in each process, or start processes with "
                "multiprocessing.get_context('spawn')."
            )

    def _in_batches(
        self, images: Iterable[inputs.AnyImage], answer: Callable[..., ImageDetections]
    ) -> Iterator[ImageDetections]:
        """Detects in whole images."""
        left = iter(images)
        while batch := [inputs.to_keep(each) for each in itertools.islice(left, self.batch_size)]:
            # Only the small network inputs stay in memory, not the decoded images.
            boxed = [self._letterbox(inputs.to_array(image)) for image in batch]
            for image, (_, _, _, size), found in zip(batch, boxed, self._run(boxed), strict=True):
                yield answer(image, size, found)

    def _in_tiles(
        self,
        images: Iterable[inputs.AnyImage],
        tile_size: tuple[int, int],
        overlap: float,
        answer: Callable[..., ImageDetections],
    ) -> Iterator[ImageDetections]:
        """Detects in each whole image, and in its tiles if there is more than one."""
        for image in map(inputs.to_keep, images):
            pixels = inputs.to_array(image)
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
            yield answer(image, (height, width), (boxes[kept].astype(np.float32), labels[kept], scores[kept]))

    def _letterbox(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int], float, tuple[int, int]]:
        """Letterboxes an image; returns uint8[H, W, 3], the valid size, the scale and the original size."""
        boxed = preprocess.letterbox(pixels, self.runtime.image_size, self.runtime.resize)
        return *boxed, (pixels.shape[0], pixels.shape[1])

    def _run(self, boxed: list[tuple[np.ndarray, tuple[int, int], float, tuple[int, int]]]) -> list[_Found]:
        """Runs the network on a batch of `_letterbox` results."""
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
