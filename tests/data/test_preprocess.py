"""The letterbox: sizes as the reference has them, the same pixels from TensorFlow and NumPy, and back."""

import io
import typing

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientdet.config import Resize
from efficientdet.data import preprocess
from efficientdet.media import images

METHODS = typing.get_args(Resize)
each_method = pytest.mark.parametrize("method", METHODS)


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        pytest.param((480, 640), (512, 512), (384, 512), id="landscape"),
        pytest.param((640, 480), (512, 512), (512, 384), id="portrait"),
        pytest.param((427, 300), (512, 512), (511, 359), id="float32 loses a pixel at a long side of 427"),
        pytest.param((426, 300), (896, 896), (895, 630), id="and at 426 for 896"),
        pytest.param((10, 2000), (64, 64), (1, 64), id="never without height"),
        pytest.param((100, 100), (200, 328), (200, 200), id="input that is not a square"),
    ],
)
def test_an_image_is_scaled_to_fit(size, target, expected):
    assert preprocess.fitted_size(size, target)[0] == expected
    in_graph, scale = preprocess.fitted_size_tf(tf.constant(size), tf.constant(target))
    assert tuple(in_graph.numpy()) == expected
    assert float(scale) == preprocess.fitted_size(size, target)[1]


def _assert_alike(first, second):
    """Only sums that fall on half a grey level may be rounded to either side."""
    difference = np.abs(np.asarray(first).astype(int) - np.asarray(second))
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.99


@each_method
@pytest.mark.parametrize(
    "size", [(480, 640), (427, 640), (33, 500), (64, 64), (300, 200), (41, 51), (127, 159), (128, 160), (1, 1)]
)
def test_numpy_and_tensorflow_letterbox_alike(size, method):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    boxed, valid, _ = preprocess.letterbox(image, (128, 160), method)
    new_size, _ = preprocess.fitted_size_tf(tf.constant(size), tf.constant((128, 160)))
    in_graph = preprocess.resample_tf(image, new_size, (128, 160), method)
    assert tuple(new_size.numpy()) == valid
    _assert_alike(in_graph, boxed)
    assert not boxed[valid[0] :].any()
    assert not boxed[:, valid[1] :].any()


each_resize = pytest.mark.parametrize(
    "new_size", [(20, 90), (37, 53), (36, 52), (18, 26), (111, 159), (211, 301), (5, 7), (1, 1)]
)


@each_resize
def test_half_pixel_is_tensorflows_bilinear_without_antialias(new_size):
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    expected = np.rint(tf.image.resize(image, new_size).numpy())
    _assert_alike(preprocess.resize(image, new_size, "half_pixel"), expected)


@each_resize
def test_legacy_is_the_bilinear_of_tensorflow_1(new_size):
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    expected = tf.compat.v1.image.resize(image, new_size, align_corners=False).numpy()
    operation = tf.raw_ops.ResizeBilinear(images=image[None], size=new_size, half_pixel_centers=False)[0].numpy()
    np.testing.assert_array_equal(expected, operation)
    _assert_alike(preprocess.resize(image, new_size, "legacy"), np.rint(expected))


@each_resize
def test_antialiased_is_pillows_bilinear(new_size):
    """Within a grey level: Pillow rounds between rows and columns too."""
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(new_size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(preprocess.resize(image, new_size, "antialiased").astype(int) - expected).max() <= 1


def test_where_each_method_looks():
    """Four pixels from 0 to 240 to two: the pixel pairs' middle, their first, and a triangle over all four."""
    ramp = np.repeat(np.array([[0, 80, 160, 240]], np.uint8)[..., None], 3, axis=2)
    found = {method: preprocess.resize(ramp, (1, 2), method)[0, :, 0].tolist() for method in METHODS}
    # Antialiased: weights 3/4, 3/4, 1/4 for the pixels 1/2, 1/2 and 3/2 from the centre, over 7/4.
    assert found == {"half_pixel": [40, 200], "legacy": [0, 160], "antialiased": [57, 183]}


@pytest.mark.parametrize("new_size", [(37, 53), (38, 54), (111, 159), (211, 301)])
def test_an_image_that_grows_needs_no_antialias(new_size):
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    _assert_alike(*(preprocess.resize(image, new_size, method) for method in ("antialiased", "half_pixel")))


@each_method
def test_an_image_that_fits_is_not_changed(method):
    image = np.random.default_rng(6).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(preprocess.resize(image, (30, 40), method), image)
    np.testing.assert_array_equal(preprocess.resample_tf(image, tf.constant([30, 40]), (30, 40), method), image)


@each_method
def test_resample_works_inside_tf_data(method):
    image = np.random.default_rng(3).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    arguments = (tf.constant([48, 64]), (64, 72), method)
    dataset = tf.data.Dataset.from_tensors(image).map(lambda x: preprocess.resample_tf(x, *arguments))
    np.testing.assert_array_equal(next(iter(dataset)).numpy(), preprocess.resample_tf(image, *arguments).numpy())


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_tensorflow_decodes_the_pixels_that_pillow_decodes(mode, subsampling):
    noise = np.random.default_rng(4).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    options = {} if mode == "L" else {"subsampling": subsampling}
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", quality=90, **options)
    decoded = preprocess.decode_tf(buffer.getvalue()).numpy()
    np.testing.assert_array_equal(decoded, images.read_image(buffer.getvalue(), "noise"))


def test_png_records_are_decoded_too():
    noise = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    np.testing.assert_array_equal(preprocess.decode_tf(buffer.getvalue()).numpy(), noise)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_size_is_read_from_the_file(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, kind)
    assert preprocess.image_size_tf(buffer.getvalue()).numpy().tolist() == [20, 30]
    in_graph = tf.data.Dataset.from_tensors(buffer.getvalue()).map(preprocess.image_size_tf)
    assert next(iter(in_graph)).numpy().tolist() == [20, 30]


def test_undo_letterbox_returns_to_the_image_and_clips():
    boxes = np.array([[[10.0, 20.0, 30.0, 40.0], [-5.0, -5.0, 500.0, 500.0]]], np.float32)
    undone = preprocess.undo_letterbox(boxes, np.array([0.5], np.float32), np.array([[100, 200]]))
    np.testing.assert_allclose(undone, [[[20, 40, 60, 80], [0, 0, 100, 200]]])
