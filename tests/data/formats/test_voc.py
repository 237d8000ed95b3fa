"""VOC annotations: split files, classes, difficult objects."""

import little_datasets
import numpy as np
import pytest

from efficientdet.data.formats import voc
from efficientdet.errors import UserError


def test_splits_classes_and_corners_are_read_as_they_stand(tmp_path):
    source = voc.read(little_datasets.write_voc(tmp_path))
    assert [(category.id, category.name) for category in source.categories] == [(1, "cat"), (2, "dog")]
    assert list(source.splits) == ["train", "val"]
    (first,), (second,) = source.splits.values()
    np.testing.assert_array_equal(first.boxes, [[5, 10, 35, 30], [2, 1, 4, 3]])
    np.testing.assert_array_equal(first.labels, [0, 1])
    assert first.declared_size == (40, 60)
    assert (first.id, second.id) == (1, 2)


def test_difficult_objects_can_be_dropped_and_are_reported(tmp_path):
    source = voc.read(little_datasets.write_voc(tmp_path), drop_difficult=True)
    assert source.splits["train"][0].labels.tolist() == [0]
    assert [(p.file_name, p.split, p.count) for p in source.problems] == [("a.jpg", "train", 1)]


def test_trainval_is_train_where_there_is_no_train(tmp_path):
    little_datasets.write_voc(tmp_path)
    for name in ("train", "val"):
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").unlink()
    assert [len(examples) for examples in voc.read(tmp_path).splits.values()] == [2]
    assert list(voc.read(tmp_path).splits) == ["train"]


def test_without_split_files_everything_is_train(tmp_path):
    little_datasets.write_voc_file(tmp_path, "b", little_datasets.voc_object("x", (1, 1, 5, 5)))
    little_datasets.write_voc_file(tmp_path, "a", "")
    source = voc.read(tmp_path)
    assert [example.file_name for example in source.splits["train"]] == ["a.jpg", "b.jpg"]


def test_a_per_class_file_can_be_taken_by_name(tmp_path):
    source = voc.read(little_datasets.write_voc(tmp_path), splits=("cat_train",))
    assert [example.file_name for example in source.splits["cat_train"]] == ["a.jpg"]


def test_a_class_file_gives_the_order(tmp_path):
    little_datasets.write_voc(tmp_path)
    classes = tmp_path / "classes.txt"
    classes.write_text("dog\n\nbird\ncat\n")
    source = voc.read(tmp_path, classes=classes)
    assert [category.name for category in source.categories] == ["dog", "bird", "cat"]
    assert source.splits["train"][0].labels.tolist() == [2, 0]


def test_a_size_of_zero_means_that_none_is_declared(tmp_path):
    little_datasets.write_voc_file(tmp_path, "a", little_datasets.voc_object("x", (1, 1, 5, 5)), size=(0, 0))
    assert voc.read(tmp_path).splits["train"][0].declared_size is None


def test_the_annotation_s_own_name_pairs_it_with_its_image(tmp_path):
    little_datasets.write_voc_file(tmp_path, "a", "")
    little_datasets.write_voc_file(tmp_path, "b", "")
    path = tmp_path / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("a.jpg", "b.jpg"))
    assert voc.read(tmp_path).splits["train"][0].file_name == "a.jpg"


def test_entities_are_refused(tmp_path):
    little_datasets.write_voc_file(tmp_path, "a", "")
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    (tmp_path / "Annotations" / "a.xml").write_text(bomb)
    with pytest.raises(UserError, match=r"a.xml` is not valid XML"):
        voc.read(tmp_path)
