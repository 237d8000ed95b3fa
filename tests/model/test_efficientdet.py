"""The whole network: pixels in, RawPredictions out, at any size and under every precision."""

import dataclasses

import keras
import numpy as np
import pytest

from efficientdet.config import ModelConfig
from efficientdet.model import anchors
from efficientdet.model.efficientdet import EfficientDet, Normalize


@pytest.fixture(scope="module")
def model(tiny):
    """A network whose answers differ from anchor to anchor; an untrained one says the same everywhere, +- 0.001."""
    keras.utils.set_random_seed(0)
    model = EfficientDet(tiny)
    for head in (model.class_head, model.box_head):
        kernel = head.predict.pointwise.kernel
        kernel.assign(1000 * kernel.numpy())
    return model


def _images(rng, *size, batch=2):
    return rng.integers(0, 256, (batch, *size, 3), np.uint8)


def _normalize(images, valid_size=None, dtype="float32", **changes):
    layer = Normalize(ModelConfig(**changes), dtype=dtype)
    valid_size = None if valid_size is None else np.array(valid_size, np.int32)
    return np.array(keras.ops.cast(layer(images, valid_size=valid_size), "float32"))


def test_pixels_are_normalised_once():
    image = np.array([[[[0, 128, 255]]]], np.uint8)
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(_normalize(image).ravel(), expected, rtol=1e-5)


def test_padding_is_exactly_zero(rng):
    images = _images(rng, 6, 8)
    pixels = _normalize(images, [[4, 8], [6, 3]])
    assert not pixels[0, 4:].any()
    assert not pixels[1, :, 3:].any()


def test_advprop_s_padding_is_black(rng):
    images = _images(rng, 6, 8)
    options = {"pixel_mean": (0.5,) * 3, "pixel_std": (0.5,) * 3, "padding": "black"}
    pixels = _normalize(images, [[4, 8], [6, 3]], **options)
    np.testing.assert_allclose(pixels[0, 4:], -1, rtol=1e-6)
    np.testing.assert_allclose(pixels[1, :, :3], images[1, :, :3] / 127.5 - 1, atol=1e-6)


def test_nvidia_s_second_normalisation_covers_the_padding(rng):
    images = _images(rng, 6, 8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    once = _normalize(images, [[4, 8], [6, 3]])
    twice = _normalize(images, [[4, 8], [6, 3]], normalize_twice=True)
    np.testing.assert_allclose(twice, (once - mean) / std, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(twice[0, 4:], np.broadcast_to(-mean / std, (2, 8, 3)), rtol=1e-6)


def test_the_image_beside_the_padding_is_untouched(rng):
    images = _images(rng, 6, 8)
    pixels, full = _normalize(images, [[4, 8], [6, 3]]), _normalize(images)
    np.testing.assert_array_equal(pixels[0, :4], full[0, :4])
    np.testing.assert_array_equal(pixels[1, :, :3], full[1, :, :3])


def test_without_valid_size_the_image_is_full(model, rng):
    images = _images(rng, 64, 96)
    without = model({"images": images})
    whole = model({"images": images, "valid_size": np.array([[64, 96]] * 2, np.int32)})
    np.testing.assert_array_equal(without["class_logits"], whole["class_logits"])


def test_what_lies_in_the_padding_does_not_matter(model, rng):
    images, valid_size = _images(rng, 64, 96), np.array([[40, 96], [64, 50]], np.int32)
    other = images.copy()
    other[0, 40:], other[1, :, 50:] = 200, 17
    a, b = (model({"images": x, "valid_size": valid_size}) for x in (images, other))
    np.testing.assert_array_equal(a["class_logits"], b["class_logits"])


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_outputs_are_float32_and_close_under_every_precision(tiny, model, rng, precision):
    half = EfficientDet(tiny, precision=precision)
    half.set_weights(model.get_weights())
    images = _images(rng, 64, 96)
    expected, got = model({"images": images}), half({"images": images})
    for name, value in expected.items():
        assert keras.backend.standardize_dtype(got[name].dtype) == "float32"
        # Measured for bfloat16, which keeps 3 digits: 0.1 standard deviations after some 40 layers.
        difference = np.abs(np.array(got[name]) - np.array(value)).max()
        assert difference < 0.3 * np.std(np.array(value))
    assert {v.dtype for v in half.weights} == {"float32"}


@pytest.mark.parametrize("size", [(33, 47), (32, 32), (200, 328), (64, 96)])
def test_any_image_size_works(model, tiny, rng, size):
    raw = model({"images": _images(rng, *size, batch=1)})
    count = len(anchors.anchor_boxes(tiny, size))
    assert tuple(raw["class_logits"].shape) == (1, count, 3)
    assert tuple(raw["box_deltas"].shape) == (1, count, 4)


def test_images_of_a_batch_do_not_touch_each_other(model, rng):
    images = _images(rng, 64, 96)
    together, alone = model({"images": images}), model({"images": images[1:]})
    # The same sums in another order of threads.
    np.testing.assert_allclose(together["class_logits"][1], alone["class_logits"][0], atol=1e-5)


def test_an_untrained_network_finds_nothing(tiny, rng):
    logits = np.array(EfficientDet(tiny)({"images": _images(rng, 64, 96)})["class_logits"])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), 0.01, rtol=0.1)


def test_variables_do_not_depend_on_the_image_size(tiny, model):
    other = EfficientDet(dataclasses.replace(tiny, image_size=(128, 32)))
    assert [(v.path, v.shape) for v in other.weights] == [(v.path, v.shape) for v in model.weights]


def test_training_moves_every_batch_statistic(tiny, rng):
    model = EfficientDet(tiny)
    model({"images": _images(rng, 64, 96)}, training=True)
    means = [v for v in model.non_trainable_variables if v.path.endswith("moving_mean")]
    assert means
    assert [v.path for v in means if not np.any(v.numpy())] == []


@pytest.mark.parametrize("fusion", ["attention", "sum"])
def test_the_other_fusions_run(tiny, rng, fusion):
    model = EfficientDet(dataclasses.replace(tiny, fusion=fusion, max_level=8, activation="relu6"))
    raw = model({"images": _images(rng, 32, 32, batch=1)})
    assert np.isfinite(np.array(raw["class_logits"])).all()
