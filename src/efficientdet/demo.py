"""The whole workflow on generated images: draw, convert, train, evaluate, predict.

It trains the preset `demo`, which uses the same code as D0 with smaller values, because D0 itself would take hours on a
few CPU cores.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from efficientdet import presets, progress
from efficientdet.data import conversion, synthetic
from efficientdet.data.formats import coco
from efficientdet.errors import UserError
from efficientdet.evaluation import counting, measuring
from efficientdet.inference import detector as detectors
from efficientdet.media import draw, images
from efficientdet.model import complexity
from efficientdet.result import Result
from efficientdet.storage import files

SPLITS = {"train": 1400, "val": 64, "test": 400}
_SHOWN = 8
_SHOWN_SIDE = 384
_MARKER = "demo.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration(Result):
    """Result of the demo."""

    output: str
    evaluation: counting.EvaluationResult
    """On images not used in training."""
    image: str
    """Ground truth and detections side by side."""
    seconds: float
    preset: dict[str, Any]
    """The trained preset: parameters, multiply-adds, image size."""
    d0: dict[str, Any]
    """The same figures for D0."""

    def table(self) -> Any:
        """Returns the table of the evaluation."""
        return self.evaluation.table()

    def text(self) -> str:
        """Says what was trained and how it compares with D0."""
        return (
            f"Trained the preset `demo`: {_figures(self.preset)}.\n"
            f"For comparison, `d0` uses the same code: {_figures(self.d0)}.\n"
            "To measure the speed of `d0` on this machine, run `efficientdet benchmark inference d0`.\n"
            f"Took {self.seconds / 60:.1f} minutes. Ground truth and detections side by side: {self.image}"
        )


def _figures(figures: dict[str, Any]) -> str:
    height, width = figures["image_size"]
    multiply_adds = figures["multiply_adds"] / 1e9
    return f"{figures['parameters']:,} parameters, {multiply_adds:.2f} billion multiply-adds at {height} x {width} px"


def run_demo(*, output: Path = Path("demo"), seed: int = 0) -> Demonstration:
    """Draws images, converts them, trains a small EfficientDet, evaluates it and shows its detections.

    Takes a few minutes on two cores. Running it again starts over.

    Args:
        output: folder for images, records, the run and the result.
        seed: random seed for images and training.

    Raises:
        UserError: the folder contains other files.
    """
    from efficientdet.training.run import train

    began = time.monotonic()
    _clear(output)
    say = progress.console.print
    say("1/5 drawing images with known boxes")
    synthetic.write_coco_folder(output / "images", SPLITS, presets.MODELS["demo"].image_size, seed)
    say("2/5 converting them to records")
    conversion.convert("coco", output / "images", output=output / "records")
    say("3/5 training the preset `demo`")
    config = presets.find_preset("demo")
    data = dataclasses.replace(config.data, train=str(output / "records"))
    training = dataclasses.replace(config.training, seed=seed)
    train(dataclasses.replace(config, data=data, training=training, run_dir=str(output / "run")))
    say("4/5 evaluating on images it has never seen")
    found = measuring.evaluate(output / "run", data=str(output / "records"), split="test", batch_size=32)
    say("5/5 predicting")
    image = _draw_sheet(output)
    result = Demonstration(
        output=str(output),
        evaluation=found,
        image=str(image),
        preset=_describe("demo", len(synthetic.CATEGORIES)),
        d0=_describe("d0"),
        seconds=time.monotonic() - began,
    )
    files.write_json(output / _MARKER, result.to_dict())
    return result


def _clear(output: Path) -> None:
    """Removes the output of an earlier demo, but no other files."""
    if files.is_filled(output):
        if not (output / _MARKER).is_file():
            raise UserError(
                f"`output` is `{output}`, which contains files that are not from this demo; use another folder."
            )
        shutil.rmtree(output)
    files.write_json(output / _MARKER, {"state": "unfinished"})


def _draw_sheet(output: Path) -> Path:
    """Detects objects in a few image files of the test split and draws ground truth and detections."""
    from PIL import Image

    source = coco.read(output / "images", splits=("test",))
    detector = detectors.Detector(output / "run")
    names = [category.name for category in source.categories]
    pairs = []
    for example in source.splits["test"][:_SHOWN]:
        image = images.read_image(example.path, example.file_name)
        found = detector.detect([image])[0]
        truth, truth_boxes = draw.enlarge(image, example.boxes, _SHOWN_SIDE)
        answer, found_boxes = draw.enlarge(image, found.boxes, _SHOWN_SIDE)
        pairs.append(
            draw.side_by_side(
                draw.draw_detections(truth, truth_boxes, example.labels, None, names),
                draw.draw_detections(answer, found_boxes, found.labels, found.scores, names),
                ("truth", "detections"),
            )
        )
    path = output / "truth_and_detections.jpg"
    sheet = Image.fromarray(draw.contact_sheet(pairs, columns=2))
    files.write_aside(path, lambda temporary: sheet.save(temporary, quality=92))
    return path


def _describe(preset: str, num_classes: int | None = None) -> dict[str, Any]:
    """Collects the figures of a preset."""
    found = complexity.describe(preset, num_classes=num_classes)
    return {name: getattr(found, name) for name in ("parameters", "multiply_adds", "anchors", "image_size")}
