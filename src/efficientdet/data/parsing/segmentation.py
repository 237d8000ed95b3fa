"""Computes the boxes of COCO's segmentations: polygons, and masks in run-length encoding (RLE).

RLE counts pixels column by column, alternating between unset and set ones, starting with unset. Its compressed form
writes each count as characters with codes from 48 up: five bits each, plus a sixth that marks that more follow. From
the fourth count on, it stores the difference to the count before the last (pycocotools, maskApi.c).
"""

from typing import Any

from efficientdet.data.parsing import values
from efficientdet.errors import UserError


def box(segmentation: Any, where: str) -> list[float] | None:
    """Computes the bounding box of a segmentation.

    Args:
        segmentation: list of polygons [x1, y1, x2, y2, ...] px, one polygon, or RLE {"size": [H, W], "counts": ...}.
        where: start of the error: file and field, up to "contains".

    Returns:
        yxyx, px; None if it is empty.

    Raises:
        UserError: it is something else.
    """
    if isinstance(segmentation, dict):
        return _mask_box(segmentation, where)
    if not isinstance(segmentation, list):
        raise UserError(f"{where} {str(segmentation)[:60]!r}; expected polygons or RLE.")
    polygons = segmentation if segmentation and isinstance(segmentation[0], list) else [segmentation]
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise UserError(f"{where} {str(polygon)[:60]!r}; expected [x1, y1, x2, y2, ...].")
        numbers = [values.number(value, where) for value in polygon]
        xs += numbers[::2]
        ys += numbers[1::2]
    return [min(ys), min(xs), max(ys), max(xs)] if xs else None


def _mask_box(mask: dict[str, Any], where: str) -> list[float] | None:
    """Computes the box of a mask: yxyx px around its pixels; None if no pixel is set."""
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, list | str):
        raise UserError(f"{where} {str(mask)[:60]!r}; expected RLE with `size` and `counts`.")
    height = values.pixels(size[0], where)
    width = values.pixels(size[1], where)
    runs = _decompress(counts, where) if isinstance(counts, str) else [values.pixels(run, where) for run in counts]
    if height <= 0 or width <= 0 or min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UserError(f"{where} an RLE of {sum(runs)} pixels, but its `size` is {height} x {width}.")
    x1, y1, x2, y2 = width, height, 0, 0
    position = 0
    for index, run in enumerate(runs):
        if index % 2 and run:
            first, last = position, position + run - 1
            x1, x2 = min(x1, first // height), max(x2, last // height + 1)
            is_one_column = first // height == last // height
            y1 = min(y1, first % height if is_one_column else 0)
            y2 = max(y2, last % height + 1 if is_one_column else height)
        position += run
    return [float(side) for side in (y1, x1, y2, x2)] if x2 else None


def _decompress(text: str, where: str) -> list[int]:
    """Decodes the counts of compressed RLE."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UserError(f"{where} {text[:60]!r}; expected the counts of compressed RLE.")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
