"""Training images decoded where and as large as they are needed: the same boxes, and the pixels of the exact path.

Not shrunk, every pixel is the exact one, but on the border of the window, where the colour of a JPEG (stored at half
the size) is interpolated without the neighbours beyond: by up to 12 grey levels in photographs, 25 in generated ones.
Shrunk, a pixel is nearly the mean of those it stands for; nearly, since a shrunk block drops its high frequencies
instead of averaging them: 3 grey levels in the mean over a photograph, more only at edges.
"""

import io

import little_datasets
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientdet.config import AugmentationConfig
from efficientdet.data import preprocess, synthetic
from efficientdet.data.augment import cropping

_SIZE = (96, 128)
_BORDER = 40  # grey levels; chroma may be off by a quarter of the step between two neighbours


def _encode(image, mode="RGB", kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind, **{"quality": 92} | options)
    return tf.constant(buffer.getvalue())


def _scene(size):
    """A generated image: edges, textures and noise."""
    height, width = size
    image, _, _ = synthetic.draw_image(0, 3, (max(height, 32), max(width, 32)))
    return image[:height, :width]


def _both(encoded, window, shrink=1):
    window, shrink = tf.constant(window), tf.constant(shrink)
    return tuple(
        preprocess.decode_window_tf(encoded, window, shrink, decode).numpy().astype(int) for decode in ("fast", "exact")
    )


def _assert_equal_but_on_the_border(fast, exact):
    assert fast.shape == exact.shape
    difference = np.abs(fast - exact)
    assert difference.max(initial=0) <= _BORDER
    assert not difference[1:-1, 1:-1].any()


_WINDOWS = {
    "all": lambda h, w: (0, 0, h, w),
    "upper left": lambda h, w: (0, 0, h // 2 + 1, w // 3 + 1),
    "upper right": lambda h, w: (0, w - w // 3 - 1, h // 2 + 1, w // 3 + 1),
    "lower left": lambda h, w: (h - h // 3 - 1, 0, h // 3 + 1, w // 2 + 1),
    "lower right": lambda h, w: (h - h // 3 - 1, w - w // 2 - 1, h // 3 + 1, w // 2 + 1),
    "middle": lambda h, w: (h // 4, w // 5, h // 2 + 1, w // 2 + 1),
    "last pixel": lambda h, w: (h - 1, w - 1, 1, 1),
}


@pytest.mark.parametrize("place", _WINDOWS)
@pytest.mark.parametrize("size", [(121, 167), (64, 48), (17, 33), (9, 7), (1, 1)])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"subsampling": 2, "progressive": True}])
def test_a_window_has_the_pixels_of_the_whole_image(size, place, options):
    window = _WINDOWS[place](*size)
    _assert_equal_but_on_the_border(*_both(_encode(_scene(size), **options), window))


@pytest.mark.parametrize("place", _WINDOWS)
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_window_of_a_grey_or_a_print_image_too(mode, place):
    window = _WINDOWS[place](75, 91)
    _assert_equal_but_on_the_border(*_both(_encode(_scene((75, 91)), mode), window))


@pytest.mark.parametrize("shrink", [1, 2, 8])
def test_what_is_no_jpeg_is_decoded_whole(shrink):
    image = _scene((80, 96))
    fast, exact = _both(_encode(image, kind="PNG"), (16, 8, 32, 64), shrink)
    np.testing.assert_array_equal(fast, image[16:48, 8:72])
    np.testing.assert_array_equal(exact, fast)


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(125, 171), (128, 160)])
def test_a_shrunk_window_has_the_means_of_its_pixels(size, mode, shrink):
    height, width = (side // shrink * shrink for side in size)
    for window in ((0, 0, height, width), (height // 2 // shrink * shrink, 2 * shrink, 4 * shrink, 6 * shrink)):
        fast, exact = _both(_encode(_scene(size), mode), window, shrink)
        means = exact.reshape(window[2] // shrink, shrink, window[3] // shrink, shrink, 3).mean(axis=(1, 3))
        assert fast.shape == means.shape
        assert np.abs(fast - means).mean() <= 3
        assert np.abs((fast - means).mean()) <= 1, "neither darker nor lighter"


def _example(encoded, seed, resize, decode, boxes):
    labels = tf.range(len(boxes))
    config = AugmentationConfig()
    return cropping.fill((encoded, boxes, labels), tf.convert_to_tensor(seed), _SIZE, resize, config, decode)


def _assert_alike(encoded, seed, resize):
    """Compares an example of both paths; the boxes are the same to the bit."""
    boxes = tf.constant(np.sort(np.random.default_rng(seed).uniform(0, 1, (6, 2, 2)), axis=1), tf.float32)
    boxes = tf.reshape(boxes, [-1, 4])
    fast, exact = (_example(encoded, seed, resize, decode, boxes) for decode in ("fast", "exact"))
    for value, expected in zip(fast[1:], exact[1:], strict=True):
        np.testing.assert_array_equal(value.numpy(), expected.numpy())
    size = preprocess.image_size_tf(encoded)
    _, _, shrink, valid = cropping.draw_decisions(tf.constant(seed), size, _SIZE, AugmentationConfig(), resize)
    fast, exact = (example[0].numpy().astype(int) for example in (fast, exact))
    difference = np.abs(fast - exact)[: int(valid[0]), : int(valid[1])]
    if int(shrink) == 1:
        assert difference.max() <= _BORDER
        # A column or row of the window is as many of the example as the image is enlarged.
        edge = 1 + int(np.ceil(2 * max(_SIZE[side] / int(size[side]) for side in (0, 1))))
        assert not difference[edge:-edge, edge:-edge].any()
    else:
        # Bilinear resampling skips pixels that shrinking means over; antialiased the two agree.
        assert difference.mean() <= (8 if resize == "antialiased" else 32)
    assert abs((fast - exact).mean()) <= 2
    return int(shrink)


@pytest.mark.parametrize("resize", ["half_pixel", "antialiased"])
@pytest.mark.parametrize("size", [(333, 415), (130, 97), (60, 200), (5, 3)])
def test_an_example_is_that_of_the_exact_path(size, resize):
    shrinks = {_assert_alike(_encode(_scene(size)), [seed, 1], resize) for seed in range(12)}
    assert size != (333, 415) or len(shrinks) > 1, "some are shrunk"


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["half_pixel", "legacy", "antialiased"])
def test_examples_of_photographs_are_those_of_the_exact_path(resize):
    folders = [little_datasets.SHARED / "coco_train" / "images", little_datasets.SHARED / "photos"]
    paths = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.jpg"))[:20]]
    if not paths:
        pytest.skip(f"no photographs in {little_datasets.SHARED}")
    shrinks = set()
    for number, path in enumerate(paths):
        encoded = tf.constant(path.read_bytes())
        shrinks |= {_assert_alike(encoded, [seed, number], resize) for seed in range(4)}
    assert len(shrinks) > 2


def test_the_fast_path_works_inside_tf_data():
    encoded = _encode(_scene((333, 415)))
    boxes = tf.constant([[0.1, 0.2, 0.7, 0.9]])
    seeds = tf.data.Dataset.range(6).map(lambda seed: tf.stack([tf.cast(seed, tf.int32), 1]))
    inside = seeds.map(lambda seed: _example(encoded, seed, "half_pixel", "fast", boxes))
    for seed, found in enumerate(inside):
        expected = _example(encoded, [seed, 1], "half_pixel", "fast", boxes)
        np.testing.assert_array_equal(found[0], expected[0])
        # Compiled, products and sums may be fused.
        np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
