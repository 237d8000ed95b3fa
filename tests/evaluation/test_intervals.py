"""Intervals of AP: each draw of images counts as pycocotools counts a dataset with these images in it."""

import little_detections
import numpy as np
import pytest

from efficientdet.evaluation import counting, intervals
from efficientdet.structures import Category

_CATEGORIES = little_detections.CATEGORIES


def _untied(found, seed):
    """Gives every detection a score of its own; between copies of an image pycocotools orders equal ones otherwise."""
    rng = np.random.default_rng(seed)
    scores = iter(rng.permutation(sum(map(len, found))) / sum(map(len, found)))
    return [[(box, label, float(next(scores))) for box, label, _ in rows] for rows in found]


def _evaluator(truth, found, ids=None, categories=_CATEGORIES):
    """Takes truth and detections as COCO's annotations and results."""
    ids = list(range(1, len(truth) + 1)) if ids is None else ids
    evaluator = counting.CocoEvaluator(categories)
    evaluator._sizes = dict.fromkeys(ids, (little_detections.SIDE,) * 2)
    evaluator._truth = little_detections.coco_document(ids, truth, categories)["annotations"]
    evaluator.add_coco_results(little_detections.coco_results(ids, found, categories))
    return evaluator


def _matches(evaluator):
    stats, _, ious = counting._count(evaluator._sizes, evaluator._counted, evaluator._truth, evaluator._detections)
    ids = sorted(evaluator._sizes)
    return stats, list(intervals._matched(ids, evaluator._truth, evaluator._detections, ious))


def _resampled(rows, counts):
    """Copies each image as often as it was drawn."""
    return [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_a_draw_of_each_image_once_counts_as_the_evaluation_itself(seed):
    evaluator = _evaluator(*little_detections.difficult(seed))
    stats, matches = _matches(evaluator)
    found = intervals.average_precisions(matches, np.ones((30, 1), np.int32))
    # The same numbers added in another order.
    np.testing.assert_allclose([found.mean(), found[0].item()], stats[:2], rtol=0, atol=1e-14)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(4))
def test_a_draw_counts_as_pycocotools_counts_a_dataset_of_its_images(seed):
    truth, found = little_detections.difficult(seed)
    found = _untied(found, seed)
    _, matches = _matches(_evaluator(truth, found))
    draws = intervals.draw_images(len(truth), 5)
    assert draws.max() > 2, "some images come several times"
    assert draws.min() == 0, "some never"
    values = intervals.average_precisions(matches, draws)
    for number, counts in enumerate(draws.T):
        ids = list(range(1, counts.sum() + 1))
        document = little_detections.coco_document(ids, _resampled(truth, counts), _CATEGORIES)
        results = little_detections.coco_results(ids, _resampled(found, counts), _CATEGORIES)
        stats, _, _ = little_detections.count(document, results)
        # pycocotools adds 2^-52 to what it divides by.
        np.testing.assert_allclose([values[:, number].mean(), values[0, number]], stats[:2], rtol=0, atol=1e-14)


def test_every_draw_has_as_many_images_as_there_are_and_is_the_same_each_time():
    draws = intervals.draw_images(50, 20)
    assert draws.shape == (50, 20)
    assert set(draws.sum(axis=0).tolist()) == {50}
    assert (draws == intervals.draw_images(50, 20)).all()
    assert len({tuple(column) for column in draws.T.tolist()}) == 20


def test_a_class_counts_in_the_draws_that_have_a_box_of_it():
    """The first image has a cat that is found, the second a dog that is not."""
    truth = [[(np.array([0, 0, 50, 50]), 0, False, 2500)], [(np.array([0, 0, 50, 50]), 1, False, 2500)]]
    _, matches = _matches(_evaluator(truth, [[(np.array([0, 0, 50, 50]), 0, 0.9)], []]))
    found = intervals.average_precisions(matches, np.array([[1, 2, 0, 0], [1, 0, 2, 0]], np.int32))
    assert found[0].tolist()[:3] == pytest.approx([0.5, 1.0, 0.0])
    assert np.isnan(found[:, 3]).all()


def test_the_result_has_the_interval_of_ap_and_the_evaluation_lies_in_it():
    result = _evaluator(*little_detections.difficult(1)).result()
    assert list(result.intervals) == ["AP", "AP50"]
    for name, (low, high) in result.intervals.items():
        assert 0 <= low < result.metrics[name] < high <= 1
    assert result.line().startswith(f"AP {100 * result.metrics['AP']:.1f} ({100 * result.intervals['AP'][0]:.1f} to ")


def test_what_has_no_box_to_find_has_no_interval():
    result = _evaluator([[]], [[(np.array([0, 0, 9, 9]), 0, 0.5)]]).result()
    assert result.intervals == {"AP": None, "AP50": None}
    assert result.line() == "AP -, AP50 -"


def test_the_middle_of_the_draws_is_mirrored_at_ap():
    """AP of few images is too high, and that of draws of them still higher."""
    truth, found = little_detections.difficult(3)
    evaluator = _evaluator(truth, found)
    _, matches = _matches(evaluator)
    drawn = intervals.average_precisions(matches, intervals.draw_images(len(truth), intervals.NUM_DRAWS)).mean(axis=0)
    result = evaluator.result()
    low, high = result.intervals["AP"]
    assert drawn.mean() > result.metrics["AP"]
    assert low == pytest.approx(2 * result.metrics["AP"] - np.percentile(drawn, 97.5))
    assert high == pytest.approx(2 * result.metrics["AP"] - np.percentile(drawn, 2.5))


def test_an_interval_stays_between_0_and_1_and_has_ap_in_it():
    assert intervals._interval(np.array([0.9, *np.linspace(0.5, 1, 100)])) == (pytest.approx(0.8125), 1.0)
    assert intervals._interval(np.array([0.1, 0.3, 0.3, 0.3])) == (0.0, 0.1)


def test_four_times_the_images_halve_the_interval():
    def width(num_images):
        rng = np.random.default_rng(0)
        one = (Category(id=1, name="cat"),)
        box = np.array([0, 0, 50, 50])
        truth = [[(box, 0, False, 2500)]] * num_images
        found = [[(box, 0, float(score))] if score > 0.4 else [] for score in rng.random(num_images)]
        low, high = _evaluator(truth, found, categories=one).result().intervals["AP"]
        return high - low

    # Of a share of hits: 1.96 * 2 * sqrt(0.6 * 0.4 / n); by chance of the draws a tenth more or less.
    assert width(64) == pytest.approx(0.24, rel=0.15)
    assert width(256) == pytest.approx(0.12, rel=0.15)


def test_the_order_of_the_images_does_not_matter():
    truth, found = little_detections.difficult(2)
    ids = list(range(1, len(truth) + 1))
    back = _evaluator(truth[::-1], found[::-1], ids[::-1]).result()
    assert back.intervals == _evaluator(truth, found, ids).result().intervals
