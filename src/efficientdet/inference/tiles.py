"""Splits large images into tiles and merges their detections so that each object is found once.

Scaling an image down to the network's input also shrinks small objects. Tiles are processed at full resolution and
overlap, so an object cut by the border of one tile is whole in the next. Three rules merge the detections of the tiles
and of the whole image:

- The best view decides: a box that its tile cuts is dropped if it lies inside another tile, and so is a box of the
  whole image, since the tile is the better judge of whether there is an object.
- Whole boxes come before cut ones, and higher scores before lower ones. A box is dropped if an earlier box of its class
  from another tile has an IoU above 0.5 with it, or covers more than half of it and its tile has cut it (a fragment).
- Detections of the same tile never compete: the network's suppression has already judged them, so an image with one
  tile has the same result as without tiles.

Slicers in other packages (supervision, SAHI) pass a tile to a function that doesn't know the tile's position, and then
treat all boxes alike; the first rule and half of the second need the position (benchmarks/tiles.py compares them).
"""

import math

import numpy as np

from efficientdet.errors import UserError

LEAST_TILE = 32
"""Minimum side of a tile, px."""

_MOST_OVERLAP = 0.9
_SAME = 0.5  # overlap above which two boxes count as one object
_BORDER = 2.0  # px; a box that ends this close to an inner border of its tile counts as cut


def split(size: tuple[int, int], tile_size: tuple[int, int], overlap: float) -> np.ndarray:
    """Covers an image with evenly spaced tiles.

    Args:
        size: height and width of the image, px.
        tile_size: height and width of a tile, px.
        overlap: minimum overlap of neighboring tiles, as a fraction of a tile's side.

    Returns:
        int[T, 4], yxyx px, row by row; sides are those of `tile_size`, or of the image where it is smaller.

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
    """Computes where tiles start along a side."""
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
    """Selects which detections of the tiles and of the whole image to keep.

    Args:
        boxes: float32[N, 4], yxyx px of the image.
        labels: int[N].
        scores: float32[N].
        origins: int[N, 4], the tile (or whole image) that each was detected in, yxyx px of the image.
        grid: int[T, 4], the tiles from `split`.
        size: height and width of the image, px.

    Returns:
        int[K], row indices to keep, best first.
    """
    cut = is_cut(boxes, origins, size)
    is_coarse = (origins == [0, 0, *size]).all(axis=1) & (len(grid) > 1)
    rows = np.flatnonzero(~((cut | is_coarse) & is_inside(boxes, grid, size)))
    rows = rows[np.lexsort((-scores[rows], cut[rows]))]
    classes = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    found = np.concatenate([np.zeros(0, int), *(_distinct(each, boxes, origins, cut) for each in classes)])
    return found[np.lexsort((found, -scores[found]))]


def _distinct(rows: np.ndarray, boxes: np.ndarray, origins: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Keeps the first of the rows of a class (sorted by priority) that show the same object."""
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
    """Finds boxes that end at an inner border of their tile.

    Args:
        boxes: float32[N, 4], yxyx px of the image.
        origins: int[N, 4], the tile that each was detected in.
        size: height and width of the image, px.

    Returns:
        bool[N].
    """
    is_inner = np.concatenate([origins[:, :2] > 0, origins[:, 2:] < np.array(size)], axis=1)
    return ((np.abs(boxes - origins) <= _BORDER) & is_inner).any(axis=1)


def is_inside(boxes: np.ndarray, grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Finds boxes that lie inside some tile, away from its inner borders.

    Args:
        boxes: float32[N, 4], yxyx px of the image.
        grid: int[T, 4], the tiles from `split`.
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
