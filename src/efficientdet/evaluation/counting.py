"""COCO metrics: how well detections match the ground truth, as defined at cocodataset.org/#detection-eval.

Computed by faster-coco-eval, which equals pycocotools except for one rounding: pycocotools divides by n + 2^-52, so the
precision of a correct first detection is 1 - 2^-52; here it is 1 (a test compares every number). Every image counts,
with or without boxes or detections. A metric is None if there is nothing to measure: no box of the class or size (COCO
writes -1). NVIDIA's and automl's evaluation skips images that were not reached and replaces the area of the annotations
by that of the boxes; here both follow COCO.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from efficientdet import boxes as box_geometry
from efficientdet import structures
from efficientdet.data import preprocess
from efficientdet.errors import UserError
from efficientdet.evaluation import intervals, plausibility
from efficientdet.result import Result

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl")
"""In COCO's order. s, m, l: boxes with an area up to 32^2, from 32^2 to 96^2, and from 96^2 px; a box on a border
counts in both sizes. max: detections per class and image."""

_MEANINGS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, area up to 32² px",
    "APm": "medium",
    "APl": "large, area of at least 96² px",
    "ARmax1": "1 detection per class and image",
    "ARmax10": "10 detections",
    "ARmax100": "100 detections",
    "ARs": "small",
    "ARm": "medium",
    "ARl": "large",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult(Result):
    """Result of an evaluation; fractions in 0..1, None if there is nothing to measure."""

    metrics: dict[str, float | None]
    """The 12 of `METRICS`."""
    intervals: dict[str, tuple[float, float] | None]
    """AP and AP50 -> ends of the 95% interval, from a bootstrap over the images (`intervals`)."""
    per_class: dict[str, dict[str, float | None]]
    """Name of each class of the dataset -> AP, AP50 and num_boxes (without crowds), in the dataset's order."""
    num_images: int
    """Number of evaluated images."""
    num_boxes: int
    """Number of ground truth boxes, without crowds."""

    def to_dict(self) -> dict[str, Any]:
        """Converts the result to plain JSON values."""
        ends = {name: None if pair is None else list(pair) for name, pair in self.intervals.items()}
        return dataclasses.asdict(self) | {"intervals": ends}

    def line(self) -> str:
        """Formats AP and AP50 with their intervals in one line, in percent."""
        texts = [
            f"{name} {_percent(self.metrics[name])}{_range(pair, ' ({})')}" for name, pair in self.intervals.items()
        ]
        return ", ".join(texts)

    def table(self) -> Group:
        """Formats the result for a terminal: the 12 metrics, then each class, in percent; or that there are none."""
        if not self.num_boxes:
            return Group(f"The {self.num_images} images have no ground truth boxes, so there are no metrics.")
        overall = Table(title=f"{self.num_images} images, {self.num_boxes} boxes", title_justify="left")
        overall.add_column("metric")
        overall.add_column("%", justify="right")
        overall.add_column("95% interval")
        overall.add_column("meaning", style="dim")
        for name, value in self.metrics.items():
            overall.add_row(name, _percent(value), _range(self.intervals.get(name)), _MEANINGS[name])
        classes = Table()
        classes.add_column("class")
        for heading in ("AP %", "AP50 %", "boxes"):
            classes.add_column(heading, justify="right")
        for name, row in self.per_class.items():
            classes.add_row(name, _percent(row["AP"]), _percent(row["AP50"]), f"{row['num_boxes']:.0f}")
        return Group(overall, classes)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _range(ends: tuple[float, float] | None, form: str = "{}") -> str:
    return "" if ends is None else form.format(f"{_percent(ends[0])} to {_percent(ends[1])}")


