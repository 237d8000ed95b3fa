"""Changes of pixel values: the identity where it is one, tables worked out by hand, and Pillow."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from efficientdet.data import synthetic
from efficientdet.data.augment import color


@pytest.fixture(scope="module")
def photo():
    return synthetic.draw_image(0, 3, (60, 80))[0]


def _everywhere(change, image):
    """Applies a change eagerly and inside tf.data, which must agree, and returns the pixels."""
    eager = change(tf.constant(image)).numpy()
    inside = next(iter(tf.data.Dataset.from_tensors(image).map(change).as_numpy_iterator()))
    np.testing.assert_array_equal(eager, inside)
    assert eager.dtype == np.uint8
    return eager


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: color.change_brightness(image, 1.0), id="brightness 1"),
        pytest.param(lambda image: color.change_contrast(image, 1.0), id="contrast 1"),
        pytest.param(lambda image: color.change_saturation(image, 1.0), id="saturation 1"),
        pytest.param(lambda image: color.sharpen(image, 1.0), id="sharpness 1"),
        pytest.param(lambda image: color.posterize(image, 8), id="all eight bits"),
        pytest.param(lambda image: color.solarize(image, 256), id="no value reaches the threshold"),
        pytest.param(lambda image: color.solarize_add(image, 0), id="nothing added"),
        pytest.param(
            lambda image: color.jitter(image, [1, 2], brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0),
            id="no jitter",
        ),
    ],
)
def test_nothing_changes_where_the_strength_says_so(change, photo):
    np.testing.assert_array_equal(_everywhere(change, photo), photo)


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        pytest.param(
            lambda i: color.change_brightness(i, 0.5), [10, 101, 255], [5, 50, 128], id="half; rounds to even"
        ),
        pytest.param(lambda i: color.change_brightness(i, 2.0), [10, 101, 200], [20, 202, 255], id="saturates"),
        pytest.param(lambda i: color.change_contrast(i, 0.0), [0, 100, 200], [100, 100, 100], id="the mean grey"),
        pytest.param(lambda i: color.change_contrast(i, 2.0), [50, 100, 150], [0, 100, 200], id="twice as far from it"),
        pytest.param(lambda i: color.posterize(i, 1), [127, 128, 255], [0, 128, 128], id="one bit"),
        pytest.param(lambda i: color.posterize(i, 4), [15, 31, 255], [0, 16, 240], id="four bits"),
        pytest.param(lambda i: color.solarize(i, 128), [127, 128, 255], [127, 127, 0], id="inverted from 128 on"),
        pytest.param(lambda i: color.solarize_add(i, 110), [0, 127, 128], [110, 237, 128], id="only below 128"),
        pytest.param(lambda i: color.solarize_add(i, 165), [10, 100, 200], [175, 255, 200], id="at most 255"),
        pytest.param(color.auto_contrast, [50, 100, 150], [0, 128, 255], id="stretched; 127.5 rounds to even"),
        pytest.param(color.auto_contrast, [7, 7, 7], [7, 7, 7], id="one value has nothing to stretch"),
        pytest.param(color.equalize, [7, 7, 7], [7, 7, 7], id="one value has nothing to even out"),
    ],
)
def test_values_change_as_worked_out_by_hand(change, before, after):
    """A grey row of three pixels."""
    image = np.repeat(np.array(before, np.uint8)[None, :, None], 3, axis=2)
    found = _everywhere(change, image)
    np.testing.assert_array_equal(found, np.repeat(np.array([after])[:, :, None], 3, axis=2))


def test_saturation_zero_is_luma():
    found = _everywhere(lambda image: color.change_saturation(image, 0.0), np.array([[[255, 0, 0]]], np.uint8))
    assert found.tolist() == [[[76, 76, 76]]]


def test_equalizing_is_pillows(photo):
    expected = np.asarray(ImageOps.equalize(Image.fromarray(photo)))
    np.testing.assert_array_equal(_everywhere(color.equalize, photo), expected)


def test_stretching_is_pillows_up_to_rounding(photo):
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(photo), preserve_tone=False)).astype(int)
    assert np.abs(_everywhere(color.auto_contrast, photo) - expected).max() <= 1


def test_smoothing_keeps_a_plain_image_and_sharpening_widens_an_edge():
    plain = np.full((5, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(_everywhere(lambda image: color.sharpen(image, 0.0), plain), plain)
    edge = plain.copy()
    edge[:, 3:] = 100
    found = _everywhere(lambda image: color.sharpen(image, 1.9), edge).astype(int)
    assert found[2, 2, 0] < 77
    assert found[2, 3, 0] > 100
    assert (found[:, [0, 5]] == edge[:, [0, 5]]).all()


@pytest.mark.parametrize("knob", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_is_drawn_from_the_seed_and_its_strength_bounds_it(knob, photo):
    off = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)

    def change(seed, strength):
        jittered = _everywhere(lambda image: color.jitter(image, [seed, 5], **off | {knob: strength}), photo)
        return np.abs(jittered.astype(int) - photo).mean()

    weak = [change(seed, 0.02) for seed in range(6)]
    strong = [change(seed, 0.4) for seed in range(6)]
    assert change(0, 0.4) == strong[0]
    assert len(set(strong)) == 6
    assert 0 < max(weak) < 5 < max(strong)
