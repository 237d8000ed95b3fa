"""Truth and detections that are hard to count, COCO's forms of them, and what pycocotools counts."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientdet.structures import Category

CATEGORIES = (Category(id=7, name="cat"), Category(id=3, name="dog"), Category(id=90, name="toothbrush"))
SIDE = 640


def difficult(seed):
    """Makes images with crowds, without boxes, without detections, equal scores, and more than 100 detections.

    Boxes from a third of a pixel to half an image; areas smaller than the boxes, 0, tiny, and on COCO's borders.
    """
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for number in range(30):
        rows = []
        for _ in range(0 if number % 5 == 2 else rng.integers(1, 15)):
            sides = np.exp(rng.uniform(np.log(0.3), np.log(300), 2))
            corner = rng.uniform(0, SIDE - sides)
            area = rng.choice([sides.prod() * rng.uniform(0.3, 1), rng.choice([0, 1e-3, 1024, 1024.001, 9216])])
            # No box of the last class is a crowd; every third image has one class only.
            label = int(rng.choice([0, 0, 1, 2])) if number % 3 else 0
            rows.append((np.concatenate([corner, corner + sides]), label, label != 2 and rng.random() < 0.2, area))
        truth.append(rows)
        count = 0 if number % 7 == 3 else 260 if number == 6 else rng.integers(1, 40)
        # Some images have scores of one digit: many are equal, within and between images.
        digits = 1 if number % 2 else 6
        boxes = [(*_guess(rng, rows), round(float(rng.random()), digits)) for _ in range(count)]
        if number == 6:
            boxes = [(box, 0, score) for box, _, score in boxes]
        found.append(sorted(boxes, key=lambda row: -row[2]))
    return truth, found


def _guess(rng, rows):
    """Draws a detection: a box and its label, or one of the truth moved by nothing, a little or much."""
    if not rows or rng.random() < 0.3:
        corner = rng.uniform(0, 500, 2)
        return np.concatenate([corner, corner + np.exp(rng.uniform(-2, 5.5, 2))]), int(rng.integers(3))
    box, label, _, _ = rows[rng.integers(len(rows))]
    box = box + rng.normal(0, rng.choice([0, 0.02, 0.12, 0.3]), 4) * np.tile(box[2:] - box[:2], 2)
    return np.sort(box.reshape(2, 2), axis=0).ravel(), label if rng.random() < 0.9 else 1 - min(label, 1)


def coco_document(ids, truth, categories):
    """Writes truth, a list of (box, label, is_crowd, area) an image, as COCO has it."""
    annotations = [
        _row(image_id, box, categories[label]) | {"iscrowd": int(is_crowd), "area": float(area)}
        for image_id, rows in zip(ids, truth, strict=True)
        for box, label, is_crowd, area in rows
    ]
    return {
        "info": {},
        "images": [{"id": n, "height": SIDE, "width": SIDE, "file_name": f"{n}.jpg"} for n in ids],
        "annotations": [row | {"id": number} for number, row in enumerate(annotations, start=1)],
        "categories": [{"id": category.id, "name": category.name} for category in categories],
    }


def coco_results(ids, found, categories):
    """Writes detections, a list of (box, label, score) an image, as COCO has them."""
    return [
        _row(image_id, box, categories[label]) | {"score": float(score)}
        for image_id, rows in zip(ids, found, strict=True)
        for box, label, score in rows
    ]


def _row(image_id, box, category):
    y1, x1, y2, x2 = (float(side) for side in box)
    return {"image_id": image_id, "category_id": category.id, "bbox": [x1, y1, x2 - x1, y2 - y1]}


def count(document, results):
    """Counts with pycocotools.

    Args:
        document: annotations.
        results: detections, or the name of their file.

    Returns:
        The 12 numbers; precision[IoUs, recalls, C, areas, most]; recall[IoUs, C, areas, most].
    """
    coco = COCO()
    coco.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats, evaluator.eval["precision"], evaluator.eval["recall"]


def twelve(precision, recall):
    """Computes COCO's numbers from its arrays: [IoUs, recalls, C, areas, most] and [IoUs, C, areas, most]."""
    average = [precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2]]
    average += [precision[..., size, 2] for size in (1, 2, 3)]
    average += [recall[..., 0, most] for most in (0, 1, 2)] + [recall[..., size, 2] for size in (1, 2, 3)]
    return [values[values > -1].mean() for values in average]
