"""What is shown of a network's detections."""

import numpy as np
import pytest

from efficientdet.errors import UserError
from efficientdet.inference import selection
from efficientdet.structures import Category

_CATEGORIES = (Category(id=5, name="cat"), Category(id=9, name="dog"), Category(id=11, name="cow"))
_BOXES = np.array(
    [
        [0, 0, 10, 10],  # cat 0.9
        [0, 0, 10, 11],  # dog 0.8, the same object
        [0, 20, 10, 30],  # dog 0.7
        [0, 25, 10, 35],  # cow 0.6, shares a third of the union with the one before
        [0, 40, 10, 50],  # cat 0.3
    ],
    np.float32,
)
_LABELS = np.array([0, 1, 1, 2, 0])
_SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.3], np.float32)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        pytest.param({"score_threshold": 0.0}, [0, 1, 2, 3, 4], id="everything"),
        pytest.param({"score_threshold": 0.9}, [0], id="a score on the threshold is in, as float32"),
        pytest.param({"class_thresholds": {"dog": 0.75}}, [0, 1, 3, 4], id="a threshold of a class, by name"),
        pytest.param({"class_thresholds": {9: 0.75, "cat": 1.0}}, [1, 3], id="by id, and two of them"),
        pytest.param({"class_thresholds": {"cat": 0.1}, "score_threshold": 0.85}, [0, 4], id="lower than the others'"),
        pytest.param({"classes": ["dog"]}, [1, 2], id="a class"),
        pytest.param({"class_agnostic": True}, [0, 2, 3, 4], id="one box an object"),
        pytest.param({"class_agnostic": True, "classes": ["dog"]}, [1, 2], id="of what is wanted"),
        pytest.param({"class_agnostic": True, "class_thresholds": {"cat": 1}}, [1, 2, 3], id="of what is sure enough"),
        pytest.param({"max_detections": 2}, [0, 1], id="a limit"),
        pytest.param({"max_detections": 2, "class_agnostic": True}, [0, 2], id="a limit comes last"),
        pytest.param({"max_detections": 99}, [0, 1, 2, 3, 4], id="a limit that is not reached"),
    ],
)
def test_what_is_shown(options, rows):
    choice = selection.choose(_CATEGORIES, **{"score_threshold": 0.2} | options)
    np.testing.assert_array_equal(choice.rows(_BOXES, _LABELS, _SCORES), rows)
    back = slice(None, None, -1)
    shuffled = choice.rows(_BOXES[back], _LABELS[back], _SCORES[back])
    np.testing.assert_array_equal(4 - shuffled, rows)
    assert not len(choice.rows(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, np.float32)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"score_threshold": 2}, "`score_threshold` is 2"),
        ({"score_threshold": float("nan")}, "`score_threshold` is nan"),
        ({"class_thresholds": {"dog": -1}}, r"`class_thresholds\['dog'\]` is -1"),
        ({"class_thresholds": {"god": 0.5}}, r"`class_thresholds` has the unknown class 'god'; choose from cat \(5\)"),
        ({"classes": ["god"]}, "`classes` has the unknown class 'god'"),
        ({"max_detections": 0}, "`max_detections` is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_asked_for(options, said):
    with pytest.raises(UserError, match=said):
        selection.choose(_CATEGORIES, **{"score_threshold": 0.2} | options)
