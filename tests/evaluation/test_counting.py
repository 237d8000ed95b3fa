"""COCO metrics: equal to pycocotools, and to numbers worked out by hand."""

import io
import json
from pathlib import Path

import little_detections
import numpy as np
import pytest
from rich.console import Console

from efficientdet.errors import UserError
from efficientdet.evaluation import counting
from efficientdet.structures import Category, Detections, Originals

_CATEGORIES = little_detections.CATEGORIES
_TRUTH, _FOUND = ("boxes", "labels", "is_crowd", "area"), ("boxes", "labels", "scores")
_PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "coco_val" / "instances.json"


def _originals(ids, truth):
    """Stacks truth, a list of (box, label, is_crowd, area) an image."""
    room = max([len(rows) for rows in truth] + [1])
    arrays = Originals(
        ids=np.array(ids, np.int64),
        scales=np.ones(len(ids), np.float32),
        sizes=np.full((len(ids), 2), 640, np.int32),
        boxes=np.zeros((len(ids), room, 4), np.float32),
        labels=np.full((len(ids), room), -1, np.int32),
        is_crowd=np.zeros((len(ids), room), bool),
        area=np.zeros((len(ids), room), np.float32),
        num_boxes=np.array([len(rows) for rows in truth], np.int32),
    )
    for row, boxes in enumerate(truth):
        for column, (box, label, is_crowd, area) in enumerate(boxes):
            arrays["boxes"][row, column] = box
            arrays["labels"][row, column] = label
            arrays["is_crowd"][row, column] = is_crowd
            arrays["area"][row, column] = area
    return arrays


def _detections(found):
    """Stacks detections, a list of (box, label, score) an image."""
    room = max([len(rows) for rows in found] + [1])
    arrays = Detections(
        boxes=np.zeros((len(found), room, 4), np.float32),
        labels=np.full((len(found), room), -1, np.int32),
        scores=np.zeros((len(found), room), np.float32),
        num_detections=np.array([len(rows) for rows in found], np.int32),
    )
    for row, boxes in enumerate(found):
        for column, (box, label, score) in enumerate(boxes):
            arrays["boxes"][row, column] = box
            arrays["labels"][row, column] = label
            arrays["scores"][row, column] = score
    return arrays


def _evaluate(truth, found, categories=_CATEGORIES):
    evaluator = counting.CocoEvaluator(categories)
    ids = list(range(1, len(truth) + 1))
    evaluator.add(_originals(ids, truth), _detections(found))
    return evaluator.result()


def _box(y, x, side, label=0, is_crowd=False):
    return ((y, x, y + side, x + side), label, is_crowd, side * side)


def _pycocotools(originals, detections, categories, counted=None):
    """Evaluates the same arrays with pycocotools."""
    rows = range(len(originals["ids"]))
    ids = originals["ids"].tolist()
    truth = [
        list(zip(*(originals[name][row, : originals["num_boxes"][row]] for name in _TRUTH), strict=True))
        for row in rows
    ]
    found = [
        list(zip(*(detections[name][row, : detections["num_detections"][row]] for name in _FOUND), strict=True))
        for row in rows
    ]
    document = little_detections.coco_document(ids, truth, categories)
    document["categories"] = [{"id": category.id, "name": category.name} for category in counted or categories]
    return little_detections.count(document, little_detections.coco_results(ids, found, categories))


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(6))
def test_all_numbers_equal_those_of_pycocotools(seed):
    """To the last bit, but for pycocotools' 1 - 2^-52 where a first detection has the precision 1."""
    truth, found = little_detections.difficult(seed)
    ids = [int(number) for number in np.random.default_rng(seed).permutation(1000)[: len(truth)]]
    ids[0] += 2**40  # image ids may need more than 32 bits
    originals, detections = _originals(ids, truth), _detections(found)
    stats, precision, recall = _pycocotools(originals, detections, _CATEGORIES)
    assert little_detections.twelve(precision, recall) == stats.tolist()
    precision = np.where(precision == 1 - 2**-52, 1, precision)
    evaluator = counting.CocoEvaluator(_CATEGORIES)
    evaluator.add(originals, detections)
    result = evaluator.result()
    assert list(result.metrics.values()) == little_detections.twelve(precision, recall)
    np.testing.assert_allclose(list(result.metrics.values()), stats, rtol=0, atol=2**-52)
    for category in _CATEGORIES:
        of_class = precision[:, :, sorted(c.id for c in _CATEGORIES).index(category.id), 0, 2]
        expected = {"AP": of_class[of_class > -1].mean(), "AP50": of_class[0][of_class[0] > -1].mean()}
        row = result.per_class[category.name]
        assert {name: row[name] for name in expected} == expected, category
    assert 0.02 < result.metrics["AP"] < 0.95


