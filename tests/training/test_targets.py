"""Target assignment: small tables by hand, and a plain NumPy form of google/automl's matcher."""

import numpy as np
import pytest

from efficientdet.config import ModelConfig
from efficientdet.model import anchors as anchor_boxes
from efficientdet.training import targets

# A row of three squares of 10 px, and one far away.
_ANCHORS = np.array([[0, 0, 10, 10], [0, 10, 10, 20], [0, 20, 10, 30], [50, 50, 60, 60]], np.float32)


def _assign(images, anchors=_ANCHORS, room=4, match_iou=0.5):
    """Assigns images, each a list of (box, label)."""
    boxes = np.zeros((len(images), room, 4), np.float32)
    labels = np.full((len(images), room), 7, np.int32)  # padding that must not be seen
    for row, image in enumerate(images):
        for number, (box, label) in enumerate(image):
            boxes[row, number], labels[row, number] = box, label
    truth = {"boxes": boxes, "labels": labels, "num_boxes": np.array([len(p) for p in images], np.int32)}
    return {name: np.array(value) for name, value in targets.assign(anchors, truth, match_iou).items()}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param([], [-1, -1, -1, -1], id="no box: all background"),
        pytest.param([([0, 10, 10, 20], 5)], [-1, 5, -1, -1], id="the anchor itself"),
        pytest.param([([0, 11, 9, 19], 5)], [-1, 5, -1, -1], id="IoU .72"),
        pytest.param([([0, 0, 10, 20], 5)], [5, 5, -1, -1], id="IoU .5 twice: at the threshold"),
        pytest.param([([0, 0, 10, 21], 5)], [5, -1, -1, -1], id="below the threshold: forced, the first of a tie"),
        pytest.param([([2, 22, 4, 24], 5)], [-1, -1, 5, -1], id="a small box is forced onto the best anchor"),
        pytest.param([([0, 0, 10, 10], 1), ([0, 20, 10, 30], 2)], [1, -1, 2, -1], id="two boxes, two anchors"),
        pytest.param([([0, 10, 10, 20], 1), ([0, 11, 10, 20], 2)], [-1, 1, -1, -1], id="both claim one: lowest wins"),
        pytest.param([([0, 11, 10, 20], 2), ([0, 10, 10, 20], 1)], [-1, 2, -1, -1], id="lowest wins, though worse"),
        pytest.param([([0, 10, 10, 20], 1), ([0, 10, 10, 20], 2)], [-1, 1, -1, -1], id="the same box twice"),
        pytest.param([([0, 0, 10, 20], 1), ([0, 8, 10, 18], 2)], [1, 2, -1, -1], id="forced overrides a match"),
        pytest.param([([80, 80, 90, 90], 3)], [3, -1, -1, -1], id="a box that touches no anchor takes the first"),
        pytest.param([([5, 5, 5, 5], 3)], [3, -1, -1, -1], id="an empty box takes the first"),
        pytest.param([([0, 10, 10, 20], -1)], [-1, -2, -1, -1], id="label -1 is ignored"),
        pytest.param([([0, 10, 10, 20], 0)], [-1, 0, -1, -1], id="class 0 is a class"),
    ],
)
def test_labels_of(image, expected):
    assert _assign([image])["labels"].tolist() == [expected]


def test_an_anchor_between_two_boxes_belongs_to_the_first():
    anchors = np.array([[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]], np.float32)
    left, right = [0, 0, 10, 10], [0, 6, 10, 16]  # each has an anchor of its own, and 7 / 13 of the middle one
    assert _assign([[(left, 1), (right, 2)], [(right, 2), (left, 1)]], anchors)["labels"].tolist() == [
        [1, 1, 2],
        [1, 2, 2],
    ]


def test_matched_anchors_get_the_encoded_box_and_others_exact_zeros():
    deltas = _assign([[([1, 12, 9, 22], 5)]])["box_deltas"][0]
    np.testing.assert_allclose(deltas[1], [0, 0.2, np.log(0.8), 0], atol=1e-6)
    assert not deltas[[0, 2, 3]].any()


