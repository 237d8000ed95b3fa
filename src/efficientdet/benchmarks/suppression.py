"""Suppression compared with a baseline: the NumPy version that google/automl's published AP is based on.

The baseline processes class after class, each until no candidate is left; then all classes are sorted together and the
best are kept. Within a class it is vectorized. Ours starts from the same candidates, in the graph and on the host.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from efficientdet import backend
from efficientdet.benchmarks import timing
from efficientdet.config import PostprocessConfig
from efficientdet.kernels import host_postprocess

_CALLS = 5  # per turn
_CONFIG = PostprocessConfig()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The candidates of one image, best first."""

    name: str
    boxes: np.ndarray
    """float32[1, M, 4], yxyx px."""
    labels: np.ndarray
    """int32[1, M]."""
    scores: np.ndarray
    """float32[1, M]."""


def spread_candidates(count: int = 5000, num_classes: int = 80) -> Candidates:
    """Draws candidates spread over 512 px, of all classes and scores."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 480, (1, count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 120, (1, count, 2))], axis=-1)
    scores = -np.sort(-rng.uniform(0.001, 1, (1, count)))
    labels = rng.integers(0, num_classes, (1, count))
    return Candidates(
        name="spread",
        boxes=boxes.astype(np.float32),
        labels=labels.astype(np.int32),
        scores=scores.astype(np.float32),
    )


def predicted_candidates(raw: Any, anchors: np.ndarray) -> Candidates:
    """Takes the best candidates of a network's raw predictions for one image."""
    from efficientdet.model import postprocess

    found = postprocess.top_candidates(raw, anchors, _CONFIG.max_candidates)
    boxes, labels, scores = (np.asarray(part) for part in found)
    return Candidates(name="predicted", boxes=boxes, labels=labels, scores=scores)


def compare(cases: list[Candidates], rounds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measures host, graph and baseline alternately.

    Returns:
        A row for each of them and each case; min, median and max of the host's rate over the baseline's, of all cases.
    """
    in_graph = backend.compile_function(_graph)
    seconds: dict[str, list[float]] = {}
    calls: dict[str, Callable[[], float]] = {}
    for case in cases:
        for by, work in _works(case, in_graph).items():
            spent = seconds[f"{case.name}/{by}"] = []
            calls[f"{case.name}/{by}"] = functools.partial(_turn, work, spent)
    timing.in_turns(calls, 1, warmup=0)
    for spent in seconds.values():
        spent.clear()
    rates = timing.in_turns(calls, rounds, warmup=0)
    rows = [
        {
            "part": f"suppression, {name.partition('/')[0]}",
            "by": name.partition("/")[2],
            "precision": "float32",
            "batch_size": 1,
            "images_per_second": timing.spread(of_name),
            "latency_ms": timing.percentiles(seconds[name]),
        }
        for name, of_name in rates.items()
    ]
    ours = [rate for case in cases for rate in rates[f"{case.name}/host"]]
    theirs = [rate for case in cases for rate in rates[f"{case.name}/NumPy by class"]]
    return rows, timing.ratio(ours, theirs)


def _works(case: Candidates, in_graph: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """Creates the three calls to compare."""
    boxes, labels, scores = case.boxes, case.labels, case.scores
    return {
        "host": lambda: host_postprocess.soft_nms(boxes, labels, scores, _CONFIG),
        "graph": lambda: np.asarray(in_graph((boxes, labels, scores))["scores"]),
        "NumPy by class": lambda: soft_nms_by_class(boxes[0], labels[0], scores[0]),
    }


def _graph(candidates: tuple[Any, Any, Any]) -> Any:
    from efficientdet.model import postprocess

    boxes, labels, scores = candidates
    return postprocess.soft_nms(
        boxes,
        labels,
        scores,
        max_detections=_CONFIG.max_detections,
        sigma=_CONFIG.nms_sigma,
        score_threshold=_CONFIG.score_threshold,
    )


def _turn(work: Callable[[], Any], seconds: list[float]) -> float:
    """Calls `work` a few times and returns calls per second."""
    spent = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    seconds += spent
    return _CALLS / sum(spent)


def soft_nms_by_class(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, config: PostprocessConfig = _CONFIG
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Applies the baseline suppression to one image.

    Args:
        boxes: float32[M, 4], yxyx px.
        labels: int32[M].
        scores: float32[M].
        config: limits and thresholds.

    Returns:
        Boxes, labels and scores, best first.
    """
    found = [
        (kept, np.full(len(kept), label), of_kept)
        for label in np.unique(labels)
        for kept, of_kept in [_suppress_class(boxes[labels == label], scores[labels == label], config)]
    ]
    all_boxes, all_labels, all_scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(-all_scores, kind="stable")[: config.max_detections]
    return all_boxes[order], all_labels[order], all_scores[order]


def _suppress_class(boxes: np.ndarray, scores: np.ndarray, config: PostprocessConfig) -> tuple[np.ndarray, np.ndarray]:
    """Repeatedly picks the best box and decays the others until none is left."""
    y1, x1, y2, x2 = np.ascontiguousarray(boxes.T)
    pixels = (y2 - y1 + 1) * (x2 - x1 + 1)
    scores, left = scores.copy(), np.arange(len(boxes))
    kept = []
    while left.size:
        place = int(scores[left].argmax())
        best = int(left[place])
        kept.append(best)
        left = np.delete(left, place)
        heights = np.maximum(0, np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left]) + 1)
        widths = np.maximum(0, np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left]) + 1)
        shared = heights * widths
        iou = shared / (pixels[best] + pixels[left] - shared)
        scores[left] *= np.exp(-np.square(iou) / config.nms_sigma)
        left = left[scores[left] >= config.score_threshold]
    return boxes[kept], scores[kept]