class CocoEvaluator:
    """Collects images with their ground truth and detections, then computes the metrics."""

    def __init__(self, categories: Sequence[structures.Category], counted: Sequence[structures.Category] | None = None):
        """Starts without images.

        Args:
            categories: label l stands for `categories[l]`.
            counted: the dataset's classes, if the model has more (COCO's published checkpoints have outputs for ten
                ids that belong to no class); detections of other classes are ignored. None: all.
        """
        self._categories = tuple(categories)
        self._counted = self._categories if counted is None else tuple(counted)
        self._counted_ids = {category.id for category in self._counted}
        self._sizes: dict[int, tuple[int, int]] = {}  # image id -> height, width
        self._truth: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []
        self.watch = plausibility.Watch()

    def add(self, originals: structures.Originals, detections: structures.Detections) -> None:
        """Adds the images of a batch; rows with id -1 only fill up the batch.

        Args:
            originals: arrays of the batch.
            detections: detections for the same rows, with boxes in px of the original images.

        Raises:
            UserError: an image id occurs twice, or a label has no category.
        """
        self.add_truth(originals)
        self.watch.add(originals, detections)
        for row, image_id in enumerate(np.asarray(originals["ids"]).tolist()):
            if image_id == -1:
                continue
            count = detections["num_detections"][row]
            for box, label, score in _rows(detections, ("boxes", "labels", "scores"), row, count):
                found = self._annotation(image_id, box, label)
                if found["category_id"] in self._counted_ids:
                    self._detections.append(found | {"score": score})

    def add_truth(self, originals: structures.Originals) -> None:
        """Adds images without detections; otherwise like `add`."""
        for row, image_id in enumerate(np.asarray(originals["ids"]).tolist()):
            if image_id == -1:
                continue
            if image_id in self._sizes:
                raise UserError(f"`id` {image_id} belongs to two images; every image needs a unique id.")
            height, width = np.asarray(originals["sizes"][row]).tolist()
            self._sizes[image_id] = (height, width)
            count = originals["num_boxes"][row]
            for box, label, is_crowd, area in _rows(originals, ("boxes", "labels", "is_crowd", "area"), row, count):
                number = len(self._truth) + 1  # from 1: for COCOeval, the id 0 means "no match"
                fields = {"id": number, "iscrowd": int(is_crowd), "area": area}
                self._truth.append(self._annotation(image_id, box, label) | fields)

    def _annotation(self, image_id: int, box: list[float], label: int) -> dict[str, Any]:
        """Converts one box (x, y, width, height) to COCO's format."""
        if not 0 <= label < len(self._categories):
            raise UserError(f"`labels` of image {image_id} has {label}; there are {len(self._categories)} classes.")
        return {"image_id": image_id, "category_id": self._categories[label].id, "bbox": box}

    def add_coco_results(self, found: Iterable[dict[str, Any]]) -> None:
        """Adds checked detections in COCO's results format for images added earlier."""
        self._detections.extend(found)

    @property
    def image_ids(self) -> Collection[int]:
        """Ids of the images added so far."""
        return self._sizes.keys()

    def coco_results(self) -> list[dict[str, Any]]:
        """Lists the detections in COCO's results format with all digits, so that they give the same metrics."""
        return [{**found, "bbox": list(found["bbox"])} for found in self._detections]

    def result(self) -> EvaluationResult:
        """Computes the metrics.

        Raises:
            UserError: there are no images.
        """
        if not self._sizes:
            raise UserError("`images` is empty; an evaluation needs at least one image.")
        stats, precision, ious = _count(self._sizes, self._counted, self._truth, self._detections)
        boxes = Counter(box["category_id"] for box in self._truth if not box["iscrowd"])
        per_class: dict[str, dict[str, float | None]] = {}
        # COCOeval orders classes by id; precision: float64[IoUs, recalls, C, areas, detections per image].
        positions = {number: row for row, number in enumerate(sorted(self._counted_ids))}
        for category in self._counted:
            of_class = precision[:, :, positions[category.id], 0, -1]
            name = category.name if category.name not in per_class else f"{category.name} ({category.id})"
            per_class[name] = {"AP": _mean(of_class), "AP50": _mean(of_class[0]), "num_boxes": boxes[category.id]}
        return EvaluationResult(
            metrics={name: None if value == -1 else value for name, value in zip(METRICS, stats, strict=True)},
            intervals=intervals.estimate(sorted(self._sizes), self._truth, self._detections, ious),
            per_class=per_class,
            num_images=len(self._sizes),
            num_boxes=sum(boxes.values()),
        )


def to_originals(detections: structures.Detections, originals: structures.Originals) -> structures.Detections:
    """Converts a batch's detections from the network input to the original images."""
    boxes = preprocess.undo_letterbox(detections["boxes"], originals["scales"], originals["sizes"])
    return {**detections, "boxes": boxes}


def _rows(arrays: Any, names: Sequence[str], row: int, count: int) -> Iterator[tuple]:
    """Iterates over the first `count` boxes of one image of a batch as plain numbers, with boxes in COCO's format."""
    columns = {name: np.asarray(arrays[name][row])[: int(count)] for name in names}
    columns["boxes"] = box_geometry.to_xywh(columns["boxes"])
    return zip(*(columns[name].tolist() for name in names), strict=True)


def _mean(precision: np.ndarray) -> float | None:
    """Averages over the values that COCOeval could measure."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else None


def _count(
    sizes: dict[int, tuple[int, int]],
    categories: Sequence[structures.Category],
    truth: list[dict[str, Any]],
    detections: list[dict[str, Any]],
) -> tuple[list[float], np.ndarray, dict[tuple[int, int], Any]]:
    """Runs COCOeval.

    Returns:
        The 12 metrics; precision float64[IoUs, recalls, C, areas, detections]; IoUs (image id, class id) -> [D, G]. -1
        means that there is nothing to measure.
    """
    if not truth:
        return [-1.0] * len(METRICS), np.full((1, 1, len(categories), 1, 1), -1.0), {}
    import faster_coco_eval

    coco = faster_coco_eval.COCO(
        {
            "images": [{"id": number, "height": height, "width": width} for number, (height, width) in sizes.items()],
            "annotations": truth,
            "categories": [{"id": category.id, "name": category.name} for category in categories],
        }
    )
    # COCOeval modifies its inputs; a second call of `result` must not see that.
    found = coco.loadRes([dict(detection) for detection in detections])
    evaluator = faster_coco_eval.COCOeval_faster(coco, found, "bbox")
    evaluator.run()
    return [float(value) for value in evaluator.stats[: len(METRICS)]], evaluator.eval["precision"], evaluator.ious