def test_an_ignored_box_keeps_its_box_deltas():
    deltas = _assign([[([1, 12, 9, 22], -1)]])["box_deltas"][0]
    np.testing.assert_allclose(deltas[1], [0, 0.2, np.log(0.8), 0], atol=1e-6)


def test_an_empty_box_has_finite_deltas():
    assert np.isfinite(_assign([[([5, 5, 5, 5], 3)]])["box_deltas"]).all()


def test_images_of_a_batch_do_not_touch_each_other():
    images = [[], [([0, 10, 10, 20], 1)], [([0, 0, 10, 10], 2), ([0, 20, 10, 30], 3), ([51, 51, 60, 60], 4)]]
    together = _assign(images)
    for row, image in enumerate(images):
        for name, value in _assign([image]).items():
            np.testing.assert_array_equal(together[name][row], value[0])


@pytest.mark.parametrize(("match_iou", "expected"), [(0.4, [5, 5, -1, -1]), (0.6, [5, -1, -1, -1])])
def test_the_threshold_is_a_knob(match_iou, expected):
    assert _assign([[([0, 0, 10, 20], 5)]], match_iou=match_iou)["labels"].tolist() == [expected]


def test_types_are_small_integers_and_float32():
    found = _assign([[]])
    assert (found["labels"].dtype, found["box_deltas"].dtype) == (np.int32, np.float32)


def _reference(anchors, boxes, labels, match_iou):
    """Assigns one image in float32 with whole matrices, step by step as google/automl does it."""
    matched_labels, deltas = np.full(len(anchors), -1), np.zeros((len(anchors), 4))
    if not len(boxes):
        return matched_labels, deltas
    a, b = anchors[None], boxes[:, None]
    height = np.maximum(np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]), 0)
    width = np.maximum(np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]), 0)
    shared = height * width
    area_a, area_b = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    iou = np.divide(shared, area_b + area_a - shared, out=np.zeros_like(shared), where=shared > 0)
    match = np.where(iou.max(axis=0) >= match_iou, iou.argmax(axis=0), -1)
    for number in reversed(range(len(boxes))):  # the lowest number is written last
        match[iou[number].argmax()] = number
    for anchor in np.flatnonzero(match >= 0):
        y1, x1, y2, x2 = anchors[anchor].astype(np.float64)
        v1, u1, v2, u2 = boxes[match[anchor]].astype(np.float64)
        label = labels[match[anchor]]
        matched_labels[anchor] = label if label >= 0 else -2
        deltas[anchor] = [
            ((v1 + v2) - (y1 + y2)) / 2 / (y2 - y1),
            ((u1 + u2) - (x1 + x2)) / 2 / (x2 - x1),
            np.log((v2 - v1) / (y2 - y1)),
            np.log((u2 - u1) / (x2 - x1)),
        ]
    return matched_labels, deltas


@pytest.mark.parametrize("image_size", [pytest.param((512, 512), id="D0"), pytest.param((201, 130), id="odd")])
@pytest.mark.parametrize("seed", [0, 1])
def test_targets_equal_the_plain_form(image_size, seed):
    rng = np.random.default_rng(seed)
    anchors = anchor_boxes.anchor_boxes(ModelConfig(), image_size)
    images = []
    for count in (0, 1, 5, 30):
        corner = rng.uniform(0, 0.8, (count, 2)) * image_size
        # Whole pixels: boxes then meet anchors exactly, and ties come up.
        boxes = np.round(np.concatenate([corner, corner + rng.uniform(4, 0.4 * min(image_size), (count, 2))], axis=-1))
        images.append(list(zip(boxes.astype(np.float32), rng.integers(-1, 9, count), strict=True)))
    found = _assign(images, anchors, room=32)
    for row, image in enumerate(images):
        boxes = np.array([box for box, _ in image], np.float32).reshape(-1, 4)
        labels, deltas = _reference(anchors, boxes, [label for _, label in image], 0.5)
        np.testing.assert_array_equal(found["labels"][row], labels)
        # Centres of hundreds of px in float32 over anchors of 32 px.
        np.testing.assert_allclose(found["box_deltas"][row], deltas, atol=2e-5)
