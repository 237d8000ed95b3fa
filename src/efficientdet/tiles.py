"""Large pictures in tiles: where the tiles lie, and which of their detections are one and the same object.

A picture is scaled down to the network's input, and small objects with it. Tiles are looked at in their own pixels;
they overlap, so that what is cut at the border of one is whole in the next. What several tiles saw is left once: a
detection goes where a better one of its class, seen in another tile, covers most of it or is mostly covered by it. Two
detections of the same tile never compete: the suppression of the network's answer has judged them, so that a picture of
one tile has the answer it has without tiles.

Slicers of other packages (supervision's, SAHI's) hand a tile to a function that does not learn where the tile lies, and
compare all detections alike; they cannot know which box was cut and which pair one tile has settled.
"""

import math

import numpy as np

from efficientdet.errors import UserError

LEAST_TILE = 32
"""Smallest side of a tile, px."""

_MOST_OVERLAP = 0.9
_SAME = 0.5  # share of the smaller box from which on two boxes are of one object
_BORDER = 2.0  # px; a box that ends so near to where its tile was cut out is taken for cut


def split(size: tuple[int, int], tile_size: tuple[int, int], overlap: float) -> np.ndarray:
    """Covers a picture with tiles, evenly spread.

    Args:
        size: height and width of the picture, px.
        tile_size: height and width of a tile, px.
        overlap: least share of a tile's side that the next tile sees too.

    Returns:
        int[T, 4], yxyx px, row after row; of `tile_size`, or of the picture's side where that is smaller.

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
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, origins: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Finds what stays of the detections of several tiles.

    Whole boxes come before boxes that their tile has cut, better ones before worse ones.

    Args:
        boxes: float32[N, 4], yxyx px of the picture.
        labels: int[N].
        scores: float32[N].
        origins: int[N, 4], the tile that each was seen in, yxyx px of the picture.
        size: height and width of the picture, px.

    Returns:
        int[K], rows that stay, best first.
    """
    order = np.lexsort((-scores, is_cut(boxes, origins, size)))
    found = np.concatenate(
        [np.zeros(0, int), *(_distinct(order[labels[order] == label], boxes, origins) for label in np.unique(labels))]
    )
    return found[np.argsort(-scores[found], kind="stable")]


def _distinct(rows: np.ndarray, boxes: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Leaves the first of those rows of a class, the most welcome first, that show the same object."""
    kept = []
    while len(rows):
        first, rows = rows[0], rows[1:]
        kept.append(first)
        sides = np.minimum(boxes[rows, 2:], boxes[first, 2:]) - np.maximum(boxes[rows, :2], boxes[first, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        smaller = np.minimum(_areas(boxes[rows]), _areas(boxes[first]))
        is_elsewhere = (origins[rows] != origins[first]).any(axis=1)
        rows = rows[~(is_elsewhere & (shared > _SAME * smaller))]
    return np.array(kept, int)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)


def is_cut(boxes: np.ndarray, origins: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Finds boxes that end where their tile was cut out of the picture.

    Args:
        boxes: float32[N, 4], yxyx px of the picture.
        origins: int[N, 4], the tile that each was seen in.
        size: height and width of the picture, px.

    Returns:
        bool[N].
    """
    is_inner = np.concatenate([origins[:, :2] > 0, origins[:, 2:] < np.array(size)], axis=1)
    return ((np.abs(boxes - origins) <= _BORDER) & is_inner).any(axis=1)
