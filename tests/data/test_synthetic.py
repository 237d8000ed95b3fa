"""Generated images: the same again, boxes inside, every class, batches that start anywhere."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientdet.data import synthetic
from efficientdet.errors import UserError

_OPTIONS = {"batch_size": 3, "image_size": (40, 48), "max_boxes": 9, "num_classes": 6, "num_images": 7}


def _take(count, **options):
    return list(itertools.islice(synthetic.batches(**(_OPTIONS | options)), count))


def _assert_same(first, second):
    for left, right in zip(first, second, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


def test_the_same_seed_and_index_give_the_same_image():
    for left, right in zip(synthetic.draw_image(3, 5, (64, 96)), synthetic.draw_image(3, 5, (64, 96)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_another_seed_or_index_gives_another_image():
    image = synthetic.draw_image(3, 5, (64, 64))[0]
    assert (image != synthetic.draw_image(3, 6, (64, 64))[0]).any()
    assert (image != synthetic.draw_image(4, 5, (64, 64))[0]).any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    index=st.integers(0, 2**31),
    height=st.integers(32, 160),
    width=st.integers(32, 160),
    num_classes=st.integers(1, 6),
)
def test_boxes_lie_inside_and_labels_are_in_range(seed, index, height, width, num_classes):
    image, boxes, labels = synthetic.draw_image(seed, index, (height, width), num_classes)
    assert image.dtype == np.uint8
    assert image.shape == (height, width, 3)
    assert boxes.dtype == np.float32
    assert labels.dtype == np.int32
    assert boxes.shape == (len(labels), 4)
    assert 1 <= len(labels) <= synthetic.MAX_BOXES
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (height, width)).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    assert ((labels >= 0) & (labels < num_classes)).all()


def test_every_class_occurs_about_equally_often():
    labels = np.concatenate([synthetic.draw_image(0, index, (64, 64))[2] for index in range(150)])
    counts = np.bincount(labels, minlength=6)
    assert len(counts) == 6
    assert counts.min() > 0.5 * counts.mean()


def test_the_last_object_fills_its_box():
    """The last object lies over the others: with one colour of its own it reaches all four sides of its box."""
    rng = np.random.default_rng(0)
    for label in range(6):
        masks = synthetic._Masks(rng, label, (200, 200))
        y1, x1, y2, x2 = masks.box
        rows, columns = np.nonzero(masks.alpha > 0.02)
        top, left = masks.frame[0].start, masks.frame[1].start
        seen = (rows.min() + top, columns.min() + left, rows.max() + 1 + top, columns.max() + 1 + left)
        np.testing.assert_allclose(seen, (y1, x1, y2, x2), atol=1.0)


@pytest.mark.parametrize("start", [0, 1, 4, 11])
def test_batches_start_at_any_step(start):
    whole = _take(start + 3, seed=1)
    for expected, got in zip(whole[start:], _take(3, seed=1, start_step=start), strict=True):
        _assert_same(expected, got)


def test_a_pass_shows_every_image_once():
    ids = np.concatenate([originals["ids"] for _, originals in _take(7, seed=2)])
    for start in (0, 7, 14):
        assert sorted(ids[start : start + 7]) == list(range(7))
    assert ids[:7].tolist() != ids[7:14].tolist()


def test_a_batch_has_the_shapes_and_types_of_structures():
    batch, originals = _take(1, seed=0)[0]
    expected = {
        "images": ((3, 40, 48, 3), np.uint8),
        "valid_size": ((3, 2), np.int32),
        "boxes": ((3, 9, 4), np.float32),
        "labels": ((3, 9), np.int32),
        "num_boxes": ((3,), np.int32),
    }
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected
    expected = {
        "ids": ((3,), np.int64),
        "scales": ((3,), np.float32),
        "sizes": ((3, 2), np.int32),
        "boxes": ((3, 9, 4), np.float32),
        "labels": ((3, 9), np.int32),
        "is_crowd": ((3, 9), np.bool_),
        "area": ((3, 9), np.float32),
        "num_boxes": ((3,), np.int32),
    }
    assert {name: (value.shape, value.dtype) for name, value in originals.items()} == expected


def test_a_coco_folder_holds_what_was_drawn(tmp_path):
    synthetic.write_coco_folder(tmp_path, {"train": 4, "val": 2}, (64, 80), seed=5)
    found = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())
    assert [category["name"] for category in found["categories"]] == [c.name for c in synthetic.CATEGORIES]
    assert len(found["images"]) == 4
    assert len({(image["height"], image["width"]) for image in found["images"]}) > 1
    for image in found["images"]:
        with Image.open(tmp_path / "train" / image["file_name"]) as photo:
            assert photo.size == (image["width"], image["height"])
    for annotation in found["annotations"]:
        x, y, width, height = annotation["bbox"]
        image = found["images"][annotation["image_id"] - 1]
        assert 0 <= x <= x + width <= image["width"]
        assert 0 <= y <= y + height <= image["height"]
        assert annotation["category_id"] in range(1, 7)
    first = [(tmp_path / split / "000001.jpg").read_bytes() for split in ("train", "val")]
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (31, 64)}, "`image_size` is 31 x 64"),
        ({"num_classes": 7}, "`num_classes` is 7"),
        ({"max_boxes": 7}, "`max_boxes` is 7"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        _take(1, seed=0, **options)
