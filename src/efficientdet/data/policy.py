"""What happens to faulty images and boxes (the table in docs/data.md).

Each image is checked here once, before it becomes a record: a fault that can be fixed is fixed and reported as a
`Problem`; an image that cannot be used is a `UserError`.
"""

import dataclasses

import numpy as np

from efficientdet.data import sources
from efficientdet.errors import UserError
from efficientdet.media import images

NOT_FINITE = "boxes with NaN or infinite coordinates dropped"
NO_AREA = "boxes with no area dropped"
OUTSIDE = "boxes outside the image dropped"
CLIPPED = "boxes clipped to the image"
REENCODED = "images re-encoded as RGB JPEG"
ROTATED = "images rotated upright (EXIF)"
TAG_REMOVED = "EXIF rotation tags removed, since the boxes match the unrotated image"
FIRST_FRAME = "animated or multi-page files reduced to their first image"
BROKEN = "broken images skipped"

# A box that extends at most this far beyond the image is clipped without a report: annotations are rounded.
_CLIP_SILENTLY_PX = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """An image that has been checked and fixed.

    Attributes:
        jpeg: RGB or gray JPEG, upright, without a rotation tag.
        height: px.
        width: px.
        boxes: float32[N, 4], yxyx px, inside the image, with a positive area.
        labels: int32[N].
        is_crowd: bool[N].
        area: float32[N], px squared; the area of the box if the annotation gives none.
        problems: what was fixed or dropped.
    """

    jpeg: bytes
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    area: np.ndarray
    problems: tuple[sources.Problem, ...]


def prepare(example: sources.Example, split: str) -> Image:
    """Reads, checks and fixes one image and its boxes.

    Raises:
        UserError: the image is missing, cannot be decoded, or differs in size from what its annotation declares.
    """
    problems: list[sources.Problem] = []

    def report(kind: str, count: int = 1, detail: str = "", lost: int = 0) -> None:
        if count:
            name = example.file_name
            problems.append(
                sources.Problem(kind=kind, split=split, file_name=name, count=count, detail=detail, lost=lost)
            )

    content = images.read_file(example.path, example.file_name)
    facts = images.inspect(content, example.file_name)
    report(FIRST_FRAME, int(facts.has_more_frames))
    rotate = _wants_rotation(example, facts)
    height, width = facts.upright_size if rotate else facts.stored_size
    if facts.is_plain_jpeg and (facts.orientation == 1 or not rotate):
        images.check_decodes(content, example.file_name)
        jpeg = content if facts.orientation == 1 else images.strip_exif(content)
    else:
        jpeg = images.to_jpeg(content, example.file_name, rotate=rotate)
        if not facts.is_plain_jpeg:
            report(REENCODED, detail=f"{facts.format} {facts.mode}")
    if facts.orientation != 1:
        report(ROTATED if rotate else TAG_REMOVED, detail=f"orientation {facts.orientation}")
    boxes, keep, counts = clean_boxes(_in_pixels(example, height, width), height, width)
    for kind, count in counts.items():
        report(kind, count, lost=0 if kind == CLIPPED else count)
    box_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    area = example.area[keep]
    return Image(
        jpeg=jpeg,
        height=height,
        width=width,
        boxes=boxes,
        labels=example.labels[keep],
        is_crowd=example.is_crowd[keep],
        area=np.where(np.isfinite(area) & (area >= 0), area, box_area).astype(np.float32),
        problems=tuple(problems),
    )


def clean_boxes(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Clips boxes to the image and drops those that have no area left.

    Args:
        boxes: float32[N, 4], yxyx px.
        height: px.
        width: px.

    Returns:
        float32[M, 4], clipped boxes; int64[M], their positions in `boxes`; counts of dropped and clipped boxes by kind.
    """
    limits = np.asarray([height, width, height, width], np.float32)
    is_finite = np.isfinite(boxes).all(axis=1)
    boxes = np.where(is_finite[:, None], boxes, 0.0).astype(np.float32)
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    clipped = np.clip(boxes, 0, limits)
    is_inside = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    keep = is_finite & has_area & is_inside
    is_moved = np.abs(clipped - boxes).max(axis=1, initial=0.0) > _CLIP_SILENTLY_PX
    counts = {
        NOT_FINITE: int((~is_finite).sum()),
        NO_AREA: int((is_finite & ~has_area).sum()),
        OUTSIDE: int((is_finite & has_area & ~is_inside).sum()),
        CLIPPED: int((keep & is_moved).sum()),
    }
    return clipped[keep], np.flatnonzero(keep), counts


def _wants_rotation(example: sources.Example, facts: images.Facts) -> bool:
    """Decides whether the annotation refers to the upright image or to the image as stored."""
    declared = example.declared_size
    if declared not in (None, facts.upright_size, facts.stored_size):
        height, width = facts.upright_size
        hint = " Height and width may be swapped." if declared == (width, height) else ""
        raise UserError(
            f"`{example.file_name}` is {height} x {width} px (height x width), "
            f"but its annotation says {declared[0]} x {declared[1]}.{hint}"
        )
    if example.is_upright is not None:  # `rotation` has looked at the whole dataset
        return example.is_upright
    return declared is None or declared == facts.upright_size


def _in_pixels(example: sources.Example, height: int, width: int) -> np.ndarray:
    """Returns the boxes in px of the image: float32[N, 4], yxyx."""
    if not example.is_normalized:
        return example.boxes
    return example.boxes * np.asarray([height, width, height, width], np.float32)
