"""From images with boxes to a detector and an image with detections, in Python.

    python examples/train_and_detect.py OUTPUT

It draws its own images. For photographs leave out the first step and name their folder in the second.
"""

import argparse
import dataclasses
from pathlib import Path

from PIL import Image

import efficientdet
from efficientdet.data import synthetic
from efficientdet.media import draw, images


def main() -> None:
    """Draws, converts, trains, detects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for everything that is written")
    parser.add_argument("--epochs", type=float, default=5, help="passes over the training images")
    parser.add_argument("--images", type=int, default=1400, help="to draw for training")
    parser.add_argument("--image-size", type=int, default=128, help="height and width of the network input, px")
    options = parser.parse_args()

    # 1. A folder in COCO's form: images, and annotations/instances_train.json, instances_val.json.
    size = (options.image_size, options.image_size)
    photos = options.output / "images"
    synthetic.write_coco_folder(photos, {"train": options.images, "val": 16}, size, seed=0)

    # 2. Records, which training reads in any order.
    records = options.output / "records"
    efficientdet.convert("coco", photos, output=records)

    # 3. A preset, with some of its knobs changed; each is a field of a dataclass.
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

    # 4. A detector takes images of any size and gives boxes in their own pixels.
    detector = efficientdet.Detector(summary.run_dir, score_threshold=0.3)
    path = min((photos / "val").glob("*.jpg"))
    image = images.read_image(path, path.name)
    found = detector.detect([image])[0]
    names = [category.name for category in detector.categories]
    for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
        print(f"{names[label]} {score:.2f} at {box.round().tolist()}")

    # 5. The image with what was found.
    drawn = draw.draw_detections(image, found.boxes, found.labels, found.scores, names)
    Image.fromarray(drawn).save(options.output / "detections.jpg")


if __name__ == "__main__":  # several processes convert many images, and each reads this file
    main()
