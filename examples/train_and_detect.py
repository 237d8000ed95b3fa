"""Trains a detector on images with boxes and draws its detections, in Python.

    python examples/train_and_detect.py OUTPUT

It generates its own images. To use photographs, skip the first step and pass their folder in the second.
"""

import argparse
import dataclasses
from pathlib import Path

from PIL import Image

import efficientdet
from efficientdet.data import synthetic
from efficientdet.media import draw, images


def main() -> None:
    """Generates images, converts them, trains, and detects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for all output")
    parser.add_argument("--epochs", type=float, default=5, help="passes over the training images")
    parser.add_argument("--images", type=int, default=1400, help="number of training images to generate")
    parser.add_argument("--image-size", type=int, default=128, help="height and width of the network input, px")
    options = parser.parse_args()

    # 1. A folder in COCO's layout: images, and annotations/instances_train.json, instances_val.json.
    size = (options.image_size, options.image_size)
    photos = options.output / "images"
    synthetic.write_coco_folder(photos, {"train": options.images, "val": 16}, size, seed=0)

    # 2. Records, which training can read in any order.
    records = options.output / "records"
    efficientdet.convert("coco", photos, output=records)

    # 3. A preset with some settings changed; each is a field of a dataclass.
    start = efficientdet.PRESETS["demo"]
    config = dataclasses.replace(
        start,
        run_dir=str(options.output / "run"),
        data=dataclasses.replace(start.data, train=str(records)),
        model=dataclasses.replace(start.model, image_size=size),
        training=dataclasses.replace(start.training, epochs=options.epochs),
    )
    summary = efficientdet.train(config)
    print(f"{summary.steps} steps, AP {summary.best_ap}")

    # 4. A detector takes images of any size and returns boxes in px of each image.
    detector = efficientdet.Detector(summary.run_dir, score_threshold=0.3)
    path = min((photos / "val").glob("*.jpg"))
    image = images.read_image(path, path.name)
    found = detector.detect([image])[0]
    names = [category.name for category in detector.categories]
    for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
        print(f"{names[label]} {score:.2f} at {box.round().tolist()}")

    # 5. The image with its detections.
    drawn = draw.draw_detections(image, found.boxes, found.labels, found.scores, names)
    Image.fromarray(drawn).save(options.output / "detections.jpg")


if __name__ == "__main__":  # conversion starts processes that import this file
    main()
