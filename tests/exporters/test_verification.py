"""Which detections are taken for the same."""

import numpy as np
import pytest

from efficientdet.exporters import verification
from efficientdet.exporters.verification import Agreement, Limits
from efficientdet.formats.calibration import Sample

_LIMITS = Limits(score=1e-3, box=0.5, share=0.01)
_A, _B, _C = (10, 10, 50, 50), (100, 100, 140, 160), (12, 12, 50, 50)


class _Fixed:
    """Answers the same to every image."""

    def __init__(self, *rows, logit=0.0):
        boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
        self._found = {
            "boxes": np.array(boxes, np.float32).reshape(1, -1, 4),
            "labels": np.array([labels], np.int32),
            "scores": np.array([[*scores, 0.0]], np.float32)[:, : max(len(rows), 1)],
            "num_detections": np.array([len(rows)], np.int32),
        }
        self._logit = logit

    def detect(self, images, valid_size):
        return self._found

    def predict(self, images, valid_size):
        return {"class_logits": np.full((1, 4, 2), self._logit)}


_SAMPLE = Sample(images=np.zeros((1, 8, 8, 3), np.uint8), valid_size=np.array([[8, 8]], np.int32))


def _compare(found, expected, has_raw=False):
    return verification.compare(found, expected, [_SAMPLE], _LIMITS, has_raw=has_raw)


@pytest.mark.parametrize(
    ("found", "apart", "extra"),
    [
        pytest.param([(_A, 0, 0.9), (_B, 1, 0.6)], 0, 0, id="the same"),
        pytest.param([(_B, 1, 0.6), (_A, 0, 0.9)], 0, 0, id="in another order"),
        pytest.param([((10.3, 10, 50, 50), 0, 0.9005), (_B, 1, 0.6)], 0, 0, id="within the limits"),
        pytest.param([((10.6, 10, 50, 50), 0, 0.9), (_B, 1, 0.6)], 1, 0, id="a side too far"),
        pytest.param([(_A, 0, 0.897), (_B, 1, 0.6)], 1, 0, id="a score too far"),
        pytest.param([(_A, 0, 0.9)], 1, 0, id="one missing"),
        pytest.param([], 2, 0, id="nothing"),
        pytest.param([(_A, 1, 0.9), (_B, 1, 0.6)], 1, 1, id="another class is missing there and left over here"),
        pytest.param([(_A, 0, 0.9), (_C, 0, 0.8), (_B, 1, 0.6)], 0, 1, id="one left over"),
        pytest.param([(_A, 0, 0.9), (_C, 0, 0.04), (_B, 1, 0.6)], 0, 0, id="one left over, below what counts"),
        pytest.param([(_A, 0, float("nan")), (_B, 1, 0.6)], 1, 0, id="not a number"),
    ],
)
def test_detections_are_paired_by_class_and_place(found, apart, extra):
    agreement = _compare(_Fixed(*found), _Fixed((_A, 0, 0.9), (_B, 1, 0.6)))
    assert (agreement.detections, agreement.apart, agreement.extra) == (2, apart, extra)
    assert (agreement.problem(_LIMITS) is None) == (apart + extra == 0)


def test_two_boxes_close_to_each_other_find_their_own():
    agreement = _compare(_Fixed((_C, 0, 0.8), (_A, 0, 0.9)), _Fixed((_A, 0, 0.9), (_C, 0, 0.8)))
    assert (agreement.apart, agreement.score_difference, agreement.box_difference) == (0, 0, 0)


def test_raw_scores_have_the_same_limit():
    rows = [(_A, 0, 0.9)]
    near, far = (_compare(_Fixed(*rows, logit=logit), _Fixed(*rows), has_raw=True) for logit in (1e-3, 1e-2))
    assert near.problem(_LIMITS) is None
    assert "scores of anchors differ by 2.5e-03" in far.problem(_LIMITS)
    nowhere = _compare(_Fixed(*rows, logit=np.nan), _Fixed(*rows), has_raw=True)
    assert "scores of anchors differ by nan" in nowhere.problem(_LIMITS)


def test_of_a_network_that_is_sure_of_nothing_the_better_half_counts():
    agreement = _compare(_Fixed(), _Fixed((_A, 0, 0.02), (_B, 0, 0.001)))
    assert (agreement.detections, agreement.apart) == (1, 1)


def test_a_small_share_may_be_apart():
    figures = {"images": 1, "score_difference": 0.0, "box_difference": 0.0, "raw_score_difference": None}
    assert Agreement(detections=100, apart=1, extra=0, **figures).problem(_LIMITS) is None
    problem = Agreement(detections=100, apart=2, extra=0, **figures).problem(_LIMITS)
    assert "of Keras's 100 detections, 2 are missing or differ by more than 0.001" in problem
    assert "has 2 that Keras does not have" in Agreement(detections=100, apart=0, extra=2, **figures).problem(_LIMITS)


def test_no_more_are_apart_than_there_are():
    """What the export has beside them is counted for itself: 345 of 173 tells nobody anything."""
    rows = [(_A, 1, 0.9), (_B, 2, 0.8), (_C, 3, 0.7)]
    agreement = _compare(_Fixed(*rows), _Fixed((_A, 0, 0.9)))
    assert (agreement.detections, agreement.apart, agreement.extra) == (1, 1, 3)
