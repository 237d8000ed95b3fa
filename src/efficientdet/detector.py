"""Raw pictures -> detections in their own pixels: letterbox, runtime, undo the letterbox."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import draw, files, progress, runtimes
from efficientdet.config import Depthwise, PostprocessConfig, Precision, RuntimeName, Switch
from efficientdet.data import images as image_files
from efficientdet.data import preprocess
from efficientdet.errors import UserError
from efficientdet.structures import Category


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PictureDetections:
    """What was found in one picture, best first."""

    size: tuple[int, int]
    """Height and width of the picture, px."""
    boxes: np.ndarray
    """float32[K, 4], yxyx px of the picture, inside of it."""
    labels: np.ndarray
    """int32[K], positions in `categories`."""
    scores: np.ndarray
    """float32[K] in [0, 1]."""
    categories: tuple[Category, ...]

    def to_dict(self) -> dict[str, Any]:
        """Turns the detections into plain JSON values; corners in px, x before y."""
        height, width = self.size
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True)
        found = [
            {
                "class": self.categories[label].name,
                "category_id": self.categories[label].id,
                "score": round(score, 4),
                "box": {"x1": round(x1, 2), "y1": round(y1, 2), "x2": round(x2, 2), "y2": round(y2, 2)},
            }
            for (y1, x1, y2, x2), label, score in rows
        ]
        return {"height": height, "width": width, "detections": found}


class Detector:
    """Weights, ready to look at pictures."""

    def __init__(
        self,
        weights: str | Path,
        *,
        score_threshold: float = 0.3,
        image_size: tuple[int, int] | None = None,
        precision: Precision = "float32",
        runtime: RuntimeName = "auto",
        xla: Switch = "auto",
        postprocess: PostprocessConfig | None = None,
        depthwise: Depthwise = "convolution",
    ):
        """Loads weights.

        Args:
            weights: weights file, folder of a run (its best weights), or a published name such as coco-d0.
            score_threshold: detections below this are left out.
            image_size: height and width of the network input, px; None: what the weights were trained with.
            precision: of the arithmetic inside the network.
            runtime: what runs the network; auto: OpenVINO on a CPU where it is installed, else Keras.
            xla: compile Keras's graph with XLA; auto: on a GPU.
            postprocess: limits and thresholds of the suppression.
            depthwise: how Keras's runtime computes depthwise convolutions; pallas needs JAX and a GPU.

        Raises:
            UserError: the weights cannot be used.
        """
        if not 0 <= score_threshold <= 1:
            raise UserError(f"`score_threshold` is {score_threshold}; it must be in [0, 1].")
        self.runtime = runtimes.load_runtime(
            weights,
            runtime=runtime,
            postprocess=postprocess,
            image_size=image_size,
            precision=precision,
            xla=xla,
            depthwise=depthwise,
        )
        self.score_threshold = score_threshold
        self.categories = self.runtime.categories

    def detect(self, images: Sequence[np.ndarray]) -> list[PictureDetections]:
        """Detects in a batch of pictures.

        Args:
            images: uint8[h, w, 3], RGB, upright; each may have a size of its own.
        """
        size = self.runtime.image_size
        boxed = [preprocess.letterbox(image, size, self.runtime.resize) for image in images]
        found = self.runtime.detect(
            np.stack([pixels for pixels, _, _ in boxed]), np.array([valid for _, valid, _ in boxed], np.int32)
        )
        sizes = np.array([image.shape[:2] for image in images], np.int32)
        boxes = preprocess.undo_letterbox(found["boxes"], np.array([scale for _, _, scale in boxed]), sizes)
        return [self._pick(found, boxes, row, sizes[row]) for row in range(len(images))]

    def _pick(self, found: Any, boxes: np.ndarray, row: int, size: np.ndarray) -> PictureDetections:
        """Takes one picture's detections above the threshold out of a batch."""
        is_shown = (found["labels"][row] >= 0) & (found["scores"][row] >= self.score_threshold)
        return PictureDetections(
            size=(int(size[0]), int(size[1])),
            boxes=boxes[row][is_shown],
            labels=found["labels"][row][is_shown],
            scores=found["scores"][row][is_shown],
            categories=self.categories,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What `predict` wrote."""

    output: str
    pictures: dict[str, dict[str, Any]]
    """Picture as it was given -> its size, its detections, and the annotated picture."""

    def to_dict(self) -> dict[str, Any]:
        """Turns the prediction into plain JSON values."""
        return dataclasses.asdict(self)


def predict(
    weights: Path,
    images: tuple[Path, ...],
    /,
    *,
    output: Path = Path("predictions"),
    score_threshold: float = 0.3,
    image_size: tuple[int, int] | None = None,
    precision: Precision = "float32",
    runtime: RuntimeName = "auto",
    xla: Switch = "auto",
) -> Prediction:
    """Detects in pictures, draws what was found, and writes it down as JSON.

    Args:
        weights: weights file, folder of a run (its best weights), or a published name such as coco-d0.
        images: pictures, or folders of pictures.
        output: folder for the annotated pictures and predictions.json.
        score_threshold: detections below this are left out.
        image_size: height and width of the network input, px; what the weights were trained with if not given.
        precision: of the arithmetic inside the network.
        runtime: what runs the network; auto: OpenVINO on a CPU, where its extra is installed, else Keras.
        xla: compile Keras's graph with XLA; auto: on a GPU.

    Returns:
        What was found; boxes in px of each picture, upright as its EXIF orientation says.

    Raises:
        UserError: weights or a picture cannot be used; nothing is written then.
    """
    paths = _find_pictures(images)
    targets = _targets(paths, output)
    report = output / "predictions.json"
    files.check_writable(report)
    for path in paths:
        image_files.read_image(path, str(path))  # a broken one stops before anything is written
    detector = Detector(
        weights,
        score_threshold=score_threshold,
        image_size=image_size,
        precision=precision,
        runtime=runtime,
        xla=xla,
    )
    names = [category.name for category in detector.categories]
    pictures: dict[str, dict[str, Any]] = {}
    with progress.track("predict", len(paths)) as bar:
        for path, target in zip(paths, targets, strict=True):
            image = image_files.read_image(path, str(path))
            found = detector.detect([image])[0]
            _write_picture(target, draw.draw_detections(image, found.boxes, found.labels, found.scores, names))
            pictures[str(path)] = {**found.to_dict(), "picture": str(target)}
            bar.advance(note=path.name)
    files.write_json(report, pictures)
    return Prediction(output=str(output), pictures=pictures)


def _find_pictures(images: Sequence[Path]) -> list[Path]:
    """Lists the pictures, those of folders in the order of their names."""
    paths: list[Path] = []
    for path in images:
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix.lower() in image_files.SUFFIXES)
            if not inside:
                raise UserError(f"`{path}` has no pictures ({', '.join(sorted(image_files.SUFFIXES))}).")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"`{path}` does not exist; give a picture or a folder of pictures.")
    if not paths:
        raise UserError("`images` is empty; give at least one picture or folder.")
    return paths


def _targets(paths: list[Path], output: Path) -> list[Path]:
    """Names the annotated pictures as the originals; equal names are numbered, and no original is replaced."""
    taken: set[str] = set()
    targets = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in taken:
            stem, number = f"{path.stem}-{number}", number + 1
        taken.add(stem)
        targets.append(output / f"{stem}.jpg")
    originals = {path.resolve() for path in paths}
    for target in targets:
        if target.resolve() in originals:
            raise UserError(f"`output` is `{output}`, where `{target.name}` would be replaced; give another folder.")
    return targets


def _write_picture(path: Path, image: np.ndarray) -> None:
    """Writes a JPEG, aside and then renamed."""
    from PIL import Image

    files.write_aside(path, lambda temporary: Image.fromarray(image).save(temporary, quality=92))
