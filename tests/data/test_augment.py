"""Augmentation: pixels and boxes move together, from a seed of the example's own."""

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.config import AugmentationConfig
from efficientdet.data import augment, preprocess

_SIZE = (64, 96)


def _draw(seed, config=None, size=(50, 80)):
    return augment.draw_decisions(tf.constant([seed, 7]), tf.constant(size), _SIZE, config or AugmentationConfig())


def test_the_same_seed_draws_the_same():
    for first, second in zip(_draw(3), _draw(3), strict=True):
        np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_about_half_of_the_pictures_are_mirrored():
    mirrored = [bool(_draw(seed)[0]) for seed in range(200)]
    assert 70 < sum(mirrored) < 130


def test_without_flip_none_is_mirrored():
    config = AugmentationConfig(horizontal_flip=False)
    assert not any(bool(_draw(seed, config)[0]) for seed in range(20))


def test_scales_fill_their_range_and_keep_the_aspect_ratio():
    sizes = np.array([_draw(seed)[1].numpy() for seed in range(300)])
    factors = sizes[:, 1] / (80 * min(64 / 50, 96 / 80))
    assert factors.min() < 0.2
    assert factors.max() > 1.9
    assert abs(np.median(factors) - 1.05) < 0.2
    np.testing.assert_allclose(sizes[:, 0] / sizes[:, 1], 50 / 80, atol=0.1)


def test_a_cut_lies_inside_the_scaled_picture():
    for seed in range(100):
        _, new_size, offset = _draw(seed)
        assert (offset.numpy() >= 0).all()
        assert (offset.numpy() <= np.maximum(new_size.numpy() - _SIZE, 0)).all()


@pytest.mark.parametrize(
    ("mirrored", "new_size", "offset", "expected"),
    [
        pytest.param(False, (64, 96), (0, 0), [16, 24, 32, 72], id="as it is"),
        pytest.param(True, (64, 96), (0, 0), [16, 24, 32, 72], id="mirrored about the middle"),
        pytest.param(False, (32, 48), (0, 0), [8, 12, 16, 36], id="half the size"),
        pytest.param(False, (128, 192), (20, 60), [12, 0, 44, 84], id="cut; the left edge is clipped"),
        pytest.param(False, (128, 192), (64, 96), [0, 0, 0, 48], id="cut away: no height is left"),
    ],
)
def test_boxes_move_with_the_picture(mirrored, new_size, offset, expected):
    box = tf.constant([[0.25, 0.25, 0.5, 0.75]])
    moved = augment.move_boxes(box, tf.constant(new_size), tf.constant(offset), _SIZE, tf.constant(mirrored))
    np.testing.assert_allclose(moved.numpy(), [expected], atol=1e-4)
    assert bool(augment.has_area(moved)[0]) == (expected[2] > expected[0] and expected[3] > expected[1])


def test_pixels_are_found_where_the_boxes_say():
    """A white rectangle on black must fill the moved box, whatever was drawn; eagerly and inside tf.data."""
    image = np.zeros((50, 80, 3), np.uint8)
    image[10:30, 20:50] = 255
    box = tf.constant([[10 / 50, 20 / 80, 30 / 50, 50 / 80]])

    def example(seed):
        mirrored, new_size, offset = augment.draw_decisions(tf.stack([seed, 1]), tf.constant([50, 80]), _SIZE, config)
        mirrored_image = augment.mirror_image(tf.constant(image), mirrored)
        pixels, _ = preprocess.resample_tf(mirrored_image, new_size, offset, _SIZE, "half_pixel")
        return pixels, augment.move_boxes(box, new_size, offset, _SIZE, mirrored)

    config = AugmentationConfig(scale_min=0.8, scale_max=2.0)
    seen = 0
    in_graph = tf.data.Dataset.range(40).map(lambda seed: example(tf.cast(seed, tf.int32)))
    for seed, (pixels, boxes) in enumerate(in_graph):
        eager_pixels, eager_boxes = example(tf.constant(seed))
        np.testing.assert_array_equal(pixels.numpy(), eager_pixels.numpy())
        np.testing.assert_allclose(boxes.numpy(), eager_boxes.numpy())
        y1, x1, y2, x2 = boxes.numpy()[0]
        if y2 - y1 < 8 or x2 - x1 < 8:
            continue
        seen += 1
        inside = pixels.numpy()[int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2]
        assert (inside == 255).all()
        outside = pixels.numpy().copy()
        outside[max(int(y1) - 2, 0) : int(y2) + 3, max(int(x1) - 2, 0) : int(x2) + 3] = 0
        assert not outside.any()
    assert seen > 20
