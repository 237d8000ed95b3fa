"""Annotations of `predict`: what tools read, and what `convert` reads back to the same boxes."""

import csv
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from efficientdet.data.formats import coco, voc, yolo
from efficientdet.errors import UserError
from efficientdet.inference import labelling
from efficientdet.media import images
from efficientdet.structures import Category

_CATEGORIES = (Category(id=5, name="red"), Category(id=9, name="yes"), Category(id=11, name="café & Söhne"))
_RED = {"x1": 40.0, "y1": 30.0, "x2": 100.0, "y2": 80.0}
_OTHER = {"x1": 0.0, "y1": 0.25, "x2": 12.5, "y2": 119.99}


def _image(path, orientation=1):
    """Draws 160 x 120 px with a red rectangle, lying on its side if an EXIF orientation says so."""
    pixels = np.full((120, 160, 3), 90, np.uint8)
    pixels[30:80, 40:100] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    if orientation == 6:
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(path, **({} if orientation == 1 else {"exif": exif}))
    return pixels


def _detection(box, label, score=0.9):
    category = _CATEGORIES[label]
    return {"class": category.name, "category_id": category.id, "score": score, "box": box}


@pytest.fixture
def written(tmp_path):
    """Writes four images in a form, and gives the directory."""

    def write(form):
        found = []
        sources = {"a": ("a.png", 1), "b": ("b.jpg", 6), "c": ("c.gif", 1), "d": ("d.jpg", 1)}
        boxes = {"a": [_detection(_RED, 0), _detection(_OTHER, 2, 0.4)], "b": [_detection(_RED, 1)], "c": [], "d": []}
        for stem, (name, orientation) in sources.items():
            pixels = _image(tmp_path / name, orientation)
            path = labelling.image_path(form, stem, tmp_path / name)
            labelling.copy_image(tmp_path / name, pixels, tmp_path / "out" / path)
            found.append((path.as_posix(), {"height": 120, "width": 160, "detections": boxes[stem]}))
        named = labelling.write(form, tmp_path / "out", found, _CATEGORIES)
        there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
        assert set(named) | {name for name, _ in found} <= there
        return tmp_path / "out"

    return write


@pytest.mark.parametrize(("form", "read"), [("coco", coco.read), ("yolo", yolo.read), ("voc", voc.read)])
def test_convert_reads_the_same_boxes_back(written, form, read):
    source = read(written(form))
    (examples,) = source.splits.values()
    assert [example.path.stem for example in examples] == ["a", "b", "c", "d"]
    names = [[source.categories[label].name for label in example.labels] for example in examples]
    assert [sorted(each) for each in names] == [["café & Söhne", "red"], ["yes"], [], []]
    for example, labels in zip(examples, names, strict=True):
        pixels = images.read_image(example.path, "copy")
        assert pixels.shape == (120, 160, 3), "upright, also the copy of one that lay on its side"
        scale = [120, 160, 120, 160] if example.is_normalized else 1
        for box, name in zip(example.boxes * scale, labels, strict=True):
            wanted = _OTHER if name.startswith("c") else _RED
            np.testing.assert_allclose(box, [wanted[side] for side in ("y1", "x1", "y2", "x2")], atol=0.01)
        assert (pixels[35:75, 45:95, 0] > 200).all()


def test_coco_keeps_ids_and_scores(written):
    document = json.loads((written("coco") / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    assert [each["id"] for each in document["categories"]] == [5, 9, 11]
    assert [each["score"] for each in document["annotations"]] == [0.9, 0.4, 0.9]
    assert document["annotations"][0]["bbox"] == [40, 30, 60, 50]
    assert [image["file_name"] for image in document["images"]] == ["a.png", "b.jpg", "c.jpg", "d.jpg"]


def test_yolo_has_a_label_file_for_each_image(written):
    folder = written("yolo")
    assert (folder / "labels" / "b.txt").read_text() == "1 0.43750000 0.45833333 0.37500000 0.41666667\n"
    assert (folder / "labels" / "c.txt").read_text() == ""


def test_voc_is_what_labelimg_reads(written):
    tree = ElementTree.parse(written("voc") / "Annotations" / "b.xml")
    assert tree.findtext("filename") == "b.jpg"
    assert [tree.findtext(f"size/{side}") for side in ("width", "height", "depth")] == ["160", "120", "3"]
    assert [float(tree.findtext(f"object/bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")] == [
        40,
        30,
        100,
        80,
    ]


def test_labelme_lies_beside_each_image(written):
    folder = written("labelme")
    document = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    assert (folder / document["imagePath"]).is_file()
    assert (document["imageHeight"], document["imageWidth"], document["imageData"]) == (120, 160, None)
    assert document["shapes"][0]["points"] == [[40, 30], [100, 80]]
    assert [shape["label"] for shape in document["shapes"]] == ["red", "café & Söhne"]
    assert sorted(path.name for path in folder.glob("*.json")) == ["a.json", "b.json", "c.json", "d.json"]


def test_csv_has_a_row_a_box(written):
    with (written("csv") / "annotations.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "score"]
    assert [row["class"] for row in rows] == ["red", "café & Söhne", "yes"]
    assert [float(rows[0][side]) for side in ("xmin", "ymin", "xmax", "ymax", "score")] == [40, 30, 100, 80, 0.9]


def test_classes_of_one_name_are_refused_where_names_are_all_there_is():
    twice = (Category(id=1, name="red"), Category(id=2, name="red"))
    for form in ("voc", "labelme", "csv"):
        with pytest.raises(UserError, match="two are named `red`; use coco"):
            labelling.check_names(form, twice)
    labelling.check_names("coco", twice)
