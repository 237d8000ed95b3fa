"""YOLO annotations: data.yaml in its varieties, classes.txt, polygons."""

import little_datasets
import numpy as np
import pytest

from efficientdet.data.formats import yolo
from efficientdet.errors import UserError


def test_centres_and_polygons_become_boxes(tmp_path):
    source = yolo.read(little_datasets.write_yolo(tmp_path))
    assert [(category.id, category.name) for category in source.categories] == [(0, "cat"), (1, "dog")]
    (full,), (empty,) = source.splits["train"], source.splits["val"]
    assert full.is_normalized
    # 1e-7: float32.
    np.testing.assert_allclose(full.boxes, [[0.3, 0.4, 0.7, 0.6], [0.2, 0.1, 0.6, 0.5]], atol=1e-7)
    assert full.labels.tolist() == [0, 1]
    assert len(empty.labels) == 0
    assert full.file_name == "images/train/a.jpg"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("train: images/train\nval: [images/val]\nnames: {0: cat, 1: dog}\n", id="names as a dict"),
        pytest.param("path: /nowhere/x\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n", id="stale path"),
        pytest.param("train: ../images/train\nval: ../images/val\nnc: 2\nnames: [cat, dog]\n", id="Roboflow"),
        pytest.param("train: train.txt\nval: images/val\nnames: [cat, dog]\n", id="list file"),
    ],
)
def test_varieties_of_data_yaml_mean_the_same(tmp_path, text):
    little_datasets.write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\n")
    source = yolo.read(tmp_path)
    assert [category.name for category in source.categories] == ["cat", "dog"]
    assert [example.file_name for example in source.splits["train"]] == ["images/train/a.jpg"]
    assert source.splits["train"][0].labels.tolist() == [0, 1]
    assert list(source.splits) == ["train", "val"]


def test_classes_txt_with_a_folder_a_split(tmp_path):
    little_datasets.write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert {name: len(examples) for name, examples in yolo.read(tmp_path).splits.items()} == {"train": 1, "val": 1}


def test_classes_txt_with_one_folder_is_train(tmp_path):
    little_datasets.draw(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 1 1")
    (tmp_path / "classes.txt").write_text("cat\n")
    assert yolo.read(tmp_path).splits["train"][0].labels.tolist() == [0]


def test_a_class_number_that_names_do_not_have_is_refused_by_file_and_line(tmp_path):
    little_datasets.write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 .5 .5 .1 .1\n\n2 .5 .5 .1 .1\n")
    with pytest.raises(UserError, match=r"a.txt`, line 3: unknown class 2; `names` has 0..1"):
        yolo.read(tmp_path)


def test_pixels_instead_of_fractions_are_refused(tmp_path):
    little_datasets.write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 30 20 10 10\n")
    with pytest.raises(UserError, match=r"a.txt`, line 1: contains 30; expected fractions"):
        yolo.read(tmp_path)
