"""Losses: golden values of the reference implementations, identities, and what must not count."""

import numpy as np
import pytest
from keras import ops

from efficientdet.config import LossConfig
from efficientdet.model import heads
from efficientdet.training import losses
from efficientdet.training.distributed import engine

_CONFIG = LossConfig()


def _focal(logits, is_positive, alpha=0.25, gamma=1.5, **other):
    logits, is_positive = np.asarray(logits, np.float32), np.asarray(is_positive)
    return np.array(losses.focal(logits, is_positive, alpha=alpha, gamma=gamma, **other))


def _cross_entropy(x, target):
    p, target = 1 / (1 + np.exp(-np.asarray(x, np.float64))), np.asarray(target, np.float64)
    return -target * np.log(p) - (1 - target) * np.log(1 - p)


@pytest.mark.parametrize(
    ("logit", "negative", "positive"),
    [
        (-4.59511985013459, 7.537751890126098e-06, 1.1340664039970365),
        (-2, 0.003917861599184311, 0.4395482925028107),
        (0, 0.18379840190035263, 0.0612661339667842),
        (2, 1.318644877508431, 0.0013059538663947733),
    ],
)
def test_focal_gives_the_golden_values(logit, negative, positive):
    # Golden values in float64; float32's softplus of small numbers keeps 5 digits.
    np.testing.assert_allclose(_focal([logit, logit], [False, True]), [negative, positive], rtol=2e-5)


def test_focal_with_gamma_0_is_the_weighted_cross_entropy(rng):
    x, is_positive = rng.normal(0, 3, 200), rng.random(200) < 0.5
    expected = np.where(is_positive, 0.3, 0.7) * _cross_entropy(x, is_positive)
    np.testing.assert_allclose(_focal(x, is_positive, alpha=0.3, gamma=0.0), expected, rtol=1e-5, atol=1e-7)


def test_focal_is_the_cross_entropy_times_the_modulator(rng):
    x, is_positive = rng.normal(0, 3, 200), rng.random(200) < 0.5
    p = 1 / (1 + np.exp(-x))
    p_t = np.where(is_positive, p, 1 - p)
    expected = np.where(is_positive, 0.25, 0.75) * (1 - p_t) ** 1.5 * _cross_entropy(x, is_positive)
    np.testing.assert_allclose(_focal(x, is_positive), expected, rtol=2e-5, atol=1e-7)


