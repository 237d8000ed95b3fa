"""Detects objects in an image: as a drawing, as JSON, in COCO's format; in several images, one class, in tiles.

    python examples/detect.py WEIGHTS IMAGE OUTPUT

WEIGHTS is a run (`runs/d0`), a weights file, or a published name (`coco-d0`).
"""

import argparse
from pathlib import Path

import efficientdet


def main() -> None:
    """Runs detection on one image in several ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path, help="folder for all output")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    # 1. The shortest form. Threads may share one detector.
    detector = efficientdet.Detector(options.weights)
    found = detector(options.image)
    found.draw().save(options.output / "found.jpg")

    # 2. Class names, scores, and boxes in px of the image: y1, x1, y2, x2.
    for name, score, box in zip(found.names, found.scores, found.boxes, strict=True):
        print(f"{name} {score:.2f} at {box.round().tolist()}")
    (options.output / "found.json").write_text(found.to_json(indent=2), encoding="utf-8")
    print(f"{len(found.to_coco(image_id=1))} rows of COCO's results format")

    # 3. Several images: paths, Pillow images, uint8[height, width, 3] arrays. For more than fit into memory,
    #    `detect_each` takes an iterator and yields one result at a time.
    first, second = detector([options.image, str(options.image)])
    assert len(first) == len(second)

    # 4. One class only, with a different threshold; and in tiles, for small objects in a large image.
    wanted = detector.categories[0].name
    print(f"{wanted}: {len(detector(options.image, classes=[wanted], score_threshold=0.1))}")
    print(f"in tiles: {len(detector(options.image, tiles='input'))}")


if __name__ == "__main__":
    main()
