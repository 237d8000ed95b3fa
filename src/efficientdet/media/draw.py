"""Draws boxes on images: detections or ground truth, side by side, or many on a sheet.

Line width and font size scale with the image. Each class always has the same color: hues are a golden angle apart, so
that neighbors in the class list differ. Text is black or white, whichever is more readable on the color.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from efficientdet.media import fonts

_GOLDEN_ANGLE = 0.3819660112501051  # of a full turn
_SMALLEST_FONT = 8  # px
_MOST_TAGS = 300  # with more, an image is unreadable anyway, and placing the tags takes minutes
_PAPER, _INK = (250, 250, 250), (30, 30, 30)

_Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2, px; the last row and column are outside


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    names: Sequence[str],
    *,
    score_threshold: float = 0.0,
) -> np.ndarray:
    """Draws boxes with their class names on a copy of an image, the most confident on top.

    Args:
        image: uint8[H, W, 3], RGB.
        boxes: float32[K, 4], yxyx px; parts outside the image are cut off.
        labels: int32[K], indices into `names`; -1 marks padding.
        scores: float32[K] in [0, 1], shown as a percentage; None for ground truth.
        names: class names.
        score_threshold: skip boxes with a lower score.

    Returns:
        uint8[H, W, 3]. A tag that doesn't fit into the image loses its percentage, then its name; only the best 300
        boxes have tags.
    """
    height, width = image.shape[:2]
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    order = _best_first(boxes, labels, scores, score_threshold, (height, width))
    line = max(1, round((height + width) * 0.0022))
    frames = {row: _frame(boxes[row], (height, width)) for row in order}
    for row in reversed(order):
        _draw_frame(draw, frames[row], line, colour(int(labels[row])))

    names = fonts.show(names)
    texts = {row: [names[int(labels[row])]] for row in order[:_MOST_TAGS]}
    if scores is not None:
        texts = {row: [f"{name} {100 * float(scores[row]):.0f}%", name] for row, (name,) in texts.items()}
    font = _font(max(_SMALLEST_FONT + 1, round((height + width) * 0.0125)))
    tags = _place_tags(frames, texts, font, line, (height, width))
    for row, (rectangle, text) in reversed(tags.items()):
        _draw_tag(draw, rectangle, text, font, colour(int(labels[row])))
    return np.asarray(canvas).copy()


def colour(label: int) -> tuple[int, int, int]:
    """Returns the color of a class, RGB, 0 to 255."""
    hue = (0.58 + label * _GOLDEN_ANGLE) % 1.0
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.75))[label // 8 % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Chooses black or white, RGB, whichever has the higher contrast: at least 4.58 on any color."""
    black, white = (0, 0, 0), (255, 255, 255)
    return black if contrast(black, background) >= contrast(white, background) else white


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """Computes the contrast ratio of two colors, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    darker, lighter = sorted((_luminance(first), _luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(rgb: tuple[int, int, int]) -> float:
    """Computes the relative luminance, in [0, 1] (WCAG 2.2)."""
    fractions = (part / 255 for part in rgb)
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in fractions]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def enlarge(image: np.ndarray, boxes: np.ndarray, least_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Enlarges a small image and its boxes by an integer factor, so that text on it is readable.

    Args:
        image: uint8[H, W, 3].
        boxes: float32[K, 4], yxyx px.
        least_side: minimum length of the shorter side afterward, px.

    Returns:
        image: uint8[s * H, s * W, 3] and boxes: float32[K, 4], for the smallest sufficient s.
    """
    height, width = image.shape[:2]
    scale = -(-least_side // min(height, width))
    if scale <= 1:
        return image, boxes
    larger = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    return np.asarray(larger).copy(), np.asarray(boxes, np.float32) * np.float32(scale)


def side_by_side(left: np.ndarray, right: np.ndarray, captions: tuple[str, str]) -> np.ndarray:
    """Places two images side by side, each below its caption.

    Args:
        left: uint8[H, W, 3].
        right: uint8[H', W', 3].
        captions: captions of the left and the right image; shortened to the width of their image.

    Returns:
        uint8[H'', W'', 3].
    """
    height = max(left.shape[0], right.shape[0])
    size = max(_SMALLEST_FONT + 3, round((height + left.shape[1]) * 0.016))
    gap, header = max(4, size // 2), 2 * size
    sheet = Image.new("RGB", (left.shape[1] + gap + right.shape[1], header + height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    x = 0
    for image, caption in zip((left, right), captions, strict=True):
        font = fonts.load(caption, size)
        text = _shorten(caption, font, image.shape[1] - 2 * (size // 3))
        draw.text((x + size // 3, header / 2), text, fill=_INK, font=font, anchor="lm")
        sheet.paste(Image.fromarray(image), (x, header))
        x += image.shape[1] + gap
    return np.asarray(sheet).copy()


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arranges images in rows of equal cells, each centered in its cell.

    Args:
        images: uint8[H, W, 3] each, at least one; sizes may differ.
        columns: images per row, at least 1.

    Returns:
        uint8[H', W', 3].
    """
    columns = min(columns, len(images))
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    gap = max(2, round((height + width) * 0.01))
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", size, _PAPER)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        x = gap + column * (width + gap) + (width - image.shape[1]) // 2
        y = gap + row * (height + gap) + (height - image.shape[0]) // 2
        sheet.paste(Image.fromarray(image), (x, y))
    return np.asarray(sheet).copy()


def _best_first(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, threshold: float, size: tuple[int, int]
) -> list[int]:
    """Finds the rows to draw, best first; for ground truth smallest first, so that larger boxes don't hide smaller."""
    if not len(labels):
        return []
    y1, x1, y2, x2 = np.asarray(boxes, np.float64).T
    seen = (np.asarray(labels) >= 0) & (y2 > 0) & (x2 > 0) & (y1 < size[0]) & (x1 < size[1])
    if scores is None:
        order = np.argsort((y2 - y1) * (x2 - x1), kind="stable")
    else:
        order = np.argsort(-np.asarray(scores), kind="stable")
        seen &= np.asarray(scores) >= threshold
    return [int(row) for row in order if seen[row]]


def _frame(box: np.ndarray, size: tuple[int, int]) -> _Rectangle:
    """Rounds a box (float[4], yxyx) to whole pixels inside the image, at least one."""
    y1, x1, y2, x2 = np.clip(np.round(box), 0, (*size, *size)).astype(int).tolist()
    y1, x1 = min(y1, size[0] - 1), min(x1, size[1] - 1)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _draw_frame(draw: ImageDraw.ImageDraw, frame: _Rectangle, line: int, rgb: tuple[int, int, int]) -> None:
    """Draws a box; lines of 2 px or more get a thin dark inner rim that keeps them visible on a similar background."""
    x1, y1, x2, y2 = frame
    if line >= 2 and min(x2 - x1, y2 - y1) > 4 * line:
        rim = line + max(1, line // 3)
        dark = tuple(part // 4 for part in rgb)
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=dark, width=rim)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=rgb, width=line)


def _place_tags(
    frames: dict[int, _Rectangle],
    texts: dict[int, list[str]],
    font: ImageFont.FreeTypeFont,
    line: int,
    size: tuple[int, int],
) -> dict[int, tuple[_Rectangle, str]]:
    """Finds for each box, best first, a text that fits into the image and the position that overlaps tags the least.

    Args:
        frames: the boxes, best first.
        texts: candidate texts of each box that gets a tag, the preferred one first.
        font: font of all tags; replaced by one of the same size for characters that it lacks.
        line: width of a box's line, px.
        size: height and width of the image, px.

    Returns:
        Position and text; boxes whose texts don't fit are missing.
    """
    tags: dict[int, tuple[_Rectangle, str]] = {}
    for row in texts:
        sizes = {text: _tag_size(text, font) for text in texts[row]}
        fitting = [text for text, (width, height) in sizes.items() if width <= size[1] and height <= size[0]]
        if fitting:
            places = [_shift(place, size) for place in _places(frames[row], *sizes[fitting[0]], line)]
            hidden = [sum(_overlap(place, other) for other, _ in tags.values()) for place in places]
            tags[row] = places[hidden.index(min(hidden))], fitting[0]
    return tags


def _places(frame: _Rectangle, width: int, height: int, line: int) -> list[_Rectangle]:
    """Lists positions of a tag, best first: above, inside the top, below, inside the bottom; left, right, middle."""
    x1, y1, x2, y2 = frame
    above, below = y1 - height + line, y2 - line
    tops = [above, y1, below, y2 - height] if above >= 0 else [y1, below, y2 - height]
    lefts = (x1, x2 - width, (x1 + x2 - width) // 2)
    return [(left, top, left + width, top + height) for left in lefts for top in tops]


def _shift(place: _Rectangle, size: tuple[int, int]) -> _Rectangle:
    """Moves a tag that fits into the image completely inside it."""
    x1, y1, x2, y2 = place
    right, down = max(0, -x1) - max(0, x2 - size[1]), max(0, -y1) - max(0, y2 - size[0])
    return x1 + right, y1 + down, x2 + right, y2 + down


def _overlap(first: _Rectangle, second: _Rectangle) -> int:
    """Computes the area that two tags share, px squared."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height)


def _tag_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Measures the width and height of a tag, px."""
    return round(_with_letters(font, text).getlength(text) + font.size * 0.5) + 1, round(font.size * 1.3)


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    rectangle: _Rectangle,
    text: str,
    font: ImageFont.FreeTypeFont,
    rgb: tuple[int, int, int],
) -> None:
    """Writes a text on a filled tag."""
    x1, y1, x2, y2 = rectangle
    draw.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=font.size * 0.2, fill=rgb)
    draw.text(((x1 + x2) / 2, (y1 + y2) / 2), text, fill=text_colour(rgb), font=_with_letters(font, text), anchor="mm")


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shortens a text to at most `width` px, with an ellipsis if something is missing."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Loads Pillow's own font at a size in px."""
    return fonts.load("", size)


def _with_letters(font: ImageFont.FreeTypeFont, text: str) -> ImageFont.FreeTypeFont:
    """Returns the font, or one of the same size that has the characters of a text."""
    return font if text.isascii() else fonts.load(text, round(font.size))
