"""Post-processing: equal to a plain NumPy soft-NMS that loops over classes, and the limits of top-k and padding."""

import dataclasses

import numpy as np
import pytest

from efficientdet.config import PostprocessConfig
from efficientdet.model import postprocess

_THRESHOLD = 0.001


def _reference(boxes, labels, scores, max_detections, sigma=0.5, threshold=_THRESHOLD):
    """Gaussian soft-NMS as google/automl does it: one image, class by class, areas with a pixel more, then merged."""
    rows = []
    for label in np.unique(labels):
        left = [(score, *box) for score, box in zip(scores[labels == label], boxes[labels == label], strict=True)]
        while left:
            best = max(range(len(left)), key=lambda i: left[i][0])
            score, y1, x1, y2, x2 = left.pop(best)
            rows.append((score, label, y1, x1, y2, x2))
            decayed = []
            for other, v1, u1, v2, u2 in left:
                height = max(0.0, min(y2, v2) - max(y1, v1) + 1)
                width = max(0.0, min(x2, u2) - max(x1, u1) + 1)
                union = (y2 - y1 + 1) * (x2 - x1 + 1) + (v2 - v1 + 1) * (u2 - u1 + 1) - height * width
                other = other * np.exp(-((height * width / union) ** 2) / sigma)
                if other >= threshold:
                    decayed.append((other, v1, u1, v2, u2))
            left = decayed
    return np.array(sorted(rows, reverse=True)[:max_detections]).reshape(-1, 6)


def _soft_nms(boxes, labels, scores, max_detections=100, sigma=0.5, threshold=_THRESHOLD):
    """Runs soft_nms on arrays of a batch; NumPy out."""
    found = postprocess.soft_nms(
        np.asarray(boxes, np.float32),
        np.asarray(labels, np.int32),
        np.asarray(scores, np.float32),
        max_detections=max_detections,
        sigma=sigma,
        score_threshold=threshold,
    )
    return {name: np.array(value) for name, value in found.items()}


