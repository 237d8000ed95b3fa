"""Augmentation: pixels and boxes move together, from a seed of the example's own."""

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.config import AugmentationConfig
from efficientdet.data import preprocess
from efficientdet.data.augment import cropping

_SIZE = (64, 96)


def _draw(seed, config=None, size=(50, 80), resize="antialiased"):
    config = config or AugmentationConfig()
    return cropping.draw_decisions(tf.constant([seed, 7]), tf.constant(size), _SIZE, config, resize)


def test_the_same_seed_draws_the_same():
    for first, second in zip(_draw(3), _draw(3), strict=True):
        np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_about_half_of_the_images_are_mirrored():
    mirrored = [bool(_draw(seed)[0]) for seed in range(200)]
    assert 70 < sum(mirrored) < 130


def test_without_flip_none_is_mirrored():
    config = AugmentationConfig(horizontal_flip=False)
    assert not any(bool(_draw(seed, config)[0]) for seed in range(20))


def test_scales_fill_their_range_and_keep_the_aspect_ratio():
    scales = []
    for seed in range(300):
        _, window, _, valid_size = _draw(seed)
        scales.append(valid_size.numpy() / window[2:].numpy())
    factors = np.array(scales)[:, 1] / min(64 / 50, 96 / 80)
    assert factors.min() < 0.2
    assert factors.max() > 1.9
    assert abs(np.median(factors) - 1.05) < 0.2
    # The smallest are 5 x 8 px, the smallest windows 25 x 40 px: half a pixel is that much of them.
    np.testing.assert_allclose(np.array(scales)[:, 0] / np.array(scales)[:, 1], 1, atol=0.2)


@pytest.mark.parametrize("size", [(50, 80), (500, 800), (1, 1), (2000, 90)])
def test_a_window_lies_inside_the_image_on_the_grid_of_shrunk_blocks(size):
    shrinks = set()
    for seed in range(60):
        _, window, shrink, valid_size = (value.numpy() for value in _draw(seed, size=size))
        assert (window[:2] >= 0).all()
        assert (window[2:] >= 1).all()
        assert (window[:2] + window[2:] <= size).all()
        assert (valid_size <= _SIZE).all()
        assert (window % shrink == 0).all()
        # As large as it is seen, to a pixel.
        assert shrink == 1 or (window[2:] // shrink >= valid_size - 1).all()
        shrinks.add(int(shrink))
    if size == (500, 800):
        assert shrinks == {1, 2, 4, 8} - set(range(1, min(shrinks)))


def test_what_evaluation_skips_is_skipped_in_training_too():
    """Of 500 x 800 px at 64 x 96 px, an eighth: shrunk only by what the drawn scale adds, unless antialiased."""
    for scale, expected in ((1.0, 1), (0.6, 1), (0.5, 2), (0.25, 4)):
        fixed = AugmentationConfig(scale_min=scale, scale_max=scale)
        assert int(_draw(0, fixed, (500, 800), "half_pixel")[2]) == expected
        assert int(_draw(0, fixed, (500, 800), "antialiased")[2]) == 8


def test_all_places_of_a_window_are_drawn():
    fixed = AugmentationConfig(scale_min=2.0, scale_max=2.0)
    tops = {int(_draw(seed, fixed, (66, 99))[1][0]) for seed in range(400)}
    assert tops == set(range(66 - 33 + 1)), "33 of 66 rows are seen, from any on"


_WHOLE, _QUARTER = (0, 0, 128, 192), (20, 60, 64, 96)


@pytest.mark.parametrize(
    ("mirrored", "window", "valid_size", "expected"),
    [
        pytest.param(False, _WHOLE, (64, 96), [16, 24, 32, 72], id="as it is"),
        pytest.param(True, _WHOLE, (64, 96), [16, 24, 32, 72], id="mirrored about the middle"),
        pytest.param(False, _WHOLE, (32, 48), [8, 12, 16, 36], id="half the size"),
        pytest.param(True, _WHOLE, (32, 48), [8, 12, 16, 36], id="half the size, mirrored inside what is seen"),
        pytest.param(False, _QUARTER, (64, 96), [12, 0, 44, 84], id="cut; the left edge is clipped"),
        pytest.param(True, _QUARTER, (64, 96), [12, 12, 44, 95], id="cut and mirrored; the last column is clipped"),
        pytest.param(False, (64, 96, 64, 96), (64, 96), [0, 0, 0, 48], id="cut away: no height is left"),
        pytest.param(False, (16, 24, 32, 24), (64, 96), [32, 95, 63, 95], id="enlarged: no width is left"),
    ],
)
def test_boxes_move_with_the_image(mirrored, window, valid_size, expected):
    box = tf.constant([[0.25, 0.25, 0.5, 0.75]])
    arguments = (tf.constant((128, 192)), tf.constant(window), tf.constant(valid_size), _SIZE, tf.constant(mirrored))
    moved = cropping.move_boxes(box, *arguments)
    np.testing.assert_allclose(moved.numpy(), [expected], atol=1e-4)
    assert bool(cropping.has_area(moved)[0]) == (expected[2] > expected[0] and expected[3] > expected[1])


@pytest.mark.parametrize("mirrored", [False, True])
def test_mirroring_turns_the_columns_round_or_does_nothing(mirrored):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = cropping.mirror_image(tf.constant(image), tf.constant(mirrored))
    np.testing.assert_array_equal(found.numpy(), image[:, ::-1] if mirrored else image)


def test_pixels_are_found_where_the_boxes_say():
    """A white rectangle on black must fill the moved box, whatever was drawn; eagerly and inside tf.data."""
    image = np.zeros((50, 80, 3), np.uint8)
    image[10:30, 20:50] = 255
    box = tf.constant([[10 / 50, 20 / 80, 30 / 50, 50 / 80]])

    def example(seed):
        size = tf.constant([50, 80])
        mirrored, window, _, valid_size = cropping.draw_decisions(
            tf.stack([seed, 1]), size, _SIZE, config, "half_pixel"
        )
        part = cropping.mirror_image(preprocess.cut_out(tf.constant(image), window), mirrored)
        pixels = preprocess.resample_tf(part, valid_size, _SIZE, "half_pixel")
        return pixels, cropping.move_boxes(box, size, window, valid_size, _SIZE, mirrored)

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
