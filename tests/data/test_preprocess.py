"""The letterbox: sizes as the reference has them, the same pixels from TensorFlow and NumPy, and back."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientdet.data import images, preprocess


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        pytest.param((480, 640), (512, 512), (384, 512), id="landscape"),
        pytest.param((640, 480), (512, 512), (512, 384), id="portrait"),
        pytest.param((427, 300), (512, 512), (511, 359), id="float32 loses a pixel at a long side of 427"),
        pytest.param((426, 300), (896, 896), (895, 630), id="and at 426 for 896"),
        pytest.param((10, 2000), (64, 64), (1, 64), id="never without height"),
        pytest.param((100, 100), (200, 328), (200, 200), id="input that is no square"),
    ],
)
def test_a_picture_is_scaled_to_fit(size, target, expected):
    assert preprocess.fitted_size(size, target)[0] == expected
    in_graph, scale = preprocess.fitted_size_tf(tf.constant(size), tf.constant(target))
    assert tuple(in_graph.numpy()) == expected
    assert float(scale) == preprocess.fitted_size(size, target)[1]


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (33, 500), (64, 64), (300, 200), (1, 1)])
def test_numpy_and_tensorflow_letterbox_alike(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    boxed, valid, _ = preprocess.letterbox(image, (128, 160))
    new_size, _ = preprocess.fitted_size_tf(tf.constant(size), tf.constant((128, 160)))
    in_graph, in_graph_valid = preprocess.resample_tf(image, new_size, tf.zeros([2], tf.int32), (128, 160))
    assert tuple(in_graph_valid.numpy()) == valid
    difference = np.abs(in_graph.numpy().astype(int) - boxed)
    # Only sums that fall on half a grey level may be rounded to either side.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-2
    assert not boxed[valid[0] :].any()
    assert not boxed[:, valid[1] :].any()


def test_resize_is_tensorflows_bilinear_without_antialias():
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    expected = np.rint(tf.image.resize(image, (20, 90)).numpy())
    assert np.abs(preprocess.resize(image, (20, 90)) - expected).max() <= 1


def test_a_cut_is_the_part_of_the_whole_resized_picture():
    image = np.random.default_rng(2).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    whole = np.rint(tf.image.resize(image, (100, 140)).numpy())
    cut, valid = preprocess.resample_tf(image, tf.constant([100, 140]), tf.constant([30, 60]), (64, 64))
    assert tuple(valid.numpy()) == (64, 64)
    assert np.abs(cut.numpy() - whole[30:94, 60:124]).max() <= 1


def test_resample_works_inside_tf_data():
    image = np.random.default_rng(3).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    arguments = (tf.constant([48, 64]), tf.constant([0, 10]), (64, 64))
    dataset = tf.data.Dataset.from_tensors(image).map(lambda x: preprocess.resample_tf(x, *arguments)[0])
    np.testing.assert_array_equal(next(iter(dataset)).numpy(), preprocess.resample_tf(image, *arguments)[0].numpy())


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


def test_undo_letterbox_returns_to_the_picture_and_clips():
    boxes = np.array([[[10.0, 20.0, 30.0, 40.0], [-5.0, -5.0, 500.0, 500.0]]], np.float32)
    undone = preprocess.undo_letterbox(boxes, np.array([0.5], np.float32), np.array([[100, 200]]))
    np.testing.assert_allclose(undone, [[[20, 40, 60, 80], [0, 0, 100, 200]]])
