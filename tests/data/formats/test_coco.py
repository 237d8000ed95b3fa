"""COCO annotations: ids, crowds, layouts, one class table."""

import json

import little_datasets
import numpy as np
import pytest

from efficientdet.data.formats import coco
from efficientdet.errors import UserError
from efficientdet.structures import Category


def test_ids_stay_and_labels_are_positions(tmp_path):
    source = coco.read(little_datasets.write_coco(tmp_path))
    assert source.categories == (Category(id=2, name="dog"), Category(id=90, name="cat"))
    assert list(source.splits) == ["train"]
    empty, full = source.splits["train"]
    assert (empty.id, full.id) == (3, 7)
    assert empty.boxes.shape == (0, 4)
    np.testing.assert_array_equal(full.boxes, [[5, 10, 35, 30], [0, 0, 40, 60]])
    np.testing.assert_array_equal(full.labels, [1, 0])
    np.testing.assert_array_equal(full.is_crowd, [False, True])
    np.testing.assert_array_equal(full.area, [123.5, 2000])
    assert full.declared_size == (40, 60)
    assert full.path == tmp_path / "images" / "a.jpg"


def test_the_layout_of_coco_itself_is_found(tmp_path):
    for split in ("train2017", "val2017"):
        little_datasets.draw(tmp_path / split / "a.jpg")
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(little_datasets.coco_document()))
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    source = coco.read(tmp_path)
    assert list(source.splits) == ["train", "val"]
    assert source.splits["val"][0].path.parent == tmp_path / "val2017"
    assert list(coco.read(tmp_path, splits=("val",)).splits) == ["val"]
    with pytest.raises(UserError, match=r"`splits` names `test`.* choose from train, val"):
        coco.read(tmp_path, splits=("test",))


def test_the_layout_of_roboflow_is_found(tmp_path):
    for split in ("train", "valid", "test"):
        little_datasets.draw(tmp_path / split / "a.jpg")
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(little_datasets.coco_document()))
    source = coco.read(tmp_path)
    assert set(source.splits) == {"train", "val", "test"}
    assert source.splits["val"][1].path == tmp_path / "valid" / "a.jpg"


def test_files_can_be_named(tmp_path):
    little_datasets.write_coco(tmp_path)
    (tmp_path / "instances.json").rename(tmp_path / "odd.json")
    source = coco.read(tmp_path, files=(("mine", "odd.json", "images"),))
    assert [example.path.is_file() for example in source.splits["mine"]] == [True, True]


def test_a_file_without_annotations_lists_images_to_test_on(tmp_path):
    little_datasets.write_coco(tmp_path)
    document = little_datasets.coco_document()
    del document["annotations"]
    (tmp_path / "image_info.json").write_text(json.dumps(document))
    files = (("train", "instances.json", "images"), ("test-dev", "image_info.json", "images"))
    source = coco.read(tmp_path, files=files)
    assert source.unannotated == {"test-dev"}
    assert [example.id for example in source.splits["test-dev"]] == [3, 7]
    assert [len(example.labels) for example in source.splits["test-dev"]] == [0, 0]
    (problem,) = source.problems
    assert (problem.split, problem.file_name) == ("test-dev", "image_info.json")
    with pytest.raises(UserError, match=r"image_info\.json` has no `annotations` list"):
        coco.read(tmp_path, files=(("val", "image_info.json", "images"),))


def test_splits_share_the_union_of_their_classes(tmp_path):
    little_datasets.write_coco(tmp_path)
    other = little_datasets.coco_document()
    other["categories"].append({"id": 5, "name": "bird"})
    (tmp_path / "other.json").write_text(json.dumps(other))
    files = (("train", "instances.json", "images"), ("val", "other.json", "images"))
    source = coco.read(tmp_path, files=files)
    assert [category.id for category in source.categories] == [2, 5, 90]
    assert source.splits["train"][1].labels.tolist() == source.splits["val"][1].labels.tolist() == [2, 0]
    other["categories"][0]["name"] = "lion"
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"other.json` calls class 90 `lion`, but .*instances.json calls it `cat`"):
        coco.read(tmp_path, files=files)


def test_annotations_of_unlisted_images_are_reported(tmp_path):
    document = little_datasets.coco_document()
    document["annotations"][0]["image_id"] = 99
    source = coco.read(little_datasets.write_coco(tmp_path, document))
    assert [(problem.file_name, problem.count) for problem in source.problems] == [("instances.json", 1)]


def test_a_dataset_one_folder_down_is_found(tmp_path):
    little_datasets.write_coco(tmp_path / "archive" / "animals")
    assert len(coco.read(tmp_path).splits["train"]) == 2
    little_datasets.write_coco(tmp_path / "archive" / "plants")
    with pytest.raises(UserError, match=r"several datasets: .*animals, .*plants"):
        coco.read(tmp_path)
