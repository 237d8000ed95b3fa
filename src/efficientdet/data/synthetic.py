"""Generates images with known boxes, for the demo, the tests, benchmarks, and runs without records.

Shaded shapes of any color, size and rotation overlap on textured backgrounds. Each image is a pure function of (seed,
index); nothing here needs TensorFlow or Keras. A box is tight around the part of its shape inside the frame, including
hidden parts, as people annotate photographs.
"""

import colorsys
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from efficientdet import structures
from efficientdet.errors import UserError
from efficientdet.progress import track

CATEGORIES = tuple(
    structures.Category(id=number, name=name)
    for number, name in enumerate(("disk", "square", "triangle", "star", "ring", "cross"), start=1)
)
MAX_BOXES = 8
"""Maximum number of boxes in an image."""

_MOST_HIDDEN = 0.7  # fraction of an object's area in the frame; an object that would hide more of another is not placed
_LEAST_IN_FRAME = 0.45  # fraction of an object's area
_ATTEMPTS = 6  # tries to place an object
_LIKE_THEIR_CLASS = 0.85  # fraction of objects that have about the color of their class
_OVERSAMPLING = 2  # masks are drawn larger and scaled down, so that edges are smooth
_POOL_BYTES = 512 * 1024**2
_SPLIT_STRIDE = 10_000_000  # image numbers between splits, so that no two splits share an image


