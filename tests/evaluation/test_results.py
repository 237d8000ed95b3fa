"""Files of detections: written as COCO's server takes them, read without trust."""

import json

import pytest

from efficientdet.errors import UserError
from efficientdet.evaluation import results

_GOOD = {"image_id": 7, "category_id": 2, "bbox": [1.5, 2, 30, 0], "score": 0.25}


def _read(path):
    return results.read(path, image_ids={7, 2**40}, category_ids={2, 90})


def test_what_is_written_is_read(tmp_path):
    detections = [_GOOD, {**_GOOD, "image_id": 2**40, "category_id": 90}]
    results.write(tmp_path / "new" / "found.json", detections)
    assert _read(tmp_path / "new" / "found.json") == detections
    assert len((tmp_path / "new" / "found.json").read_text().splitlines()) == 4, "one detection a line"


def test_nothing_found_is_an_empty_list(tmp_path):
    results.write(tmp_path / "found.json", [])
    assert json.loads((tmp_path / "found.json").read_text()) == _read(tmp_path / "found.json") == []


def test_other_fields_are_left_out(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps([{**_GOOD, "id": "x", "segmentation": {}, "area": "nonsense"}]))
    assert _read(tmp_path / "found.json") == [_GOOD]


def _changed(**changes):
    return json.dumps([_GOOD, {**_GOOD, **changes}])


def _without(field):
    return json.dumps([{name: value for name, value in _GOOD.items() if name != field}])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("", "is not valid JSON", id="empty"),
        pytest.param('[{"image_id": 7,', "is not valid JSON", id="cut short"),
        pytest.param("[" * 100_000, "is not valid JSON", id="nested without end"),
        pytest.param("[1" + "0" * 5000 + "]", "is not valid JSON", id="a number of 5000 digits"),
        pytest.param(b"\xff\xfe[", "is not UTF-8 text", id="no text"),
        pytest.param('{"images": [], "annotations": []}', "is not a list.* looks like annotations", id="annotations"),
        pytest.param("3", "is not a list", id="a number"),
        pytest.param("[[7, 1, 2, 3, 4, 0.5, 1]]", "detection 0 is .*expected an object", id="rows of numbers"),
        pytest.param(_without("image_id"), "detection 0 has no `image_id`", id="no image_id"),
        pytest.param(_without("category_id"), "detection 0 has no `category_id`", id="no category_id"),
        pytest.param(_without("bbox"), "detection 0 has no `bbox`", id="no bbox (masks only)"),
        pytest.param(_without("score"), "detection 0 has no `score`", id="no score"),
        pytest.param(_changed(image_id=8), "detection 1 has the `image_id` 8, but .* no such image", id="image"),
        pytest.param(_changed(image_id="7"), '`image_id` "7"; expected an integer', id="image_id in quotes"),
        pytest.param(_changed(image_id=7.0), "`image_id` 7.0; expected an integer", id="image_id is not an integer"),
        pytest.param(_changed(image_id=True), "`image_id` true; expected an integer", id="image_id is true"),
        pytest.param(_changed(image_id=[7]), r"`image_id` \[7\]; expected an integer", id="image_id is a list"),
        pytest.param(_changed(category_id=1), "`category_id` 1, but the data have no such class", id="class"),
        pytest.param(_changed(bbox=[1, 2, 3]), r"`bbox` \[1, 2, 3\]; expected four", id="three numbers"),
        pytest.param(_changed(bbox="1234"), '`bbox` "1234"; expected four', id="bbox is text"),
        pytest.param(_changed(bbox=[1, 2, 3, None]), "expected four finite numbers", id="a null"),
        pytest.param(_changed(bbox=[1, 2, 3, False]), "expected four finite numbers", id="a false"),
        pytest.param(_changed(bbox=[1, float("nan"), 3, 4]), "expected four finite numbers", id="not a number"),
        pytest.param(_changed(bbox=[1, 2, float("inf"), 4]), "expected four finite numbers", id="endless"),
        pytest.param(_changed(bbox=[10**400, 2, 3, 4]), "expected four finite numbers", id="beyond the floats"),
        pytest.param(_changed(bbox=[1, 2, -3, 4]), "width and height must be at least 0", id="negative width"),
        pytest.param(_changed(bbox=[1, 2, 3, -1e-9]), "width and height must be at least 0", id="negative height"),
        pytest.param(_changed(bbox=[1, 2, 1e200, 1e200]), r"below 2\^31", id="its area overflows"),
        pytest.param(_changed(bbox=["x" * 1000] * 4), r"`bbox` \[\"xxx.{0,60}\.\.\.; expected four", id="long"),
        pytest.param(_changed(score=float("nan")), "`score` NaN; expected a finite number", id="score not a number"),
        pytest.param(_changed(score="0.5"), '`score` "0.5"; expected a finite number', id="score in quotes"),
    ],
)
def test_what_cannot_be_counted_is_one_line_that_names_the_file(tmp_path, content, words):
    path = tmp_path / "found.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        _read(path)
    assert "found.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"found\.json` cannot be read"):
        _read(tmp_path / "found.json")


def test_a_number_that_json_does_not_know_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(tmp_path / "found.json", [{**_GOOD, "score": float("nan")}])
    assert not list(tmp_path.iterdir())
