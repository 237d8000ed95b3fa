"""Tiles cover an image, and an object that several of them saw is left once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.inference import tiles

_SIDES = st.tuples(st.integers(1, 900), st.integers(1, 900))
_TILES = st.tuples(st.integers(32, 400), st.integers(32, 400))


@given(_SIDES, _TILES, st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap_as_asked(size, tile_size, overlap):
    grid = tiles.split(size, tile_size, overlap)
    for side, tile, column in ((size[0], tile_size[0], 0), (size[1], tile_size[1], 1)):
        starts, ends = np.unique(grid[:, column]), np.unique(grid[:, column + 2])
        assert (starts[0], ends[-1]) == (0, side)
        assert (ends - starts == min(tile, side)).all()
        assert (np.diff(starts) <= tile * (1 - overlap) + 1).all(), "a pixel for rounding"
    assert len(np.unique(grid, axis=0)) == len(grid)


def test_a_small_image_has_one_tile():
    np.testing.assert_array_equal(tiles.split((50, 64), (64, 64), 0.2), [[0, 0, 50, 64]])


# Two tiles of an image of 100 x 180, which both see columns 80 to 100; and the whole.
_SIZE, _GRID = (100, 180), np.array([[0, 0, 100, 100], [0, 80, 100, 180]])
_LEFT, _RIGHT, _WHOLE = (0, 0, 100, 100), (0, 80, 100, 180), (0, 0, 100, 180)


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        pytest.param(
            [((10, 84, 30, 96), 0, 0.9, _LEFT), ((10, 85, 30, 97), 0, 0.8, _RIGHT)], [0], id="seen twice, whole"
        ),
        pytest.param(
            [((10, 90, 30, 100), 0, 0.9, _LEFT), ((10, 90, 30, 130), 0, 0.6, _RIGHT)], [1], id="whole beats cut"
        ),
        pytest.param([((10, 90, 30, 100), 0, 0.9, _LEFT)], [], id="the other tile sees it better, and sees nothing"),
        pytest.param([((10, 60, 30, 100), 0, 0.9, _LEFT)], [0], id="no tile sees more of it"),
        pytest.param(
            [((9, 20, 90, 99), 0, 0.9, _LEFT), ((9, 81, 90, 170), 0, 0.8, _RIGHT), ((9, 20, 90, 170), 0, 0.4, _WHOLE)],
            [2],
            id="larger than a tile: the whole image's box stands for its pieces",
        ),
        pytest.param([((10, 10, 50, 50), 0, 0.9, _WHOLE)], [], id="a tile sees it better than the whole image"),
        pytest.param([((10, 10, 50, 150), 0, 0.9, _WHOLE)], [0], id="no tile sees it better than the whole image"),
        pytest.param(
            [((10, 10, 90, 150), 0, 0.9, _WHOLE), ((20, 20, 40, 40), 0, 0.4, _LEFT)],
            [0, 1],
            id="one in front of another",
        ),
        pytest.param([((10, 84, 30, 96), 0, 0.9, _LEFT), ((10, 84, 30, 96), 1, 0.8, _RIGHT)], [0, 1], id="two classes"),
        pytest.param(
            [((10, 10, 30, 30), 0, 0.9, _LEFT), ((11, 10, 31, 30), 0, 0.8, _LEFT)], [0, 1], id="one tile has settled it"
        ),
        pytest.param(
            [((10, 10, 30, 30), 0, 0.5, _LEFT), ((10, 140, 30, 160), 0, 0.8, _RIGHT)], [1, 0], id="best first"
        ),
        pytest.param([((0, 0, 30, 30), 0, 0.5, _LEFT)], [0], id="the image's own border cuts nothing"),
    ],
)
def test_what_several_tiles_saw_is_left_once(rows, kept):
    boxes, labels, scores, origins = (np.array(part) for part in zip(*rows, strict=True))
    assert tiles.merge(boxes, labels, scores, origins, _GRID, _SIZE).tolist() == kept


def test_nothing_stays_nothing():
    empty = np.zeros(0, int)
    found = tiles.merge(np.zeros((0, 4)), empty, np.zeros(0), np.zeros((0, 4), int), _GRID, _SIZE)
    assert found.tolist() == []


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_no_two_tiles_keep_the_same_object(seed, count):
    rng = np.random.default_rng(seed)
    grid = tiles.split((200, 260), (64, 96), 0.2)
    origins = grid[rng.integers(len(grid), size=count)]
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (origins[:, None, 2:] - origins[:, None, :2])
    boxes = (corners + origins[:, None, :2]).reshape(-1, 4)
    labels, scores = rng.integers(2, size=count), rng.random(count)
    kept = tiles.merge(boxes, labels, scores, origins, grid, (200, 260))
    assert len(set(kept.tolist())) == len(kept)
    assert (np.diff(scores[kept]) <= 0).all()
    cut, inside = tiles.is_cut(boxes, origins, (200, 260)), tiles.is_inside(boxes, grid, (200, 260))
    assert not (cut & inside)[kept].any()
    for place, first in enumerate(kept):
        for second in kept[place + 1 :]:
            if labels[first] == labels[second] and (origins[first] != origins[second]).any():
                sides = np.minimum(boxes[first, 2:], boxes[second, 2:]) - np.maximum(
                    boxes[first, :2], boxes[second, :2]
                )
                shared = np.prod(np.maximum(sides, 0))
                areas = [np.prod(boxes[row, 2:] - boxes[row, :2]) for row in (first, second)]
                assert shared <= 0.5 * (sum(areas) - shared) + 1e-9


@given(st.integers(0, 10**6))
def test_a_whole_box_that_nothing_else_resembles_stays(seed):
    """Any box that one tile alone saw whole is kept, whatever its score."""
    rng = np.random.default_rng(seed)
    grid = tiles.split((200, 260), (64, 96), 0.2)
    origin = grid[rng.integers(len(grid))]
    corners = np.sort(rng.uniform(0.05, 0.95, (2, 2)), axis=0) * (origin[2:] - origin[:2]) + origin[:2]
    kept = tiles.merge(corners.reshape(1, 4), np.zeros(1, int), rng.random(1), origin[None], grid, (200, 260))
    assert kept.tolist() == [0]