@pytest.mark.parametrize("seed", range(6))
def test_the_difficult_images_have_what_makes_them_difficult(seed):
    truth, found = little_detections.difficult(seed)
    boxes = [row for rows in truth for row in rows]
    areas = np.array([area for _, _, _, area in boxes])
    assert any(is_crowd for _, _, is_crowd, _ in boxes)
    assert all(((low <= areas) & (areas < high)).any() for low, high in ((0, 1), (1, 1024), (1025, 9216), (9217, 1e6)))
    assert {0, 1024, 9216} <= set(areas.tolist())
    assert min(len(rows) for rows in truth) == min(len(rows) for rows in found) == 0
    assert max(len({label for _, label, _ in rows}) == 1 and len(rows) for rows in found) > 100
    scores = [score for rows in found for _, _, score in rows]
    assert len(set(scores)) < len(scores)


def test_a_model_may_have_more_classes_than_the_dataset():
    """COCO's published checkpoints have 90 outputs for 80 classes: the numbers are those of the 80."""
    truth, found = little_detections.difficult(0)
    unused = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    outputs = tuple(Category(id=number, name=f"class {number}") for number in range(1, 91))
    classes = tuple(category for category in outputs if category.id not in unused)
    ids = list(range(1, len(truth) + 1))
    # The three classes of the images become 11, 13 and 90; every image has a sure detection of an unused one.
    labels = {0: 10, 1: 12, 2: 89}
    truth = [[(box, labels[label], *rest) for box, label, *rest in rows] for rows in truth]
    found = [[(box, labels[label], score) for box, label, score in rows] for rows in found]
    found = [[((9, 9, 90, 90), unused[number % 10] - 1, 1.0), *rows] for number, rows in enumerate(found)]
    originals, detections = _originals(ids, truth), _detections(found)
    evaluator = counting.CocoEvaluator(outputs, classes)
    evaluator.add(originals, detections)
    result = evaluator.result()
    stats, _, _ = _pycocotools(originals, detections, outputs, classes)
    np.testing.assert_allclose(list(result.metrics.values()), stats, rtol=0, atol=2**-52)
    assert list(result.per_class) == [category.name for category in classes]
    assert {row["category_id"] for row in evaluator.coco_results()} == {11, 13, 90}
    assert [name for name, row in result.per_class.items() if row["AP"] is not None] == [
        "class 11",
        "class 13",
        "class 90",
    ]


@pytest.mark.skipif(not _PHOTOGRAPHS.exists(), reason="needs the photographs' annotations")
def test_the_truth_of_photographs_as_detections_has_ap_1():
    dataset = json.loads(_PHOTOGRAPHS.read_text())
    categories = [Category(id=category["id"], name=category["name"]) for category in dataset["categories"]]
    labels = {category.id: label for label, category in enumerate(categories)}
    truth = {image["id"]: [] for image in dataset["images"]}
    for row in dataset["annotations"]:
        x, y, width, height = row["bbox"]
        box = (y, x, y + height, x + width)
        truth[row["image_id"]].append((box, labels[row["category_id"]], row["iscrowd"], row["area"]))
    found = [[(box, label, 1.0) for box, label, is_crowd, _ in rows if not is_crowd] for rows in truth.values()]
    evaluator = counting.CocoEvaluator(categories)
    evaluator.add(_originals(list(truth), list(truth.values())), _detections(found))
    result = evaluator.result()
    assert (result.num_images, result.num_boxes) == (60, 501)  # 507 annotations, 6 of them crowds
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARmax100"):
        assert result.metrics[name] == pytest.approx(1.0, rel=0, abs=1e-12), name


def test_what_is_not_detected_has_ap_0():
    result = _evaluate([[_box(10, 10, 50)], []], [[], []])
    assert result.metrics["AP"] == 0
    assert result.metrics["ARmax100"] == 0
    assert (result.num_images, result.num_boxes) == (2, 1)


def test_two_of_three_found_is_a_recall_of_two_thirds():
    """Precision is 1 up to a recall of 2/3 and 0 beyond: 67 of COCO's 101 recall levels."""
    truth = [[_box(0, 0, 50), _box(100, 100, 50), _box(200, 200, 50)]]
    found = [[(box, label, 0.9) for box, label, _, _ in truth[0][:2]]]
    result = _evaluate(truth, found)
    assert result.metrics["ARmax100"] == pytest.approx(2 / 3)
    assert result.metrics["AP"] == pytest.approx(67 / 101)
    assert result.metrics["ARmax1"] == pytest.approx(1 / 3)


