"""Mosaic and mixup: pixels of each image with its boxes, in their places, and nothing else."""

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.config import AugmentationConfig
from efficientdet.data import preprocess
from efficientdet.data.augment import combinations

_SIZE = (64, 96)
_COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [0, 200, 200]], np.uint8)
_PLAIN = AugmentationConfig(scale_min=1.0, scale_max=1.0, horizontal_flip=False)


def _raw(number):
    """An image of a size of its own, in one colour, with a box all over it and its number as the label."""
    colours = tf.constant(_COLOURS)
    size = tf.gather(tf.constant([[30, 50], [80, 40], [70, 120], [33, 33], [64, 96]]), number)
    image = tf.zeros(tf.concat([size, [3]], axis=0), tf.uint8) + tf.gather(colours, number)
    return tf.io.encode_png(image), tf.constant([[0.0, 0.0, 1.0, 1.0]]), tf.reshape(tf.cast(number, tf.int32), [1])


def _draw_other(seed):
    return _raw(tf.random.stateless_uniform([], seed, 1, 5, tf.int32))


def _make(seed, config):
    return combinations.make_example(
        _raw(tf.constant(0)), _draw_other, seed, image_size=_SIZE, resize="half_pixel", config=config, decode="exact"
    )


def _examples(config, num_seeds=20):
    """Makes examples inside tf.data, the first also eagerly."""
    seeds = tf.data.Dataset.range(num_seeds).map(lambda seed: tf.stack([tf.cast(seed, tf.int32), 6]))
    found = list(seeds.map(lambda seed: _make(seed, config)).as_numpy_iterator())
    for eager, inside in zip(_make(tf.constant([0, 6]), config), found[0], strict=True):
        np.testing.assert_allclose(eager.numpy(), inside, atol=1e-4)
    return found


def test_without_either_an_example_is_the_letterboxed_image():
    photo = preprocess.decode_tf(_raw(tf.constant(0))[0]).numpy()
    expected = preprocess.letterbox(photo, _SIZE, "half_pixel")
    pixels, valid_size, boxes, labels = _examples(_PLAIN, 1)[0]
    np.testing.assert_array_equal(pixels, expected[0])
    assert tuple(valid_size) == expected[1]
    assert boxes.tolist() == [[0, 0, min(valid_size[0], 63), min(valid_size[1], 95)]]
    assert labels.tolist() == [0]


@pytest.mark.parametrize("knob", ["mosaic", "mixup"])
def test_what_is_not_drawn_changes_nothing(knob):
    """At a probability of one in a million."""
    rare = AugmentationConfig(**{knob: 1e-6})
    for example, plain in zip(_examples(rare, 6), _examples(AugmentationConfig(), 6), strict=True):
        for value, expected in zip(example, plain, strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("config", [_PLAIN, AugmentationConfig()], ids=["as large as the tile", "any scale"])
def test_a_mosaic_is_four_images_each_in_its_box(config):
    partners = set()
    for pixels, valid_size, boxes, labels in _examples(AugmentationConfig(**vars(config) | {"mosaic": 1.0})):
        assert tuple(valid_size) == _SIZE
        assert pixels.shape == (*_SIZE, 3)
        assert len(boxes) == 4
        assert labels[0] == 0
        partners |= set(labels[1:].tolist())
        covered = np.zeros(_SIZE, int)
        for (y1, x1, y2, x2), label in zip(np.round(boxes).astype(int), labels, strict=True):
            covered[y1:y2, x1:x2] += 1
            assert (pixels[y1:y2, x1:x2] == _COLOURS[label]).all()
        # A box ends a pixel before its tile does, as it does at the border of the network input.
        assert covered.max() == 1
        assert (covered == 0).sum() <= 2 * sum(_SIZE)
        heights, widths = (boxes[:, 2:] - boxes[:, :2]).T
        assert heights.min() >= 15
        assert widths.min() >= 23
    assert partners == {1, 2, 3, 4}


def test_tiles_fill_the_input_and_have_a_quarter_at_least():
    middles = []
    for seed in range(50):
        heights, widths = combinations.draw_tiles(tf.constant([seed, 1]), _SIZE)
        assert (int(tf.reduce_sum(heights)), int(tf.reduce_sum(widths))) == _SIZE
        middles.append((int(heights[0]) / 64, int(widths[0]) / 96))
    assert np.min(middles) >= 0.25
    assert np.max(middles) <= 0.75
    assert np.ptp(middles, axis=0).min() > 0.3


def _example(value, valid_size, label):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[: valid_size[0], : valid_size[1]] = value
    boxes = tf.constant([[0.0, 0.0, 1.0, 1.0 + label]])
    return tf.constant(pixels), tf.constant(valid_size), boxes, tf.constant([label])


def test_mixup_is_worked_out_by_hand():
    pixels, valid_size, boxes, labels = combinations.mix(_example(200, (2, 5), 0), _example(100, (3, 4), 1), 0.25)
    assert valid_size.numpy().tolist() == [3, 5]
    # 0.25 * 200 + 0.75 * 100 where both are, each alone where it is alone, grey where none is, black beyond both.
    expected = [[125, 125, 125, 125, 200, 0]] * 2 + [[100, 100, 100, 100, 128, 0], [0] * 6]
    assert pixels.numpy()[..., 0].tolist() == expected
    assert boxes.numpy().tolist() == [[0, 0, 1, 1], [0, 0, 1, 2]]
    assert labels.numpy().tolist() == [0, 1]


@pytest.mark.parametrize(("share", "expected"), [(1.0, 200), (0.0, 100)])
def test_a_whole_share_shows_one_example_only(share, expected):
    pixels, *_ = combinations.mix(_example(200, (4, 6), 0), _example(100, (4, 6), 1), share)
    assert (pixels.numpy() == expected).all()


def test_shares_are_around_a_half_and_closer_to_it_for_a_larger_alpha():
    shares = {
        alpha: np.array([float(combinations._draw_share(tf.constant([seed, 1]), alpha)) for seed in range(200)])
        for alpha in (1.0, 8.0, 64.0)
    }
    for alpha, drawn in shares.items():
        assert abs(drawn.mean() - 0.5) < 0.08
        assert abs(drawn.std() - (4 * (2 * alpha + 1)) ** -0.5) < 0.05  # of Beta(alpha, alpha)


def test_a_mixed_example_has_the_boxes_of_both():
    for pixels, valid_size, boxes, labels in _examples(AugmentationConfig(mixup=1.0, scale_min=0.5, scale_max=0.9)):
        assert labels[0] == 0
        assert len(labels) == 2
        assert labels[1] in (1, 2, 3, 4)
        assert (boxes[:, 2:].max(axis=0) >= valid_size - 1.01).all()
        assert not pixels[valid_size[0] :].any()
        assert not pixels[:, valid_size[1] :].any()


@pytest.mark.parametrize(("mosaic", "mixup", "expected"), [(0.0, 0.0, 1), (0.1, 0.0, 4), (0.0, 0.1, 2), (0.1, 0.1, 8)])
def test_there_is_room_for_the_boxes_of_all(mosaic, mixup, expected):
    assert combinations.num_images(AugmentationConfig(mosaic=mosaic, mixup=mixup)) == expected
