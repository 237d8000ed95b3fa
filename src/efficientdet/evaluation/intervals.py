"""Confidence intervals of AP for the choice of the evaluated images: a bootstrap over images.

As many images as there are get drawn with replacement, many times, and AP is computed for each draw. A draw has the AP
that pycocotools would compute for a dataset of these images (a test checks it, up to rounding). This is cheap because
an image matches the same way in every draw: detections are matched with boxes once, and a draw only weights the images.
The draws are always the same.

AP of few images is biased upward (COCO's envelope takes the best precision from each recall on), and so are the draws:
their AP is above that of the images they are drawn from. So the interval is that of the middle 95% of the draws,
mirrored at AP (the basic interval, Davison and Hinkley 1997, section 5.2), which has better coverage than plain
percentiles (docs/LOG.md).

The interval covers only the choice of the evaluated images: another training run, or images of a different type, may
differ by more.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

NUM_DRAWS, NUM_DRAWS_OF_MANY = 500, 200
"""Number of draws, and for more than 1,000 images. Being random, they move an end of an interval by about 3% of its
width, or 5%."""
_MANY = 1000
LEVEL = 0.95

_IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100  # detections per class and image
_LARGEST_AREA = 1e10  # px; COCO ignores larger boxes
_FALSE, _HIT, _IGNORED = range(3)
_BLOCK = 2**20  # numbers in an array at a time: they fit in the CPU's cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClassMatches:
    """One class: its detections, best score first, and its ground truth boxes."""

    images: np.ndarray
    """intp[N], image of each detection."""
    outcomes: np.ndarray
    """int8[10, N]: false, hit or ignored at each IoU."""
    boxes: np.ndarray
    """intp[G], image of each ground truth box, without crowds."""


def estimate(
    image_ids: Sequence[int],
    truth: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    ious: Mapping[tuple[int, int], Any],
) -> dict[str, tuple[float, float] | None]:
    """Estimates 95% intervals of AP and AP50.

    Args:
        image_ids: ids of all images, in ascending order.
        truth: annotations in COCO's format.
        detections: in COCO's results format, each of a class that counts.
        ious: COCOeval's IoUs, (image id, class id) -> float64[D, G], detections best first.

    Returns:
        AP and AP50 -> the ends of their interval, fractions; None without ground truth boxes.
    """
    num_draws = NUM_DRAWS_OF_MANY if len(image_ids) > _MANY else NUM_DRAWS
    once = np.ones((len(image_ids), 1), np.int32)
    draws = np.concatenate([once, draw_images(len(image_ids), num_draws)], axis=1)
    found = average_precisions(list(_matched(image_ids, truth, detections, ious)), draws)
    return {"AP": _interval(found.mean(axis=0)), "AP50": _interval(found[0])}


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    """Computes an interval from AP itself, the first value, and AP of the draws; NaN means a draw without boxes."""
    value, drawn = values[0], values[1:]
    if np.isnan(value):
        return None
    low, high = np.percentile(drawn[np.isfinite(drawn)], (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    # With a handful of images nearly all draws may be above AP; the interval includes AP in any case.
    ends = np.clip([min(2 * value - high, value), max(2 * value - low, value)], 0.0, 1.0)
    return (float(ends[0]), float(ends[1]))


def draw_images(num_images: int, num_draws: int) -> np.ndarray:
    """Draws images with replacement, the same ones in every call.

    Returns:
        int32[I, draws], how often each image occurs in each draw.
    """
    chosen = np.random.default_rng(0).integers(num_images, size=(num_draws, num_images))
    counts = [np.bincount(row, minlength=num_images) for row in chosen]
    return np.stack(counts, axis=1).astype(np.int32)


def average_precisions(classes: Sequence[_ClassMatches], draws: np.ndarray) -> np.ndarray:
    """Computes AP of each draw: the mean over the classes that have a box in it.

    Args:
        classes: result of `_matched`.
        draws: int32[I, draws], how often each image occurs in each draw.

    Returns:
        float64[10, draws], AP at each IoU; NaN for a draw without boxes.
    """
    total = np.zeros((len(_IOUS), draws.shape[1]))
    num_classes = np.zeros(draws.shape[1], np.int64)
    for own in classes:
        if not len(own.boxes):
            continue
        width = max(_BLOCK // max(len(own.images), 1), 16)
        for start in range(0, draws.shape[1], width):
            part = slice(start, start + width)
            num_boxes = draws[own.boxes, part].sum(axis=0)
            total[:, part] += _of_class(own, draws[:, part], num_boxes)
            num_classes[part] += num_boxes > 0
    return np.where(num_classes > 0, total / np.maximum(num_classes, 1), np.nan)


def _of_class(own: _ClassMatches, draws: np.ndarray, num_boxes: np.ndarray) -> np.ndarray:
    """Computes AP of one class in each draw: float64[10, draws]; 0 if it has no box.

    Precision at a recall is the best one from there on (COCO's envelope), which is always reached at a hit. So it is
    enough to count, up to each hit, the hits and the detections that are not ignored.
    """
    weights = draws[own.images]
    ranks = np.add.accumulate(weights, axis=0)
    result = np.zeros((len(_IOUS), draws.shape[1]))
    for row, outcomes in zip(result, own.outcomes, strict=True):
        hits, ignored = np.flatnonzero(outcomes == _HIT), np.flatnonzero(outcomes == _IGNORED)
        if not len(hits):
            continue
        num_found = ranks[hits]
        if len(ignored):
            left_out = np.add.accumulate(weights[ignored], axis=0)
            before = np.searchsorted(ignored, hits)
            num_found = num_found - np.concatenate([np.zeros_like(left_out[:1]), left_out])[before]
        num_hits = np.add.accumulate(weights[hits], axis=0)
        precision = num_hits / np.maximum(num_found, 1)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        recall = num_hits / np.maximum(num_boxes, 1)
        levels = np.floor(100 * recall + 1e-9).astype(np.int32)  # index of the highest recall level reached,
        levels -= recall < _RECALLS[levels]  # by COCO's own floating-point numbers
        row += (envelope * np.diff(levels, axis=0, prepend=-1)).sum(axis=0) / len(_RECALLS)
        # If the first hit is not drawn, its recall of 0 is still a level, with the same envelope.
        row[num_hits[-1] == 0] = 0
    return result


def _matched(
    image_ids: Sequence[int],
    truth: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    ious: Mapping[tuple[int, int], Any],
) -> Iterator[_ClassMatches]:
    """Matches detections with boxes and yields the classes that have boxes."""
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    boxes: dict[tuple[int, int], list[Mapping[str, Any]]] = collections.defaultdict(list)
    for box in truth:
        boxes[box["image_id"], box["category_id"]].append(box)
    found = _ranked(places, detections)
    outcomes = np.full((len(_IOUS), len(found.scores)), _FALSE, np.int8)
    outcomes[:, (found.areas < 0) | (found.areas > _LARGEST_AREA)] = _IGNORED
    to_find: dict[int, list[int]] = collections.defaultdict(list)
    for (image_id, class_id), own in boxes.items():
        place, overlaps = places[image_id], ious.get((image_id, class_id), ())
        if len(overlaps):
            first = found.firsts[class_id, place]
            _match(outcomes[:, first : first + len(overlaps)], own, np.asarray(overlaps))
        to_find[class_id] += [place for box in own if not _is_ignored(box)]
    for class_id, own_places in to_find.items():
        part = slice(*np.searchsorted(found.classes, (class_id, class_id + 1)))
        order = np.argsort(-found.scores[part], kind="stable")
        yield _ClassMatches(
            images=found.images[part][order],
            outcomes=outcomes[:, part][:, order],
            boxes=np.array(own_places, np.intp),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ranked:
    """Detections ordered by class, image and score; at most 100 per class and image."""

    classes: np.ndarray
    images: np.ndarray
    """intp[N], indices of the images."""
    scores: np.ndarray
    areas: np.ndarray
    """float64[N], px squared."""
    firsts: dict[tuple[int, int], int]
    """(class id, image) -> the best detection of this class in this image."""


def _ranked(places: Mapping[int, int], detections: Sequence[Mapping[str, Any]]) -> _Ranked:
    """Sorts detections; equal scores keep their order."""
    classes = np.array([row["category_id"] for row in detections], np.int64)
    images = np.array([places[row["image_id"]] for row in detections], np.intp)
    scores = np.array([row["score"] for row in detections], np.float64)
    areas = np.array([row["bbox"][2] * row["bbox"][3] for row in detections], np.float64)
    order = np.lexsort((-scores, images, classes))
    is_first = _is_first(classes[order], images[order])
    rank = np.arange(len(order)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    order = order[rank < _MOST]
    classes, images = classes[order], images[order]
    firsts = np.flatnonzero(_is_first(classes, images))
    pairs = zip(classes[firsts].tolist(), images[firsts].tolist(), strict=True)
    return _Ranked(
        classes=classes,
        images=images,
        scores=scores[order],
        areas=areas[order],
        firsts=dict(zip(pairs, firsts.tolist(), strict=True)),
    )


def _is_first(classes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Marks the first detection of each class and image."""
    is_first = np.ones(len(classes), bool)
    is_first[1:] = (classes[1:] != classes[:-1]) | (images[1:] != images[:-1])
    return is_first


def _is_ignored(box: Mapping[str, Any]) -> bool:
    return bool(box["iscrowd"]) or not 0 <= box["area"] <= _LARGEST_AREA


def _match(outcomes: np.ndarray, boxes: Sequence[Mapping[str, Any]], overlaps: np.ndarray) -> None:
    """Matches the detections of a class in one image with its boxes, as COCOeval does.

    Args:
        outcomes: int8[10, D], modified where a detection matches a box; best detection first.
        boxes: G boxes.
        overlaps: float64[D, G], IoU.
    """
    is_ignored = [_is_ignored(box) for box in boxes]
    order = sorted(range(len(boxes)), key=lambda number: is_ignored[number])
    near = [(row, overlaps[row].tolist()) for row in np.flatnonzero(overlaps.max(axis=1) >= _IOUS[0]).tolist()]
    for level, least in enumerate(np.minimum(_IOUS, 1 - 1e-10).tolist()):
        taken: set[int] = set()
        for row, of_row in near:
            best, chosen = least, -1
            for number in order:
                if chosen >= 0 and is_ignored[number] and not is_ignored[chosen]:
                    break
                if of_row[number] >= best and (number not in taken or boxes[number]["iscrowd"]):
                    best, chosen = of_row[number], number
            if chosen >= 0:
                taken.add(chosen)
                outcomes[level, row] = _IGNORED if is_ignored[chosen] else _HIT
