"""Do intervals of AP hold the AP that they should? On drawn truth and detections, of which very many are known.

Sets of images come out of a pool; the AP of the pool is what an interval from a set should hold in 95% of the sets.

    python benchmarks/interval_coverage.py
"""

from typing import Any

import numpy as np
import tyro

from efficientdet.evaluation import counting, intervals
from efficientdet.structures import Category

_SIDE = 640
_NUM_CLASSES = 6
_LARGEST = np.log(200)


def main(*, num_images: int = 8000, sizes: tuple[int, ...] = (16, 64, 256), num_sets: int = 300) -> None:
    """Measures and prints.

    Args:
        num_images: images of the pool.
        sizes: images of a set.
        num_sets: sets of each size.
    """
    rng = np.random.default_rng(1)
    matches = _matches(*_draw(rng, num_images), num_images)
    of_pool = _ap(matches, num_images)
    print(f"AP {of_pool[0]:.3f}, AP50 {of_pool[1]:.3f} of {num_images} images")
    for size in sizes:
        held = {"percentiles": np.zeros(2), "mirrored": np.zeros(2)}
        found, widths = [], []
        for _ in range(num_sets):
            own = _chosen(matches, np.sort(rng.choice(num_images, size, replace=False)), num_images)
            values = intervals.average_precisions(own, intervals.draw_images(size, intervals.NUM_DRAWS))
            found.append(_ap(own, size))
            for place, drawn in enumerate((values.mean(axis=0), values[0])):
                low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
                ends = {
                    "percentiles": (low, high),
                    "mirrored": (2 * found[-1][place] - high, 2 * found[-1][place] - low),
                }
                for name, (first, last) in ends.items():
                    held[name][place] += first <= of_pool[place] <= last
                widths += [high - low] if not place else []
        aps = [ap for ap, _ in found]
        print(
            f"{size} images: mean AP {np.mean(aps):.3f}, half width {np.mean(widths) / 2:.3f}, "
            f"1.96 deviations {1.96 * np.std(aps):.3f}; AP and AP50 held by "
            + ", ".join(f"{name} {np.round(100 * counts / num_sets)}" for name, counts in held.items())
        )


def _ap(matches: Any, num_images: int) -> tuple[float, float]:
    """Counts AP and AP50."""
    found = intervals.average_precisions(matches, np.ones((num_images, 1), np.int32))
    return float(found.mean()), float(found[0, 0])


def _chosen(matches: Any, images: np.ndarray, num_images: int) -> list[Any]:
    """Leaves only these images."""
    places = np.full(num_images, -1)
    places[images] = np.arange(len(images))
    own = []
    for one in matches:
        of_found, of_boxes = places[one.images], places[one.boxes]
        is_kept = of_found >= 0
        kept = {"images": of_found[is_kept], "outcomes": one.outcomes[:, is_kept], "boxes": of_boxes[of_boxes >= 0]}
        own.append(intervals._ClassMatches(**kept))
    return own


def _matches(truth: list[dict[str, Any]], detections: list[dict[str, Any]], num_images: int) -> list[Any]:
    """Matches once."""
    sizes = dict.fromkeys(range(1, num_images + 1), (_SIDE, _SIDE))
    categories = [Category(id=number + 1, name=str(number)) for number in range(_NUM_CLASSES)]
    _, _, ious = counting._count(sizes, categories, truth, detections)
    return list(intervals._matched(sorted(sizes), truth, detections, ious))


def _draw(rng: np.random.Generator, num_images: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draws truth and detections; images are of unequal difficulty."""
    truth: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        ease = rng.normal(0, 1)
        for _ in range(rng.integers(1, 7)):
            label, side = int(rng.integers(_NUM_CLASSES)), float(np.exp(rng.uniform(np.log(20), _LARGEST)))
            x, y = rng.uniform(0, _SIDE - side, 2)
            box = {"image_id": image_id, "category_id": label + 1, "bbox": [float(x), float(y), side, side]}
            truth.append(box | {"id": len(truth) + 1, "area": side * side, "iscrowd": 0})
            if rng.random() < 1 / (1 + np.exp(-(0.5 + ease))):
                spread = np.abs(rng.normal(0, 0.09 * np.exp(-0.3 * ease)))
                corner = [float(x + rng.normal(0, spread * side)), float(y + rng.normal(0, spread * side))]
                sides = [float(side * np.exp(rng.normal(0, spread))) for _ in range(2)]
                if rng.random() >= 0.9:
                    label = int(rng.integers(_NUM_CLASSES))
                score = float(1 / (1 + np.exp(-(0.8 + ease * 0.5 + rng.normal(0, 1)))))
                detections.append(_detection(image_id, label, [*corner, *sides], score))
        for _ in range(rng.integers(0, 8)):
            side = float(np.exp(rng.uniform(np.log(20), _LARGEST)))
            x, y = rng.uniform(0, _SIDE - side, 2)
            label = int(rng.integers(_NUM_CLASSES))
            score = float(1 / (1 + np.exp(-(-1.2 + rng.normal(0, 1)))))
            detections.append(_detection(image_id, label, [float(x), float(y), side, side], score))
    return truth, detections


def _detection(image_id: int, label: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score}


if __name__ == "__main__":
    tyro.cli(main)
