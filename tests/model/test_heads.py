"""Class head and box head: shared convolutions, own normalisations, anchors in order."""

import dataclasses

import keras
import numpy as np
import pytest

from efficientdet.model import heads
from efficientdet.model.heads import Head

_SIZES = [(4, 5), (2, 3), (1, 2), (1, 1), (1, 1)]


def _head(config, outputs=3, bias=0.0):
    keras.utils.set_random_seed(0)
    head = Head(config, 9, outputs, bias)
    head.build(None)
    return head


def _features(rng, channels=8):
    return [rng.normal(size=(1, *size, channels)).astype(np.float32) for size in _SIZES]


def test_the_class_bias_is_the_logit_of_one_percent():
    assert heads.class_bias() == pytest.approx(-4.59511985, rel=1e-8)
    assert 1 / (1 + np.exp(-heads.class_bias())) == pytest.approx(0.01)


def test_an_untrained_class_head_answers_the_prior_everywhere(tiny, rng):
    head = _head(tiny, bias=heads.class_bias())
    logits = np.array(head([np.zeros_like(x) for x in _features(rng)]))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), 0.01, rtol=1e-5)


def test_convolutions_are_shared_and_normalisations_are_not(tiny):
    head = _head(dataclasses.replace(tiny, head_repeats=2))
    kernels = [v for v in head.trainable_variables if v.path.endswith("kernel")]
    gammas = [v for v in head.trainable_variables if v.path.endswith("gamma")]
    assert len(kernels) == 2 * 3  # depthwise and pointwise of two repeats and the prediction
    assert len(gammas) == 2 * 5


def test_a_level_s_normalisation_moves_that_level_only(tiny, rng):
    head, features = _head(tiny), _features(rng)
    before = np.array(head(features))
    head.norms[0][1].beta.assign(np.ones(8))
    has_changed = np.any(np.array(head(features)) != before, axis=(0, 2))
    starts = np.cumsum([0] + [9 * h * w for h, w in _SIZES])
    assert has_changed[starts[1] : starts[2]].any()
    assert not np.delete(has_changed, np.arange(starts[1], starts[2])).any()


def test_predictions_come_in_the_order_of_the_anchors(tiny):
    # Channel a * outputs + o of place (y, x) of a level is output o of anchor a of that place.
    head = _head(dataclasses.replace(tiny, head_repeats=0), outputs=2)
    head.predict.depthwise.kernel.assign(np.zeros((3, 3, 8, 1)))
    head.predict.pointwise.bias.assign(np.arange(18.0))
    kernel = np.zeros((3, 3, 8, 1))
    kernel[1, 1, 0] = 1
    head.predict.depthwise.kernel.assign(kernel)
    head.predict.pointwise.kernel.assign(
        np.concatenate([np.full((1, 1, 1, 18), 100.0), np.zeros((1, 1, 7, 18))], axis=2)
    )
    features = []
    first = 0
    for height, width in _SIZES:
        places = first + np.arange(height * width, dtype=np.float32)
        first += height * width
        features.append(np.repeat(places.reshape(1, height, width, 1), 8, axis=-1))
    values = np.array(head(features))[0]
    expected = np.arange(first)[:, None, None] * 100 + np.arange(18).reshape(9, 2)
    np.testing.assert_array_equal(values, expected.reshape(-1, 2))


def test_kernels_start_scaled_by_fan_in(tiny):
    head = _head(dataclasses.replace(tiny, feature_channels=64))
    # Keras counts 9 * 64 inputs for a depthwise kernel, as google/automl's heads had it.
    assert np.std(head.convs[0].depthwise.kernel.numpy()) == pytest.approx(np.sqrt(1 / (9 * 64)), rel=0.1)
    assert np.std(head.convs[0].pointwise.kernel.numpy()) == pytest.approx(np.sqrt(1 / 64), rel=0.05)
    assert not np.any(head.convs[0].pointwise.bias.numpy())
