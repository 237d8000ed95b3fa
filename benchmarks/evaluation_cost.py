"""What does an evaluation cost beside the network? COCO-sized results: 100 detections an image, 80 classes.

Generated truth and detections go through `evaluation.CocoEvaluator` as they do in `efficientdet evaluate`: letterbox
undone, collected, counted. Counting is measured in turns with pycocotools, which COCO's server runs, on the same lists;
both must find the same AP. Writes the figures as JSON.

    python benchmarks/evaluation_cost.py --output benchmarks/results/evaluation-cost.json
"""

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from efficientdet.benchmarks import report, timing
from efficientdet.evaluation import counting
from efficientdet.storage import files
from efficientdet.structures import Category

_NUM_CLASSES = 80
_TRUE_BOXES = 7  # an image, COCO's mean
_SIZE = (480, 640)
_BATCH = 8
_GOAL = 5.0  # ms an image


def main(*, output: Path | None = None, num_images: int = 1000, rounds: int = 5) -> None:
    """Measures and prints.

    Args:
        output: JSON file to write.
        num_images: images; COCO's validation split has 5,000.
        rounds: how often each has its turn.
    """
    batches = _draw(num_images)
    evaluator = _collect(batches)
    found, theirs = evaluator.result().metrics["AP"], _pycocotools(evaluator)
    assert found is not None
    assert abs(found - theirs) < 1e-6, (found, theirs)
    calls = {
        "collect": lambda: timing.rate_of(lambda: _collect(batches), num_images),
        "count": lambda: timing.rate_of(evaluator.result, num_images),
        "count by pycocotools": lambda: timing.rate_of(lambda: _pycocotools(evaluator), num_images),
    }
    rates = timing.in_turns(calls, rounds, warmup=0)
    rows = [{"part": name, "ms_per_image": timing.spread(1e3 / np.array(rates[name]))} for name in calls]
    both = 1e3 / np.array(rates["collect"]) + 1e3 / np.array(rates["count"])
    rows.append({"part": "collect and count", "ms_per_image": timing.spread(both), "goal": _GOAL})
    began = time.process_time()
    _collect(batches).result()
    spent = 1e3 * (time.process_time() - began) / num_images
    rows.append({"part": "collect and count, processor time alone", "ms_per_image": timing.spread([spent])})
    ratios = {"evaluation_vs_pycocotools": timing.ratio(rates["count"], rates["count by pycocotools"])}
    for row in rows:
        print(row)
    print(ratios)
    if output is not None:
        what = f"Evaluation apart from the network, {num_images} images, 100 detections each, {_NUM_CLASSES} classes"
        files.write_json(output, {"what": what, "rows": rows, "ratios": ratios, **report.circumstances()})


def _draw(num_images: int) -> list[tuple[Any, Any]]:
    """Draws batches of truth and of detections, of which some lie on the truth."""
    rng = np.random.default_rng(0)
    batches = []
    for start in range(0, num_images, _BATCH):
        true_boxes, boxes = _boxes(rng, _TRUE_BOXES), _boxes(rng, 100)
        labels = rng.integers(0, _NUM_CLASSES, (_BATCH, _TRUE_BOXES)).astype(np.int32)
        found_labels = rng.integers(0, _NUM_CLASSES, (_BATCH, 100)).astype(np.int32)
        boxes[:, :_TRUE_BOXES] = true_boxes + rng.normal(0, 3, true_boxes.shape)
        found_labels[:, :_TRUE_BOXES] = labels
        sides = true_boxes[..., 2:] - true_boxes[..., :2]
        originals = {
            "ids": np.arange(start + 1, start + 1 + _BATCH),
            "scales": np.full(_BATCH, 0.8, np.float32),
            "sizes": np.full((_BATCH, 2), _SIZE, np.int32),
            "boxes": true_boxes,
            "labels": labels,
            "is_crowd": np.zeros((_BATCH, _TRUE_BOXES), bool),
            "area": sides[..., 0] * sides[..., 1],
            "num_boxes": np.full(_BATCH, _TRUE_BOXES, np.int32),
        }
        detections = {
            "boxes": (boxes * 0.8).astype(np.float32),
            "labels": found_labels,
            "scores": -np.sort(-rng.uniform(0, 1, (_BATCH, 100)).astype(np.float32)),
            "num_detections": np.full(_BATCH, 100, np.int32),
        }
        batches.append((originals, detections))
    return batches


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws float32[B, count, 4], yxyx px, of sides from 8 px to half the image."""
    sides = np.exp(rng.uniform(np.log(8), np.log(240), (_BATCH, count, 2)))
    corners = rng.uniform(0, 1, (_BATCH, count, 2)) * (np.array(_SIZE) - sides)
    return np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


def _collect(batches: list[tuple[Any, Any]]) -> counting.CocoEvaluator:
    """Collects as `evaluation.evaluate` does."""
    evaluator = counting.CocoEvaluator([Category(id=number + 1, name=str(number)) for number in range(_NUM_CLASSES)])
    for originals, detections in batches:
        evaluator.add(originals, counting.to_originals(detections, originals))
    return evaluator


def _pycocotools(evaluator: counting.CocoEvaluator) -> float:
    """Counts with pycocotools: AP."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number, "height": _SIZE[0], "width": _SIZE[1]} for number in evaluator.image_ids],
            "annotations": [dict(box) for box in evaluator._truth],
            "categories": [{"id": number + 1, "name": str(number)} for number in range(_NUM_CLASSES)],
        }
        coco.createIndex()
        found = coco.loadRes([dict(detection) for detection in evaluator._detections])
        counted = COCOeval(coco, found, "bbox")
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return float(counted.stats[0])


if __name__ == "__main__":
    began = time.monotonic()
    tyro.cli(main)
    print(f"{time.monotonic() - began:.0f} s")