def _candidates(seed, count, classes, batch=1):
    """Draws boxes that overlap a lot, scores without ties."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (batch, count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 50, (batch, count, 2))], axis=-1)
    scores = np.sort(rng.permuted(np.linspace(0.0005, 0.99, count * batch)).reshape(batch, count), axis=-1)[:, ::-1]
    return boxes.astype(np.float32), rng.integers(0, classes, (batch, count)), scores.astype(np.float32)


def test_soft_nms_gives_the_golden_value():
    # The second box of the class decays from .8 to .3167086 and falls behind the far one.
    boxes = [[[0, 0, 99, 99], [10, 10, 109, 109], [200, 200, 249, 249]]]
    found = _soft_nms(boxes, [[0, 0, 0]], [[0.9, 0.8, 0.7]], max_detections=4)
    np.testing.assert_allclose(found["scores"][0], [0.9, 0.7, 0.31670864564916884, 0], rtol=1e-6)
    np.testing.assert_array_equal(found["boxes"][0, :, 0], [0, 200, 10, 0])


@pytest.mark.parametrize(
    ("seed", "count", "classes", "max_detections"),
    [
        pytest.param(0, 60, 1, 100, id="one class, all boxes"),
        pytest.param(1, 80, 3, 100, id="three classes, all boxes"),
        pytest.param(2, 80, 7, 20, id="seven classes, the best twenty"),
        pytest.param(3, 40, 40, 100, id="hardly two boxes a class"),
        pytest.param(4, 1, 1, 5, id="one box"),
    ],
)
def test_soft_nms_equals_the_loop_over_classes(seed, count, classes, max_detections):
    boxes, labels, scores = _candidates(seed, count, classes)
    expected = _reference(boxes[0].astype(np.float64), labels[0], scores[0].astype(np.float64), max_detections)
    found = _soft_nms(boxes, labels, scores, max_detections)
    number = int(found["num_detections"][0])
    assert number == len(expected)
    # Scores of float32 after tens of multiplications against float64.
    np.testing.assert_allclose(found["scores"][0, :number], expected[:, 0], rtol=1e-4)
    np.testing.assert_array_equal(found["labels"][0, :number], expected[:, 1])
    np.testing.assert_allclose(found["boxes"][0, :number], expected[:, 2:])


def test_boxes_of_other_classes_are_never_suppressed():
    boxes = np.tile(np.array([0.0, 0, 50, 50]), (1, 4, 1))
    scores = [[0.9, 0.8, 0.7, 0.6]]
    found = _soft_nms(boxes, [[0, 1, 2, 3]], scores, max_detections=4)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-6)
    np.testing.assert_array_equal(found["labels"], [[0, 1, 2, 3]])


def test_the_same_box_of_the_same_class_decays_by_exp_minus_2():
    found = _soft_nms([[[0, 0, 50, 50]] * 2], [[3, 3]], [[0.9, 0.8]], max_detections=2)
    np.testing.assert_allclose(found["scores"][0], [0.9, 0.8 * np.exp(-2)], rtol=1e-6)


def test_the_first_box_of_a_class_is_kept_below_the_threshold():
    far = [[[0, 0, 9, 9], [100, 100, 109, 109], [200, 200, 209, 209]]]
    found = _soft_nms(far, [[0, 1, 1]], [[0.9, 0.0005, 0.0004]], max_detections=3)
    np.testing.assert_allclose(found["scores"][0], [0.9, 0.0005, 0], rtol=1e-6)
    assert int(found["num_detections"][0]) == 2


@pytest.mark.parametrize(("second", "count"), [(0.25, 2), (0.2499, 1)])
def test_a_decayed_score_at_the_threshold_is_kept(second, count):
    far = [[[0, 0, 9, 9], [100, 100, 109, 109]]]
    assert _soft_nms(far, [[0, 0]], [[0.9, second]], threshold=0.25)["num_detections"][0] == count


@pytest.mark.parametrize(("threshold", "count"), [(0.316, 2), (0.317, 1)])
def test_it_is_the_decayed_score_that_is_compared_with_the_threshold(threshold, count):
    # The golden boxes: the second decays from .8 to .31671.
    found = _soft_nms([[[0, 0, 99, 99], [10, 10, 109, 109]]], [[0, 0]], [[0.9, 0.8]], threshold=threshold)
    assert found["num_detections"].tolist() == [count]


def test_rows_after_the_last_detection_are_padding():
    found = _soft_nms([[[1, 2, 30, 40]]], [[5]], [[0.9]], max_detections=4)
    assert found["num_detections"].tolist() == [1]
    assert found["labels"].tolist() == [[5, -1, -1, -1]]
    assert found["scores"][0, 1:].tolist() == [0, 0, 0]
    assert not found["boxes"][0, 1:].any()


def test_images_of_a_batch_do_not_touch_each_other():
    boxes, labels, scores = _candidates(5, 50, 3, batch=3)
    together = _soft_nms(boxes, labels, scores, 30)
    for i in range(3):
        alone = _soft_nms(boxes[i : i + 1], labels[i : i + 1], scores[i : i + 1], 30)
        for name, value in alone.items():
            np.testing.assert_array_equal(together[name][i], value[0], err_msg=name)


def test_detections_come_best_first():
    boxes, labels, scores = _candidates(6, 80, 3)
    assert (np.diff(_soft_nms(boxes, labels, scores)["scores"]) <= 0).all()


_ANCHORS = np.array([[0, 0, 10, 10], [20, 20, 40, 60], [5, 5, 9, 9]], np.float32)


def _raw(logits, deltas=None):
    logits = np.asarray(logits, np.float32)
    deltas = np.zeros((*logits.shape[:2], 4)) if deltas is None else deltas
    return {"class_logits": logits, "box_deltas": np.asarray(deltas, np.float32)}


def test_the_best_logits_of_all_anchors_and_classes_are_candidates():
    boxes, labels, scores = postprocess.top_candidates(_raw([[[1, 4], [3, 0], [-1, 2]]]), _ANCHORS, 4)
    np.testing.assert_array_equal(labels, [[1, 0, 1, 0]])
    np.testing.assert_array_equal(boxes, [_ANCHORS[[0, 1, 2, 0]]])  # one anchor twice, with different classes
    np.testing.assert_allclose(scores[0], 1 / (1 + np.exp(-np.array([4.0, 3, 2, 1]))), rtol=1e-6)


def test_there_are_never_more_candidates_than_logits():
    boxes, _, _ = postprocess.top_candidates(_raw(np.zeros((2, 3, 2))), _ANCHORS, 5000)
    assert tuple(boxes.shape) == (2, 6, 4)


def test_detect_decodes_with_the_anchor_of_each_candidate():
    deltas = np.zeros((1, 3, 4))
    deltas[0, 1] = [0.5, 0, np.log(2), 0]
    config = dataclasses.replace(PostprocessConfig(), max_detections=2)
    found = postprocess.detect(_raw([[[-9], [3], [1]]], deltas), _ANCHORS, config)
    # Centre (30, 40) moves by half of the height 20, the height doubles.
    np.testing.assert_allclose(found["boxes"][0], [[20, 20, 60, 60], [5, 5, 9, 9]], rtol=1e-6)


@pytest.mark.parametrize("delta", [1e4, np.inf])
def test_infinite_sizes_stay_finite(delta):
    deltas = np.zeros((1, 3, 4), np.float32)
    deltas[..., 2:] = delta
    found = postprocess.detect(_raw([[[2], [1], [0]]], deltas), _ANCHORS, PostprocessConfig())
    assert np.isfinite(np.array(found["boxes"])).all()
    assert np.isfinite(np.array(found["scores"])).all()
    assert float(found["boxes"][0, 0, 2] - found["boxes"][0, 0, 0]) == pytest.approx(10 * 1000 / 16)


def test_detect_answers_in_float32_whatever_the_network_s_precision():
    raw = {name: value.astype(np.float16) for name, value in _raw([[[2], [1], [0]]]).items()}
    found = postprocess.detect(raw, _ANCHORS, PostprocessConfig())
    assert {np.array(found[name]).dtype for name in ("boxes", "scores")} == {np.dtype(np.float32)}