def test_focal_is_symmetric(rng):
    x = rng.normal(0, 3, 50)
    positive, negative = _focal(x, np.ones(50, bool), alpha=0.5), _focal(-x, np.zeros(50, bool), alpha=0.5)
    np.testing.assert_allclose(positive, negative, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("is_positive", [False, True])
def test_extreme_logits_have_finite_losses_and_gradients(is_positive):
    logits = np.array([-1000, -200, -90, 90, 200, 1000], np.float32)

    def total(arrays):
        loss = losses.focal(arrays[0], np.full(6, is_positive), alpha=0.25, gamma=1.5)
        return ops.sum(loss), loss

    _, loss, (gradient,) = engine.value_and_gradients(total, engine.to_device([logits]))
    assert np.isfinite(np.array(loss)).all()
    assert np.isfinite(np.array(gradient)).all()
    wrong = np.array(loss)[:3] if is_positive else np.array(loss)[:2:-1]
    np.testing.assert_allclose(wrong, [w * (0.25 if is_positive else 0.75) for w in (1000, 200, 90)], rtol=1e-5)


@pytest.mark.parametrize(("is_positive", "target"), [(False, 0.05), (True, 0.95)])
def test_label_smoothing_moves_the_cross_entropy_but_not_the_modulator(is_positive, target, rng):
    x = rng.normal(0, 2, 20)
    smoothed = _focal(x, np.full(20, is_positive), label_smoothing=0.1)
    modulator = _focal(x, np.full(20, is_positive)) / _cross_entropy(x, is_positive)
    np.testing.assert_allclose(smoothed, modulator * _cross_entropy(x, target), rtol=2e-5)


@pytest.mark.parametrize(("error", "expected"), [(0.05, 0.00125), (0.1, 0.005), (0.3, 0.025), (1.0, 0.095), (0, 0)])
def test_huber_gives_the_golden_values(error, expected):
    np.testing.assert_allclose(losses.huber(np.array([error, -error], np.float32), 0.1), expected, rtol=1e-5)


def test_the_first_class_loss_of_d0_without_boxes_is_33_312():
    # 49,104 anchors x 90 classes x 7.5378e-6; the normaliser is 1 without a match.
    logits = np.full((1, 49104, 90), heads.class_bias(), np.float32)
    labels = np.full((1, 49104), -1, np.int32)
    assert float(losses.class_loss_sum(logits, labels, _CONFIG)) == pytest.approx(33.3120, rel=1e-4)


def _batch(rng, labels):
    """Makes predictions and targets of images with 4 anchors and 3 classes."""
    labels = np.asarray(labels, np.int32)
    deltas = np.where((labels != -1)[..., None], rng.normal(size=(*labels.shape, 4)), 0)
    raw = {
        "class_logits": rng.normal(size=(*labels.shape, 3)).astype(np.float32),
        "box_deltas": rng.normal(size=(*labels.shape, 4)).astype(np.float32),
    }
    return raw, {"labels": labels, "box_deltas": deltas.astype(np.float32)}


def _losses(raw, targets, **arguments):
    values = losses.detection_losses(raw, targets, _CONFIG, **arguments)
    return {name: float(value) for name, value in values.items()}


def test_losses_are_sums_over_the_number_of_matched_anchors_plus_1(rng):
    raw, targets = _batch(rng, [[-1, 0, -1, 2], [1, -1, -1, -1]])
    found = _losses(raw, targets)
    is_positive = targets["labels"][..., None] == np.arange(3)
    error = raw["box_deltas"] - targets["box_deltas"]
    huber = np.where(np.abs(error) <= 0.1, error**2 / 2, 0.1 * np.abs(error) - 0.005)
    class_loss = _focal(raw["class_logits"], is_positive).sum() / (3 + 1)
    box_loss = huber[targets["labels"] >= 0].sum() / (4 * (3 + 1))
    assert found["class_loss"] == pytest.approx(class_loss, rel=1e-5)
    assert found["box_loss"] == pytest.approx(box_loss, rel=1e-5)
    assert found["loss"] == pytest.approx(class_loss + 50 * box_loss, rel=1e-5)


def test_a_batch_without_boxes_has_a_class_loss_only(rng):
    found = _losses(*_batch(rng, [[-1] * 4] * 2))
    assert found["box_loss"] == 0
    assert found["loss"] == found["class_loss"] > 0


def test_an_ignored_anchor_has_no_class_loss_but_a_box_loss(rng):
    raw, targets = _batch(rng, [[0, -2, -1, -1]])
    before = _losses(raw, targets)
    raw["class_logits"][0, 1] += 10
    raw["box_deltas"][0, 1] += 10
    after = _losses(raw, targets)
    assert after["class_loss"] == before["class_loss"]
    assert after["box_loss"] > before["box_loss"]


def test_an_ignored_anchor_counts_as_matched(rng):
    raw, targets = _batch(rng, [[0, -2, -1, -1]])
    expected = float(losses.class_loss_sum(raw["class_logits"], targets["labels"], _CONFIG)) / (2 + 1)
    assert _losses(raw, targets)["class_loss"] == pytest.approx(expected, rel=1e-6)


def test_background_anchors_have_no_box_loss(rng):
    raw, targets = _batch(rng, [[0, -1, -1, -1]])
    before = _losses(raw, targets)["box_loss"]
    raw["box_deltas"][0, 1:] += 10
    assert _losses(raw, targets)["box_loss"] == before


def test_a_coordinate_whose_target_is_exactly_zero_does_not_count(rng):
    raw, targets = _batch(rng, [[0, -1, -1, -1]])
    targets["box_deltas"][0, 0, 2] = 0
    before = _losses(raw, targets)["box_loss"]
    raw["box_deltas"][0, 0, 2] += 10
    assert _losses(raw, targets)["box_loss"] == before


def test_rows_that_only_fill_the_batch_count_nowhere(rng):
    raw, targets = _batch(rng, [[-1, 0, -1, 2], [1, -1, -2, -1]])
    whole = _losses(raw, targets, is_real=np.array([True, False]))
    first = _losses({k: v[:1] for k, v in raw.items()}, {k: v[:1] for k, v in targets.items()})
    assert whole == pytest.approx(first, rel=1e-6)


def test_all_rows_being_real_changes_nothing(rng):
    raw, targets = _batch(rng, [[-1, 0, -1, 2], [1, -1, -2, -1]])
    assert _losses(raw, targets, is_real=np.array([True, True])) == _losses(raw, targets)
