"""The detections of one image, and their conversion to drawings, JSON, COCO and supervision."""

import dataclasses
import json
from typing import Any

import numpy as np
from PIL import Image

from efficientdet.errors import UserError
from efficientdet.media import draw, fonts, inputs
from efficientdet.structures import Category


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageDetections:
    """The detections of one image, best first."""

    size: tuple[int, int]
    """Height and width of the image, px."""
    boxes: np.ndarray
    """float32[K, 4], yxyx px, inside the image."""
    labels: np.ndarray
    """int32[K], indices into `categories`."""
    scores: np.ndarray
    """float32[K] in [0, 1]."""
    categories: tuple[Category, ...]
    image: inputs.AnyImage | None = dataclasses.field(default=None, repr=False)
    """The image as passed to the detector. A path stays a path, so that many results need little memory."""

    def __len__(self) -> int:
        """Counts the detections."""
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Returns the class name of each detection."""
        return [self.categories[label].name for label in self.labels.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Converts the detections to plain JSON values; corners in px, x before y."""
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

    def to_json(self, *, indent: int | None = None) -> str:
        """Returns `to_dict` as a JSON string, on one line unless `indent` is set."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Converts the detections to COCO's results format.

        Args:
            image_id: id of the image in the dataset.

        Returns:
            One dict per detection: image_id, category_id (the dataset's), bbox (x, y, width, height, px) and score.
        """
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": self.categories[label].id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (y1, x1, y2, x2), label, score in rows
        ]

    def to_supervision(self) -> Any:
        """Converts to `supervision.Detections`; `class_id` is the label, `data` has class names and category ids.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise UserError(
                "`to_supervision` needs supervision, which is not installed; "
                "run `pip install 'efficientdet-keras[supervision]'`."
            ) from error
        return supervision.Detections(
            xyxy=self.boxes[:, [1, 0, 3, 2]].astype(np.float32),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            data={
                "class_name": np.array(self.names, dtype=np.str_),
                "category_id": np.array([self.categories[label].id for label in self.labels], dtype=np.int64),
            },
        )

    def draw(self, image: inputs.AnyImage | None = None, *, score_threshold: float = 0.0) -> Image.Image:
        """Draws the detections on a copy of the image.

        Args:
            image: image to draw on, of the same size; None means the one passed to the detector. Paths are read again.
            score_threshold: skip detections with a lower score.

        Returns:
            A Pillow image, upright: `.save("found.jpg")`, `.show()`.

        Raises:
            UserError: the image cannot be read, or has a different size.
        """
        ground = self.image if image is None else image
        if ground is None:
            raise UserError("`image` is missing: these detections have no reference to their image; pass it to `draw`.")
        pixels = inputs.to_array(ground)
        if pixels.shape[:2] != self.size:
            raise UserError(
                f"`image` is {pixels.shape[0]} x {pixels.shape[1]} px, but these detections belong to an image of "
                f"{self.size[0]} x {self.size[1]} px."
            )
        names = fonts.show(
            [category.name for category in self.categories], [category.id for category in self.categories]
        )
        return Image.fromarray(
            draw.draw_detections(pixels, self.boxes, self.labels, self.scores, names, score_threshold=score_threshold)
        )
