"""Detections of an image in the forms that others want."""

import json

import numpy as np
import pytest
from PIL import Image

from efficientdet.errors import UserError
from efficientdet.evaluation import results
from efficientdet.inference.detections import ImageDetections
from efficientdet.structures import Category

_CATEGORIES = (Category(id=5, name="cat"), Category(id=9, name="dog"))


def _detections(**changes):
    facts = {
        "size": (40, 60),
        "boxes": np.array([[2, 3, 22, 33.5], [10, 40, 40, 60]], np.float32),
        "labels": np.array([1, 0], np.int32),
        "scores": np.array([0.75, 0.5], np.float32),
        "categories": _CATEGORIES,
    }
    return ImageDetections(**facts | changes)


def _nothing():
    empty = np.zeros(0, np.int32)
    return _detections(boxes=np.zeros((0, 4), np.float32), labels=empty, scores=empty.astype(np.float32))


def test_json_has_names_ids_and_corners():
    found = _detections()
    assert json.loads(found.to_json()) == found.to_dict()
    assert "\n" not in found.to_json()
    assert found.to_dict() == {
        "height": 40,
        "width": 60,
        "detections": [
            {"class": "dog", "category_id": 9, "score": 0.75, "box": {"x1": 3.0, "y1": 2.0, "x2": 33.5, "y2": 22.0}},
            {"class": "cat", "category_id": 5, "score": 0.5, "box": {"x1": 40.0, "y1": 10.0, "x2": 60.0, "y2": 40.0}},
        ],
    }
    assert (len(found), found.names) == (2, ["dog", "cat"])


def test_rows_of_coco_are_read_back(tmp_path):
    rows = _detections().to_coco(17)
    assert rows[0] == {"image_id": 17, "category_id": 9, "bbox": [3.0, 2.0, 30.5, 20.0], "score": 0.75}
    results.write(tmp_path / "found.json", rows)
    assert results.read(tmp_path / "found.json", [17], [5, 9]) == rows


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_supervision_gets_the_same_boxes():
    pytest.importorskip("supervision")
    found = _detections().to_supervision()
    np.testing.assert_array_equal(found.xyxy, [[3, 2, 33.5, 22], [40, 10, 60, 40]])
    np.testing.assert_array_equal(found.class_id, [1, 0])
    np.testing.assert_array_equal(found.confidence, np.array([0.75, 0.5], np.float32))
    assert found.data["class_name"].tolist() == ["dog", "cat"]
    assert found.data["category_id"].tolist() == [9, 5]
    assert len(_nothing().to_supervision()) == 0


def test_boxes_are_drawn_on_the_image_they_were_found_in(tmp_path):
    image = np.full((40, 60, 3), 128, np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    drawn = np.asarray(_detections(image=image).draw())
    assert drawn.shape == image.shape
    assert (drawn[22 - 1, 10:30] != 128).any(axis=-1).all(), "the lower line of the first box"
    assert (image == 128).all()
    for photo in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(_detections(image=photo).draw(), drawn)
        np.testing.assert_array_equal(_detections().draw(photo), drawn)
    np.testing.assert_array_equal(_detections(image=image).draw(score_threshold=0.9), image)
    np.testing.assert_array_equal(_nothing().draw(image), image)


def test_an_image_that_cannot_be_drawn_on_is_one_line(tmp_path):
    with pytest.raises(UserError, match="`image` is missing"):
        _detections().draw()
    with pytest.raises(UserError, match="`image` is 60 x 40 px, but these detections belong to an image of 40 x 60 px"):
        _detections().draw(np.zeros((60, 40, 3), np.uint8))
    with pytest.raises(UserError, match=r"gone\.png` is missing"):
        _detections(image=tmp_path / "gone.png").draw()
