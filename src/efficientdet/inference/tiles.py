"""Large images in tiles: where the tiles lie, and which of their detections are one and the same object.

An image is scaled down to the network's input, and small objects with it. Tiles are looked at in their own pixels;
they overlap, so that what is cut at the border of one is whole in the next. Of what several of them, and the look at
the whole image, have seen, three rules leave each object once:

- Who sees best decides: a box that its tile has cut goes if it lies inside another tile, and so does a box of the
  whole image: whether there is something, the tile knows.
- Whole boxes come before cut ones, better ones before worse ones. A box goes where one that came before, of its class
  and from another tile, shares half of their union with it, or covers half of it and its tile has cut it: a piece.
- Two detections of the same tile never compete. The suppression of the network's answer has judged them, so that a
  image of one tile has the answer that it has without tiles.

Slicers of other packages (supervision's, SAHI's) hand a tile to a function that does not learn where the tile lies, and
then compare all boxes alike; the first rule and half of the second need to know it (benchmarks/tiles.py compares).
"""

import math

import numpy as np

from efficientdet.errors import UserError

LEAST_TILE = 32
"""Smallest side of a tile, px."""

_MOST_OVERLAP = 0.9
_SAME = 0.5  # share from which on two boxes are of one object
_BORDER = 2.0  # px; a box that ends so near to where its tile was cut out is taken for cut


def split(size: tuple[int, int], tile_size: tuple[int, int], overlap: float) -> np.ndarray:
    """Covers an image with tiles, evenly spread.

    Args:
        size: height and width of the image, px.
        tile_size: height and width of a tile, px.
        overlap: least share of a tile's side that the next tile sees too.

    Returns:
        int[T, 4], yxyx px, row after row; of `tile_size`, or of the image's side where that is smaller.

    Raises:
        UserError: the tiles are too small, or overlap too much.
    """
    if min(tile_size) < LEAST_TILE:
        raise UserError(f"`tiles` is {tile_size[0]} x {tile_size[1]}; both numbers must be at least {LEAST_TILE} px.")
    if not 0 <= overlap <= _MOST_OVERLAP:
        raise UserError(f"`tile_overlap` is {overlap:g}; it must be between 0 and {_MOST_OVERLAP:g}.")
    tops, lefts = (_starts(side, tile, overlap) for side, tile in zip(size, tile_size, strict=True))
    height, width = (min(side, tile) for side, tile in zip(size, tile_size, strict=True))
    return np.array([(top, left, top + height, left + width) for top in tops for left in lefts])


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Finds where tiles begin along a side."""
    if side <= tile:
        return [0]
    step = max(tile * (1 - overlap), 1)
    count = math.ceil((side - tile) / step) + 1
    return np.linspace(0, side - tile, count).round().astype(int).tolist()


def merge(
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    origins: np.ndarray,
    grid: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Finds what stays of the detections of several tiles, and of the whole image.

    Args:
        boxes: float32[N, 4], yxyx px of the image.
        labels: int[N].
        scores: float32[N].
        origins: int[N, 4], the tile that each was seen in, or the whole image, yxyx px of the image.
        grid: int[T, 4], the tiles, of `split`.
        size: height and width of the image, px.

    Returns:
        int[K], rows that stay, best first.
    """
    cut = is_cut(boxes, origins, size)
    is_coarse = (origins == [0, 0, *size]).all(axis=1) & (len(grid) > 1)
    rows = np.flatnonzero(~((cut | is_coarse) & is_inside(boxes, grid, size)))
    rows = rows[np.lexsort((-scores[rows], cut[rows]))]
    classes = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    found = np.concatenate([np.zeros(0, int), *(_distinct(each, boxes, origins, cut) for each in classes)])
    return found[np.lexsort((found, -scores[found]))]


def _distinct(rows: np.ndarray, boxes: np.ndarray, origins: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Leaves the first of those rows of a class, the most welcome first, that show the same object."""
    kept = []
    while len(rows):
        first, rows = rows[0], rows[1:]
        kept.append(first)
        sides = np.minimum(boxes[rows, 2:], boxes[first, 2:]) - np.maximum(boxes[rows, :2], boxes[first, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        areas = _areas(boxes[rows])
        is_same = shared > _SAME * (areas + _areas(boxes[first]) - shared)
        is_piece = cut[rows] & (shared > _SAME * areas)
        is_elsewhere = (origins[rows] != origins[first]).any(axis=1)
        rows = rows[~(is_elsewhere & (is_same | is_piece))]
    return np.array(kept, int)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)


def is_cut(boxes: np.ndarray, origins: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Finds boxes that end where their tile was cut out of the image.

    Args:
        boxes: float32[N, 4], yxyx px of the image.
        origins: int[N, 4], the tile that each was seen in.
        size: height and width of the image, px.

    Returns:
        bool[N].
    """
    is_inner = np.concatenate([origins[:, :2] > 0, origins[:, 2:] < np.array(size)], axis=1)
    return ((np.abs(boxes - origins) <= _BORDER) & is_inner).any(axis=1)


def is_inside(boxes: np.ndarray, grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Finds boxes that lie inside some tile, not near to where it is cut.

    Args:
        boxes: float32[N, 4], yxyx px of the image.
        grid: int[T, 4], of `split`.
        size: height and width of the image, px.

    Returns:
        bool[N].
    """
    inside = np.ones(len(boxes), bool)
    for axis, side in enumerate(size):  # rows and columns of tiles are independent
        starts, ends = np.unique(grid[:, axis]), np.unique(grid[:, axis + 2])
        low = np.where(starts > 0, starts + _BORDER, -np.inf)
        high = np.where(ends < side, ends - _BORDER, np.inf)
        inside &= ((boxes[:, axis, None] > low) & (boxes[:, axis + 2, None] < high)).any(axis=1)
    return inside
