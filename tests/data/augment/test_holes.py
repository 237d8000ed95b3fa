"""Holes: where they may be, how large they are, grey and nothing else."""

import numpy as np
import tensorflow as tf

from efficientdet.data.augment import holes

_SIZE = (48, 64)


def _hidden(change, num_seeds):
    """Applies a change to a white image inside tf.data under several seeds; tells which pixels became grey."""
    image = tf.fill([*_SIZE, 3], tf.constant(255, tf.uint8))
    seeds = tf.data.Dataset.range(num_seeds).map(lambda seed: tf.stack([tf.cast(seed, tf.int32), 3]))
    found = list(seeds.map(lambda seed: change(image, seed)).as_numpy_iterator())
    np.testing.assert_array_equal(change(image, tf.constant([0, 3])).numpy(), found[0])  # eagerly the same
    for pixels in found:
        assert set(np.unique(pixels)) <= {128, 255}
        assert (pixels == pixels[..., :1]).all()
    return [pixels[..., 0] == 128 for pixels in found]


def test_cutout_hides_one_square_wherever_its_middle_is():
    middles = []
    for hidden in _hidden(lambda image, seed: holes.cut_out(image, 6.0, seed), 30):
        rows, columns = np.nonzero(hidden.any(axis=1))[0], np.nonzero(hidden.any(axis=0))[0]
        assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) <= 12
        assert len(columns) <= 12
        if rows[0] > 0 and rows[-1] < _SIZE[0] - 1:
            assert len(rows) == 12
        middles.append((rows.mean() / _SIZE[0], columns.mean() / _SIZE[1]))
    assert np.min(middles) < 0.15
    assert np.max(middles) > 0.85


def test_cutout_of_no_size_hides_nothing():
    box = tf.constant([[0.25, 0.25, 0.75, 0.75]])
    assert not np.any(_hidden(lambda image, seed: holes.cut_out(image, 0.0, seed), 3))
    assert not np.any(_hidden(lambda image, seed: holes.cut_out_in_box(image, box, 0.0, seed), 3))


def test_cutout_in_a_box_stays_in_one_box():
    boxes = tf.constant([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    chosen = set()
    for hidden in _hidden(lambda image, seed: holes.cut_out_in_box(image, boxes, 0.75, seed), 20):
        first, second = hidden[:24, :32].sum(), hidden[24:, 32:].sum()
        assert first + second == hidden.sum()
        assert 0 < hidden.sum() <= 0.75**2 * 24 * 32 + 24 + 32
        assert min(first, second) == 0
        chosen.add(bool(first))
    assert chosen == {False, True}


def test_without_boxes_no_box_is_cut():
    empty = tf.zeros([0, 4])
    assert not np.any(_hidden(lambda image, seed: holes.cut_out_in_box(image, empty, 0.75, seed), 3))


def test_a_grid_hides_a_sixth_of_the_image_in_several_places():
    shares = [hidden.mean() for hidden in _hidden(holes.grid_mask, 40)]
    assert abs(np.mean(shares) - 0.4**2) < 0.02
    assert np.std(shares) > 0.005


def test_a_grid_has_holes_everywhere():
    """The longest period is half of the shorter side."""
    for hidden in _hidden(holes.grid_mask, 10):
        quarters = [part for half in np.split(hidden, 2) for part in np.split(half, 2, axis=1)]
        assert all(quarter.any() and not quarter.all() for quarter in quarters)
