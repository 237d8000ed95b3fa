"""Post-processing on the host: picks what the graph picks, with the same scores to rounding, however far it looks."""

import dataclasses

import numpy as np
import pytest

from efficientdet.config import PostprocessConfig
from efficientdet.kernels import host_postprocess
from efficientdet.model import postprocess

_CONFIG = PostprocessConfig()


def _candidates(seed, count, classes, side, batch=2, power=1.0):
    """Draws candidates on 500 px, best first; a larger side overlaps more, a larger power leaves fewer good ones."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 480, (batch, count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, side, (batch, count, 2))], axis=-1).astype(np.float32)
    scores = -np.sort(-(rng.uniform(0, 1, (batch, count)) ** power).astype(np.float32))
    return boxes, rng.integers(0, classes, (batch, count)).astype(np.int32), scores


def _in_graph(boxes, labels, scores, config):
    return postprocess.soft_nms(
        boxes,
        labels,
        scores,
        max_detections=config.max_detections,
        sigma=config.nms_sigma,
        score_threshold=config.score_threshold,
    )


def _assert_same(found, expected):
    np.testing.assert_array_equal(found["num_detections"], expected["num_detections"])
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    # A score is a product of up to a hundred factors of float32.
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=2e-5)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], rtol=1e-6, atol=2e-4)


@pytest.mark.parametrize(
    ("count", "classes", "side", "power"),
    [
        pytest.param(5000, 80, 60, 1, id="spread: hardly anything decays, the first window is enough"),
        pytest.param(5000, 3, 200, 6, id="crowded: everything decays, windows grow"),
        pytest.param(5000, 1, 400, 1, id="one class, almost one place: all 5,000 are looked at"),
        pytest.param(2000, 90, 100, 30, id="few good ones, most below the threshold"),
        pytest.param(40, 40, 100, 1, id="fewer than wanted"),
        pytest.param(1, 1, 50, 1, id="one"),
    ],
)
def test_it_picks_what_the_graph_picks(count, classes, side, power):
    candidates = _candidates(0, count, classes, side, power=power)
    _assert_same(host_postprocess.soft_nms(*candidates, _CONFIG), _in_graph(*candidates, _CONFIG))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_it_follows_the_limits_of_the_config(threshold, sigma):
    config = dataclasses.replace(_CONFIG, score_threshold=threshold, nms_sigma=sigma, max_detections=30)
    candidates = _candidates(1, 600, 5, 150)
    _assert_same(host_postprocess.soft_nms(*candidates, config), _in_graph(*candidates, config))


def test_the_first_box_of_a_class_is_kept_below_the_threshold():
    boxes = np.array([[[0, 0, 9, 9], [100, 100, 109, 109], [200, 200, 209, 209]]], np.float32)
    labels, scores = np.array([[0, 1, 1]]), np.array([[0.9, 0.0005, 0.0004]], np.float32)
    found = host_postprocess.soft_nms(boxes, labels, scores, _CONFIG)
    assert found["num_detections"].tolist() == [2]
    _assert_same(found, _in_graph(boxes, labels.astype(np.int32), scores, _CONFIG))


def test_boxes_at_the_same_place_with_the_same_score_are_picked_in_their_order():
    boxes = np.tile(np.array([0, 0, 50, 50], np.float32), (1, 9, 1))
    labels, scores = np.array([[2, 1, 0] * 3], np.int32), np.full((1, 9), 0.5, np.float32)
    found = host_postprocess.soft_nms(boxes, labels, scores, _CONFIG)
    assert found["labels"][0, :3].tolist() == [2, 1, 0]
    _assert_same(found, _in_graph(boxes, labels, scores, _CONFIG))


@pytest.mark.parametrize(
    ("num_anchors", "num_classes", "spread"),
    [
        pytest.param(9000, 90, 1.0, id="many good logits"),
        pytest.param(9000, 90, 0.0, id="all equal, as an untrained network says"),
        pytest.param(300, 7, 1.0, id="fewer logits than candidates"),
        pytest.param(5200, 1, 3.0, id="one class"),
        pytest.param(6000, 20, 60.0, id="scores of 0 and 1"),
    ],
)
def test_it_detects_what_the_graph_detects(rng, num_anchors, num_classes, spread):
    corner = rng.uniform(0, 480, (num_anchors, 2))
    anchors = np.concatenate([corner, corner + rng.uniform(8, 90, (num_anchors, 2))], axis=1).astype(np.float32)
    logits = (rng.normal(0, spread, (2, num_anchors, num_classes)) - 4).astype(np.float32)
    deltas = rng.normal(0, 0.4, (2, num_anchors, 4)).astype(np.float32)
    found = host_postprocess.detect(logits, deltas, logits.max(axis=-1), anchors, _CONFIG)
    expected = postprocess.detect({"class_logits": logits, "box_deltas": deltas}, anchors, _CONFIG)
    _assert_same(found, expected)


def test_infinite_sizes_stay_finite():
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    deltas = np.array([[[0, 0, np.inf, 1e4]]], np.float32)
    found = host_postprocess.detect(np.ones((1, 1, 1), np.float32), deltas, np.ones((1, 1)), anchors, _CONFIG)
    assert found["boxes"][0, 0].tolist() == pytest.approx([-307.5, -307.5, 317.5, 317.5])
