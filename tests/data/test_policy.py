"""Whatever boxes come in, those that stay lie inside the image and have area."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from efficientdet.data import policy

_NUMBERS = st.floats(width=32) | st.floats(-10, 110, width=32)


@given(st.lists(st.tuples(*[_NUMBERS] * 4), max_size=6), st.integers(1, 100), st.integers(1, 100))
def test_what_stays_is_inside_and_everything_is_counted(rows, height, width):
    boxes = np.asarray(rows, np.float32).reshape(-1, 4)
    clean, kept, counts = policy.clean_boxes(boxes, height, width)
    y1, x1, y2, x2 = clean.T
    assert ((y1 >= 0) & (y1 < y2) & (y2 <= height)).all()
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= width)).all()
    assert len(clean) == len(kept) == len(boxes) - sum(n for kind, n in counts.items() if kind != policy.CLIPPED)


@given(st.lists(st.tuples(*[_NUMBERS] * 4), max_size=6))
def test_cleaning_clean_boxes_changes_nothing(rows):
    once, _, _ = policy.clean_boxes(np.asarray(rows, np.float32).reshape(-1, 4), 50, 70)
    twice, kept, counts = policy.clean_boxes(once, 50, 70)
    np.testing.assert_array_equal(once, twice)
    assert kept.tolist() == list(range(len(once)))
    assert not any(counts.values())
