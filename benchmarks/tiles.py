"""What do tiles find that the whole image does not? AP on large images with small objects.

Each large image is put together of generated images (data/synthetic.py), whose boxes are known.
The detector looks at it as a whole, in tiles as large as its input, and in tiles whose answers are not merged; and
supervision's slicer, where it is installed, slices for the same detector. Writes AP, time and numbers of boxes as JSON.

    python benchmarks/tiles.py demo/run --output benchmarks/results/tiles.json
"""

import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import efficientdet
from efficientdet import backend
from efficientdet.benchmarks import report
from efficientdet.data import synthetic
from efficientdet.evaluation import counting
from efficientdet.inference import tiles
from efficientdet.inference.detections import ImageDetections
from efficientdet.storage import files

_SEED = 7_000_000  # images that no demo was trained on
_SCORE = 0.05
_SHOWN_SCORE = 0.3

_Large = tuple[np.ndarray, np.ndarray, np.ndarray]
_Answer = tuple[np.ndarray, np.ndarray, np.ndarray]
_Detect = Callable[[np.ndarray], _Answer]


def main(
    weights: Path,
    /,
    *,
    output: Path,
    images: int = 16,
    pieces: int = 5,
    piece_side: int = 126,
    overlap: float = 0.2,
) -> None:
    """Composes, detects, counts.

    Args:
        weights: of a detector of generated shapes, such as the run of `efficientdet demo`.
        output: JSON file to write.
        images: large ones.
        pieces: generated images along each side; with more, objects exceed COCO's limit of 100 detections.
        piece_side: their height and width, px; best that of the images that the weights were trained on.
        overlap: of tiles, share of a side.
    """
    backend.choose()
    detector = efficientdet.Detector(weights, score_threshold=_SCORE)
    large = [_compose(number, pieces, piece_side) for number in range(images)]
    rows = {}
    for name, detect in _candidates(detector, overlap).items():
        rows[name] = _measure(detect, large, detector.categories)
        print(f"{name:32} {rows[name]}", flush=True)
    facts = {
        "images": images,
        "side": pieces * piece_side,
        "objects": sum(len(labels) for _, _, labels in large),
        "median_object_side": round(
            float(np.sqrt(np.median(np.concatenate([_areas(boxes) for _, boxes, _ in large])))), 1
        ),
        "tile": list(detector.runtime.image_size),
        "overlap": overlap,
        "weights": weights.name,
    }
    what = "AP on large images with small objects, of the whole and in tiles; ms an image are medians"
    files.write_json(output, {"what": what, "facts": facts, "rows": rows, **report.circumstances()})


def _compose(number: int, pieces: int, piece_side: int) -> _Large:
    """Lays generated images side by side: uint8[H, W, 3], float32[N, 4] yxyx px, int32[N]."""
    canvas = np.empty((pieces * piece_side, pieces * piece_side, 3), np.uint8)
    boxes, labels = [], []
    for piece in range(pieces**2):
        image, found, classes = synthetic.draw_image(_SEED, number * pieces**2 + piece, (piece_side, piece_side))
        top, left = (place * piece_side for place in divmod(piece, pieces))
        canvas[top : top + piece_side, left : left + piece_side] = image
        boxes.append(found + np.array([top, left, top, left], np.float32))
        labels.append(classes)
    return canvas, np.concatenate(boxes), np.concatenate(labels)


def _candidates(detector: efficientdet.Detector, overlap: float) -> dict[str, _Detect]:
    """Names the ways to look at a large image."""

    def whole(image: np.ndarray) -> _Answer:
        return _arrays(detector.detect(image))

    def tiled(image: np.ndarray) -> _Answer:
        return _arrays(detector.detect(image, tiles="input", tile_overlap=overlap))

    def closer(image: np.ndarray) -> _Answer:
        return _arrays(detector.detect(image, tiles="input", tile_overlap=0.5))

    def without_merging(image: np.ndarray) -> _Answer:
        parts = []
        for y1, x1, y2, x2 in tiles.split(image.shape[:2], detector.runtime.image_size, overlap):
            boxes, labels, scores = _arrays(detector.detect(image[y1:y2, x1:x2]))
            parts.append((boxes + np.array([y1, x1, y1, x1], np.float32), labels, scores))
        boxes, labels, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        return boxes, labels, scores

    found = {
        "whole": whole,
        "tiles": tiled,
        "tiles, half of each seen twice": closer,
        "tiles, not merged": without_merging,
    }
    if importlib.util.find_spec("supervision") is not None:
        for metric in ("IOU", "IOS"):
            found[f"supervision's slicer, {metric}"] = _supervision(detector, overlap, metric)
    return found


def _supervision(detector: efficientdet.Detector, overlap: float, metric: str) -> _Detect:
    """Slices with supervision, in batches as ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like OpenCV
        import supervision

    height, width = detector.runtime.image_size
    slicer = supervision.InferenceSlicer(
        lambda batch: [
            found.to_supervision() for found in detector.detect([np.ascontiguousarray(one) for one in batch])
        ],
        slice_wh=(width, height),
        overlap_wh=(round(width * overlap), round(height * overlap)),
        overlap_metric=metric.lower(),
        batch_size=detector.batch_size,
    )

    def detect(image: np.ndarray) -> _Answer:
        found = slicer(image)
        return found.xyxy[:, [1, 0, 3, 2]].astype(np.float32), found.class_id.astype(np.int32), found.confidence

    return detect


def _arrays(found: ImageDetections) -> _Answer:
    return found.boxes, found.labels, found.scores


def _measure(detect: _Detect, large: list[_Large], categories: Any) -> dict[str, Any]:
    """Counts one way's AP and boxes, and takes its time."""
    evaluator = counting.CocoEvaluator(categories)
    detect(large[0][0])  # compiles
    times, shown = [], 0
    for number, (image, truth, classes) in enumerate(large, start=1):
        began = time.perf_counter()
        boxes, labels, scores = detect(image)
        times.append(1000 * (time.perf_counter() - began))
        shown += int((scores >= _SHOWN_SCORE).sum())
        evaluator.add_truth(_truth(number, image, truth, classes))
        evaluator.add_coco_results(_results(number, boxes, labels, scores, categories))
    result = evaluator.result()
    return {
        "AP": round(result.metrics["AP"], 4),
        "AP50": round(result.metrics["AP50"], 4),
        "AR": round(result.metrics["ARmax100"], 4),
        "boxes_shown": shown,
        "ms": round(statistics.median(times), 1),
    }


def _truth(number: int, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Any:
    """Makes the `Originals` of one image."""
    return {
        "ids": np.array([number]),
        "scales": np.ones(1, np.float32),
        "sizes": np.array([image.shape[:2]], np.int32),
        "boxes": boxes[None],
        "labels": labels[None],
        "is_crowd": np.zeros((1, len(labels)), bool),
        "area": _areas(boxes)[None],
        "num_boxes": np.array([len(labels)], np.int32),
    }


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Computes the area of boxes, px squared: float32[N, 4] -> float32[N]."""
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _results(number: int, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, categories: Any) -> list[Any]:
    """Makes COCO's rows."""
    found = ImageDetections(size=(0, 0), boxes=boxes, labels=labels, scores=scores, categories=categories)
    return found.to_coco(number)


if __name__ == "__main__":
    tyro.cli(main)