def test_a_false_alarm_before_the_hit_halves_precision():
    truth = [[_box(0, 0, 50)]]
    found = [[((300, 300, 350, 350), 0, 0.9), ((0, 0, 50, 50), 0, 0.8)]]
    assert _evaluate(truth, found).metrics["AP"] == pytest.approx(0.5)


def test_a_detection_in_an_image_without_boxes_counts_as_false():
    truth = [[_box(0, 0, 50)], []]
    found = [[((0, 0, 50, 50), 0, 0.8)], [((0, 0, 50, 50), 0, 0.9)]]
    assert _evaluate(truth, found).metrics["AP"] == pytest.approx(0.5)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong():
    truth = [[_box(0, 0, 50), _box(200, 200, 200, is_crowd=True)]]
    found = [[((210, 210, 250, 250), 0, 0.9), ((0, 0, 50, 50), 0, 0.8)]]
    result = _evaluate(truth, found)
    assert result.metrics["AP"] == pytest.approx(1)
    assert result.num_boxes == 1


def test_what_cannot_be_measured_is_none():
    result = _evaluate([[_box(0, 0, 50)]], [[((0, 0, 50, 50), 0, 0.8)]])
    assert result.metrics["APs"] is None
    assert result.metrics["APm"] == pytest.approx(1)
    assert result.per_class["dog"] == {"AP": None, "AP50": None, "num_boxes": 0}
    assert list(result.per_class) == ["cat", "dog", "toothbrush"]
    nothing = _evaluate([[]], [[]])
    assert set(nothing.metrics.values()) == {None}


def test_rows_that_fill_a_batch_are_skipped():
    evaluator = counting.CocoEvaluator(_CATEGORIES)
    perfect = ((0, 0, 50, 50), 0, 0.8)
    evaluator.add(_originals([5, -1, -1], [[_box(0, 0, 50)]] * 3), _detections([[perfect], [], []]))
    result = evaluator.result()
    assert (result.num_images, result.num_boxes) == (1, 1)
    assert result.metrics["AP"] == pytest.approx(1)


def test_an_image_id_that_comes_twice_is_refused():
    evaluator = counting.CocoEvaluator(_CATEGORIES)
    evaluator.add(_originals([5], [[]]), _detections([[]]))
    with pytest.raises(UserError, match="`id` 5 belongs to two images"):
        evaluator.add(_originals([5], [[]]), _detections([[]]))


def test_a_label_without_a_category_is_refused():
    evaluator = counting.CocoEvaluator(_CATEGORIES)
    with pytest.raises(UserError, match="`labels` of image 5 has 3"):
        evaluator.add(_originals([5], [[_box(0, 0, 9, label=3)]]), _detections([[]]))


def test_an_evaluation_of_nothing_is_refused():
    with pytest.raises(UserError, match="at least one image"):
        counting.CocoEvaluator(_CATEGORIES).result()


def test_the_result_can_be_asked_twice_and_prints_nothing(capsys):
    truth, found = little_detections.difficult(0)
    evaluator = counting.CocoEvaluator(_CATEGORIES)
    evaluator.add(_originals(list(range(len(truth))), truth), _detections(found))
    before = evaluator.coco_results()
    assert evaluator.result() == evaluator.result()
    assert evaluator.coco_results() == before
    assert capsys.readouterr() == ("", "")


def test_classes_of_one_name_stay_apart():
    categories = (Category(id=1, name="cat"), Category(id=2, name="cat"))
    result = _evaluate([[_box(0, 0, 50, 0), _box(0, 0, 50, 1)]], [[]], categories)
    assert list(result.per_class) == ["cat", "cat (2)"]


def test_detections_are_written_as_coco_has_them():
    evaluator = counting.CocoEvaluator(_CATEGORIES)
    found = [[((10.123456, 20.5, 40.25, 60.987654), 1, 0.123456)]]
    evaluator.add(_originals([2**40], [[]]), _detections(found))
    y1, x1, y2, x2, score = np.array([10.123456, 20.5, 40.25, 60.987654, 0.123456], np.float32)
    expected = {"image_id": 2**40, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
    assert json.loads(json.dumps(evaluator.coco_results())) == [expected], "to the last digit"


def test_the_result_is_json_and_a_table():
    result = _evaluate([[_box(0, 0, 50)]], [[((0, 0, 50, 50), 0, 0.8)]])
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["metrics"]["APs"] is None
    assert list(values["metrics"]) == list(counting.METRICS)
    assert values["intervals"] == {"AP": [1.0, 1.0], "AP50": [1.0, 1.0]}
    console = Console(file=io.StringIO(), width=100)
    console.print(result.table())
    text = console.file.getvalue()
    for expected in ("AP50", "100.0", "100.0 to 100.0", "95% interval", "toothbrush", "1 images, 1 boxes", "-"):
        assert expected in text
