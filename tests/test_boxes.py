"""Box geometry: identities over generated boxes, and tiny boxes worked out by hand."""

import hypothesis.extra.numpy as hypothesis_numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet import boxes

_SHAPE = (8, 4)
_UNIT = st.floats(0, 1, width=32)


@st.composite
def _real_boxes(draw, largest=512.0):
    """float32[8, 4], yxyx, sides of at least 1 px."""
    numbers = draw(hypothesis_numpy.arrays(np.float32, _SHAPE, elements=_UNIT))
    corner = numbers[:, :2] * np.float32(largest)
    return np.concatenate([corner, corner + 1 + numbers[:, 2:] * np.float32(largest)], axis=-1)


def _iou(a, b):
    return np.array(boxes.iou(np.asarray(a, np.float32), np.asarray(b, np.float32)))


@given(_real_boxes(), _real_boxes())
@settings(deadline=None, max_examples=50)
def test_iou_is_symmetric(a, b):
    np.testing.assert_array_equal(_iou(a, b), _iou(b, a))


@given(_real_boxes(), _real_boxes())
@settings(deadline=None, max_examples=50)
def test_iou_lies_between_0_and_1(a, b):
    ious = _iou(a[:, None], b[None])
    assert ious.shape == (8, 8)
    # Corners at 1000 px round areas by a few units in the last place.
    assert ((ious >= 0) & (ious <= 1 + 1e-6)).all()


@given(_real_boxes())
@settings(deadline=None, max_examples=50)
def test_iou_of_a_box_with_itself_is_1(a):
    np.testing.assert_allclose(_iou(a, a), 1, rtol=1e-6)


@given(_real_boxes(), _real_boxes(largest=64))
@settings(deadline=None, max_examples=50)
def test_decode_undoes_encode(truth, anchors):
    decoded = np.array(boxes.decode(boxes.encode(truth, anchors), anchors))
    # float32 carries 1e-7 of 1024 px; the size goes through a logarithm and back.
    np.testing.assert_allclose(decoded, truth, atol=2e-3)


def test_coco_boxes_are_corner_and_size():
    np.testing.assert_array_equal(boxes.to_xywh(np.array([[1.0, 2, 5, 12]])), [[2, 1, 10, 4]])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([0, 0, 10, 10], [0, 0, 10, 10], 1, id="the same box"),
        pytest.param([0, 0, 10, 10], [0, 5, 10, 15], 50 / 150, id="half of each"),
        pytest.param([0, 0, 10, 10], [5, 5, 15, 15], 25 / 175, id="a corner"),
        pytest.param([0, 0, 10, 10], [2, 2, 4, 6], 8 / 100, id="one inside the other"),
        pytest.param([0, 0, 10, 10], [0, 10, 10, 20], 0, id="a common edge is not an overlap"),
        pytest.param([0, 0, 10, 10], [20, 20, 30, 30], 0, id="disjoint in both axes"),
        pytest.param([0, 0, 10, 10], [0, 20, 10, 30], 0, id="disjoint in x only"),
        pytest.param([0, 0, 10, 10], [5, 5, 5, 5], 0, id="an empty box inside a real one"),
        pytest.param([5, 5, 5, 5], [5, 5, 5, 5], 0, id="two empty boxes: no division by zero"),
        pytest.param([0, 3, 10, 3], [0, 3, 10, 3], 0, id="two boxes without width"),
        pytest.param([-12, -12, 20, 20], [0, 0, 20, 20], 400 / 1024, id="an anchor that reaches out of the image"),
    ],
)
def test_iou_of(a, b, expected):
    np.testing.assert_allclose(_iou(a, b), expected, rtol=1e-6)


def test_area_is_height_times_width():
    np.testing.assert_array_equal(boxes.area(np.array([[1.0, 2, 4, 12], [3, 3, 3, 9]], np.float32)), [30, 0])


def test_a_margin_of_1_counts_pixels():
    a, b = np.array([0.0, 0, 9, 9], np.float32), np.array([9.0, 9, 20, 20], np.float32)
    assert float(boxes.intersection(a, b)) == 0
    assert float(boxes.intersection(a, b, margin=1.0)) == 1


def test_encode_gives_the_golden_value():
    # Golden values, in float64 from google/automl's formula; float32 holds 7 digits of it.
    anchor, truth = np.array([-12.0, -12, 20, 20], np.float32), np.array([2.0, 1, 30, 21], np.float32)
    expected = [0.375, 0.21875, -0.13353139262452263, -0.4700036292457356]
    np.testing.assert_allclose(boxes.encode(truth, anchor), expected, rtol=2e-6)


def test_encode_of_the_anchor_itself_is_zero():
    anchors = np.array([[0.0, 0, 32, 32], [-8, 4, 24, 12]], np.float32)
    np.testing.assert_array_equal(boxes.encode(anchors, anchors), np.zeros((2, 4)))


def test_an_empty_box_encodes_to_finite_numbers():
    assert np.isfinite(boxes.encode(np.array([5.0, 5, 5, 5], np.float32), np.array([0.0, 0, 32, 32], np.float32))).all()