def draw_image(
    seed: int, index: int, image_size: tuple[int, int], num_classes: int = len(CATEGORIES)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one image, always the same for the same arguments.

    Args:
        seed: seed of the whole set, 0 or more.
        index: number of the image in the set, 0 or more.
        image_size: height and width, px, at least 32.
        num_classes: 1..6; the first `num_classes` of `CATEGORIES` are drawn.

    Returns:
        image: uint8[H, W, 3], RGB.
        boxes: float32[N, 4], yxyx px, with N in 1..8; later ones are drawn over earlier ones.
        labels: int32[N] in 0..num_classes-1.
    """
    _check(image_size, num_classes)
    rng = np.random.default_rng([seed, index])
    canvas = _background(rng, image_size)
    owner = np.full(image_size, -1, np.int8)  # the object visible at each pixel
    areas, visible = np.zeros(MAX_BOXES, np.int64), np.zeros(MAX_BOXES, np.int64)  # px of each object
    boxes: list[tuple[float, ...]] = []
    labels: list[int] = []
    for _ in range(1 + rng.binomial(MAX_BOXES - 1, 0.35)):
        for _ in range(_ATTEMPTS):
            label = int(rng.integers(num_classes))
            masks = _Masks(rng, label, image_size)
            covered = np.bincount(owner[masks.frame][masks.solid] + 1, minlength=MAX_BOXES + 1)[1:]
            stays_visible = np.all(visible - covered >= areas * (1 - _MOST_HIDDEN))
            if masks.share_in_frame >= _LEAST_IN_FRAME and stays_visible:
                _paint(rng, canvas, masks)
                owner[masks.frame][masks.solid] = len(boxes)
                visible -= covered
                areas[len(boxes)] = visible[len(boxes)] = np.count_nonzero(masks.solid)
                boxes.append(masks.box)
                labels.append(label)
                break
    canvas += (rng.random(image_size, dtype=np.float32) - 0.5) * rng.uniform(4, 28)
    image = np.clip(canvas, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(image), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32)


def _check(image_size: tuple[int, int], num_classes: int) -> None:
    if min(image_size) < 32:
        raise UserError(f"`image_size` is {image_size[0]} x {image_size[1]}; both sides must be at least 32.")
    if not 1 <= num_classes <= len(CATEGORIES):
        raise UserError(f"`num_classes` is {num_classes}; generated images have 1 to {len(CATEGORIES)} classes.")


def _background(rng: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """Draws float32[3, H, W] in about 0..255: a gradient or clouds around one color, mostly with a texture."""
    height, width = image_size
    cells = int(rng.choice((2, 2, 3, 5, 9)))  # 2 is a gradient, more are clouds
    base = _colour(rng, saturation=(0.05, 0.6), value=(0.2, 0.95))
    grid = np.clip(base + rng.normal(0, 30 if cells > 2 else 45, (cells, cells, 3)), 0, 255).astype(np.uint8)
    clouds = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    canvas = np.asarray(clouds).transpose(2, 0, 1).astype(np.float32, order="C")
    texture, strength = rng.integers(5), rng.uniform(6, 22)
    angle, period = rng.uniform(0, math.pi), min(image_size) * rng.uniform(0.03, 0.16)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    along = (x * math.cos(angle) + y * math.sin(angle)) * np.float32(2 * math.pi / period)
    if texture == 0:  # waves
        canvas += np.sin(along) * strength
    elif texture in (1, 2):  # checks, dots
        across = (y * math.cos(angle) - x * math.sin(angle)) * np.float32(2 * math.pi / period)
        pattern = np.sin(along) * np.sin(across)
        pattern = np.sign(pattern) if texture == 1 else np.where(pattern > 0.55, np.float32(1.5), np.float32(-0.3))
        canvas += pattern * strength
    elif texture == 3:  # rough ground
        rough = rng.integers(0, 256, (max(height // 3, 2), max(width // 3, 2)), dtype=np.uint8)
        rough_image = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        canvas += (np.asarray(rough_image, dtype=np.float32) - 128) * (strength / 60)
    return canvas


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None
) -> np.ndarray:
    """Picks a color, float32[3], RGB in 0..255, with the given hue (0..1) or a random one."""
    hue = rng.random() if hue is None else hue % 1.0
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, np.float32) * 255


def _hue(rng: np.random.Generator, label: int) -> float:
    """Picks the hue of an object: usually near that of its class, as in the real world, sometimes any."""
    if rng.random() < _LIKE_THEIR_CLASS:
        return label / len(CATEGORIES) + rng.uniform(-0.06, 0.06)
    return rng.random()


class _Masks:
    """One shape at its position, and how much of it is visible.

    Attributes:
        label: int in 0..5.
        diameter: float, px, of the circle around the shape.
        frame: slices of the rows and columns of the image that the masks cover.
        alpha: float32[h, w] in 0..1, the shape.
        body: float32[h, w] in 0..1, the shape without its outline.
        shadow: float32[h, w] in 0..1.
        solid: bool[h, w], the pixels the shape mostly covers.
        share_in_frame: fraction of the shape's area inside the image.
        box: (y1, x1, y2, x2), px.
    """

    def __init__(self, rng: np.random.Generator, label: int, image_size: tuple[int, int]):
        """Draws a shape of a random size and rotation at a random place."""
        height, width = image_size
        low, high = (0.26, 0.66) if rng.random() < 0.9 else (0.12, 0.26)
        diameter = min(image_size) * math.exp(rng.uniform(math.log(low), math.log(high)))
        centre = rng.uniform(0.03, 0.97, 2) * image_size
        # Leaves room around the circle for the shadow.
        radius = math.ceil(diameter * 0.58) + 2
        top, left = (round(c) - radius for c in centre)
        side = 2 * radius
        points = _turn(rng, _OUTLINES[label]) * (diameter / 2) + (centre - (top, left))
        shape, body = _draw(points * _OVERSAMPLING, side * _OVERSAMPLING, diameter * _OVERSAMPLING, label)
        small = shape.reduce(_OVERSAMPLING)
        drop = max(1, round(diameter * 0.04))
        shadow = ImageChops.offset(small.filter(ImageFilter.BoxBlur(drop)), drop, drop)

        rows = slice(max(0, -top), min(side, height - top))
        columns = slice(max(0, -left), min(side, width - left))
        alpha = np.asarray(small, dtype=np.float32) / 255
        self.label, self.diameter = label, diameter
        self.frame = (slice(rows.start + top, rows.stop + top), slice(columns.start + left, columns.stop + left))
        self.alpha = alpha[rows, columns]
        self.body = np.asarray(body.reduce(_OVERSAMPLING), dtype=np.float32)[rows, columns] / 255
        self.shadow = np.asarray(shadow, dtype=np.float32)[rows, columns] / 255
        self.solid = self.alpha > 0.5
        self.share_in_frame = float(self.alpha.sum() / alpha.sum())
        self.box = _tight_box(shape, rows, columns, top, left)


def _tight_box(shape: Image.Image, rows: slice, columns: slice, top: int, left: int) -> tuple[float, ...]:
    """Measures the box (y1, x1, y2, x2), px, of the part of an enlarged mask inside the frame, to half a pixel."""
    scale = _OVERSAMPLING
    inside = (columns.start * scale, rows.start * scale, columns.stop * scale, rows.stop * scale)
    x1, y1, x2, y2 = shape.crop(inside).getbbox() or (0, 0, 0, 0)
    y, x = rows.start + top, columns.start + left
    return (y1 / scale + y, x1 / scale + x, y2 / scale + y, x2 / scale + x)


def _draw(points: np.ndarray, side: int, diameter: float, label: int) -> tuple[Image.Image, Image.Image]:
    """Draws the polygon `points` (float64[n, 2], yx px): the whole shape, and the shape without its outline."""
    outline = max(3, round(diameter * 0.035))
    polygon = [(x, y) for y, x in points.tolist()]
    shape = Image.new("L", (side, side))
    ImageDraw.Draw(shape).polygon(polygon, fill=255)
    body = Image.new("L", (side, side))
    ImageDraw.Draw(body).polygon(polygon, fill=255, outline=0, width=outline)
    if CATEGORIES[label].name == "ring":
        centre = points.mean(axis=0)
        for image, share in ((shape, 0.5), (body, 0.5 + 2 * outline / diameter)):
            hole = centre + (points - centre) * share
            ImageDraw.Draw(image).polygon([(x, y) for y, x in hole.tolist()], fill=0)
    return shape, body


def _turn(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray:
    """Squeezes an outline slightly in a random direction and rotates it by a random angle."""
    first, second = rng.uniform(0, 2 * math.pi, 2)
    squeeze = np.diag((1.0, rng.uniform(0.75, 1.0)))
    return outline @ _rotation(first) @ squeeze @ _rotation(second)


def _rotation(angle: float) -> np.ndarray:
    sine, cosine = math.sin(angle), math.cos(angle)
    return np.array(((cosine, -sine), (sine, cosine)))


def _on_circle(count: int, *radii: float) -> np.ndarray:
    """Places `count` points at equal angles, cycling through `radii`."""
    angles = np.arange(count) * (2 * math.pi / count)
    radius = np.resize(radii, count)
    return np.stack((-np.cos(angles) * radius, np.sin(angles) * radius), axis=1)


def _plus(arm: float) -> np.ndarray:
    """Outlines a cross with arms of half-width `arm` inside the unit circle."""
    end = math.sqrt(1 - arm * arm)
    corner = np.array(((-end, -arm), (-end, arm), (-arm, arm)))
    return np.concatenate([corner @ _rotation(quarter * math.pi / 2) for quarter in range(4)])


# float64[n, 2], yx, inside the unit circle; by label.
_OUTLINES = (
    _on_circle(64, 1.0),
    _on_circle(4, 1.0),
    _on_circle(3, 1.0),
    _on_circle(10, 1.0, 0.42),
    _on_circle(64, 1.0),
    _plus(0.3),
)


def _paint(rng: np.random.Generator, canvas: np.ndarray, masks: _Masks) -> None:
    """Draws one shaded object with its shadow onto the image, in place."""
    region = canvas[:, *masks.frame]
    ground = region[:, ::4, ::4].mean(axis=(1, 2))
    hue = _hue(rng, masks.label)
    colour = _colour(rng, saturation=(0.45, 1.0), value=(0.45, 1.0), hue=hue)
    for _ in range(8):  # most objects stand out
        if np.abs(colour - ground).sum() > 150:
            break
        colour = _colour(rng, saturation=(0.3, 1.0), value=(0.25, 1.0), hue=hue)
    height, width = masks.alpha.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    light = 1 - rng.uniform(0.05, 0.3) * (y + x)  # from the top left, like the shadows
    if rng.random() < 0.25:
        angle, stripes = rng.uniform(0, math.pi), rng.uniform(9, 20)
        light = light * np.where(
            np.sin((y * math.sin(angle) + x * math.cos(angle)) * stripes) > 0, np.float32(1), np.float32(0.72)
        )
    outline = colour * rng.uniform(0.3, 0.6) if rng.random() < 0.75 else colour * 0.25 + 190
    region *= 1 - 0.4 * masks.shadow
    for channel in range(3):
        fill = np.minimum(colour[channel] * light, 255)
        paint = outline[channel] + masks.body * (fill - outline[channel])
        region[channel] += masks.alpha * (paint - region[channel])


def write_coco_folder(folder: Path, splits: dict[str, int], image_size: tuple[int, int], seed: int) -> None:
    """Writes generated images in COCO's layout: `annotations/instances_<split>.json`, `<split>/000001.jpg`, ...

    Args:
        folder: created if missing; existing files with the same names are replaced.
        splits: name and number of images of each split. No two splits share an image.
        image_size: average height and width, px; the images vary around it by up to 20 %.
        seed: seed of the whole set.
    """
    with track("drawing", sum(splits.values())) as progress:
        for position, (split, count) in enumerate(splits.items()):
            (folder / split).mkdir(parents=True, exist_ok=True)
            images: list[dict] = []
            annotations: list[dict] = []
            for number in range(1, count + 1):
                index = position * _SPLIT_STRIDE + number
                size = _vary(image_size, seed, index)
                image, boxes, labels = draw_image(seed, index, size)
                name = f"{number:06}.jpg"
                Image.fromarray(image).save(folder / split / name, quality=92)
                images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
                for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
                    annotations.append(_annotation(len(annotations) + 1, number, box, label))
                progress.advance()
            _write_annotations(folder / "annotations" / f"instances_{split}.json", images, annotations)


def _vary(image_size: tuple[int, int], seed: int, index: int) -> tuple[int, int]:
    """Picks a height and width near `image_size`, so that images vary in size and shape like photographs."""
    factors = np.random.default_rng([seed, index, 1]).uniform(0.8, 1.2, 2)
    height, width = (max(32, round(side * factor)) for side, factor in zip(image_size, factors, strict=True))
    return height, width


def _annotation(number: int, image_number: int, box: list[float], label: int) -> dict:
    y1, x1, y2, x2 = box
    height, width = y2 - y1, x2 - x1
    return {
        "id": number,
        "image_id": image_number,
        "category_id": CATEGORIES[label].id,
        "bbox": [x1, y1, width, height],
        "area": height * width,
        "iscrowd": 0,
    }


def _write_annotations(path: Path, images: list[dict], annotations: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": category.id, "name": category.name, "supercategory": "shape"} for category in CATEGORIES]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def batches(
    *,
    batch_size: int,
    image_size: tuple[int, int],
    max_boxes: int,
    seed: int,
    num_classes: int,
    start_step: int = 0,
    num_images: int = 256,
) -> Iterator[tuple[structures.Batch, structures.Originals]]:
    """Yields batches endlessly; the batch of step s is a pure function of (seed, s).

    Images are drawn when first needed and then reused, in a new order for each pass. An image's id is its number in the
    pool, so the first `num_images // batch_size` batches contain no id twice.

    Args:
        batch_size: images per batch.
        image_size: height and width, px; every image fills it.
        max_boxes: room for boxes of one image, at least 8.
        seed: seed of the images and their order.
        num_classes: 1..6.
        start_step: step of the first batch.
        num_images: distinct images; fewer if they would take more than 512 MiB, but at least one batch.

    Yields:
        Batch and Originals of `structures`, NumPy arrays.
    """
    _check(image_size, num_classes)
    if max_boxes < MAX_BOXES:
        raise UserError(f"`max_boxes` is {max_boxes}; generated images have up to {MAX_BOXES} boxes.")
    num_images = pool_size(batch_size, image_size, num_images)
    pool: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    step = start_step
    while True:
        indices = _pick(seed, np.arange(step * batch_size, (step + 1) * batch_size), num_images)
        for index in indices:
            if index not in pool:
                pool[index] = draw_image(seed, index, image_size, num_classes)
        yield _collate(indices, [pool[index] for index in indices], max_boxes)
        step += 1


def pool_size(batch_size: int, image_size: tuple[int, int], num_images: int) -> int:
    """Counts the distinct images of `batches`: the requested number, limited to 512 MiB, but at least one batch."""
    return max(batch_size, min(num_images, _POOL_BYTES // (3 * image_size[0] * image_size[1])))


def _pick(seed: int, positions: np.ndarray, num_images: int) -> list[int]:
    """Finds the images at positions (int64[B]) in an endless sequence of shuffled passes over all images."""
    passes = {number: np.random.default_rng([seed, number, 2]) for number in np.unique(positions // num_images)}
    orders = {number: rng.permutation(num_images) for number, rng in passes.items()}
    return [int(orders[position // num_images][position % num_images]) for position in positions]


def _collate(
    indices: list[int], drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]], max_boxes: int
) -> tuple[structures.Batch, structures.Originals]:
    """Stacks images; boxes are padded with zeros and the label -1."""
    images = np.stack([image for image, _, _ in drawn])
    boxes = np.zeros((len(drawn), max_boxes, 4), np.float32)
    labels = np.full((len(drawn), max_boxes), -1, np.int32)
    num_boxes = np.array([len(image_labels) for _, _, image_labels in drawn], np.int32)
    for row, (_, image_boxes, image_labels) in enumerate(drawn):
        boxes[row, : num_boxes[row]] = image_boxes
        labels[row, : num_boxes[row]] = image_labels
    sizes = np.tile(np.array(images.shape[1:3], np.int32), (len(drawn), 1))
    batch = structures.Batch(images=images, valid_size=sizes, boxes=boxes, labels=labels, num_boxes=num_boxes)
    originals = structures.Originals(
        ids=np.array(indices, np.int64),
        scales=np.ones(len(drawn), np.float32),
        sizes=sizes,
        boxes=boxes,
        labels=labels,
        is_crowd=np.zeros(labels.shape, bool),
        area=np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1),
        num_boxes=num_boxes,
    )
    return batch, originals
