"""What people really bring, a row a case: the box lies on the red rectangle, or the message says why not.

Each row is of a kind that was met in public threads; the images are generated. Nothing here needs TensorFlow.
"""

import copy
import io
import json
import unicodedata

import numpy as np
import pytest
import red_images as red
from rich.console import Console

from efficientdet.data import conversion, policy, sources
from efficientdet.data.formats import coco, voc, yolo
from efficientdet.data.reading import interpretation, rotation
from efficientdet.errors import UserError

_READERS = {"coco": coco.read, "voc": voc.read, "yolo": yolo.read}


def read(format, root, *, exif_boxes="auto", swap_corners=False, is_lenient=False, splits=(), **reading):
    """Reads a dataset as `convert` does."""
    options = {name: reading.pop(name) for name in ("classes", "files", "drop_difficult") if name in reading}
    faults = sources.Faults(keeps=True)
    dataset = _READERS[format](root, splits=splits, reading=sources.Reading(faults=faults, **reading), **options)
    return interpretation.interpret(
        dataset,
        wanted=splits,
        faults=faults,
        swap_corners=swap_corners,
        exif_boxes=exif_boxes,
        is_lenient=is_lenient,
    )


def check_red(dataset):
    """Checks that every box of every image lies on its red rectangle."""
    for split, examples in dataset.splits.items():
        for example in examples:
            image = policy.prepare(example, split)
            for box in image.boxes:
                # 1 px: JPEG blurs the edge.
                np.testing.assert_allclose(box, red.find_red(image.jpeg), atol=1)


def kinds(dataset):
    return [problem.kind for problem in dataset.problems]


# --- layouts and names that tools write: name -> (format, files, images, splits with numbers of boxes, said) ---

_YAML = "train: images/train\nval: images/val\nnames: [red]\n"
_LINE = f"0 {red.YOLO}\n"
_CVAT = {"annotations/instances_default.json": red.coco()}
_OBJ = "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
_NFD = unicodedata.normalize("NFD", "café.jpg")

_LAYOUTS = {
    "CVAT COCO": ("coco", _CVAT, ["images/default/a.jpg"], {"train": 1}, "has only one"),
    "CVAT COCO subsets": (
        "coco",
        {"annotations/instances_Train.json": red.coco(), "annotations/instances_Validation.json": red.coco(["b.jpg"])},
        ["images/Train/a.jpg", "images/Validation/b.jpg"],
        {"train": 1, "val": 1},
        "",
    ),
    "COCO train.json and val.json beside images": (
        "coco",
        {"train.json": red.coco(), "val.json": red.coco(["b.jpg"])},
        ["images/a.jpg", "images/b.jpg"],
        {"train": 1, "val": 1},
        "",
    ),
    "COCO with a JSON in each folder": (
        "coco",
        {"train/labels.json": red.coco(), "test/labels.json": red.coco(["b.jpg"])},
        ["train/a.jpg", "test/images/b.jpg"],
        {"train": 1, "test": 1},
        "",
    ),
    "Label Studio COCO": (
        "coco",
        {"result.json": red.coco(["images\\1/a.jpg"])},
        ["images/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "Label Studio COCO, path of the server": (
        "coco",
        {"result.json": red.coco(["..\\..\\label-studio\\label-studio\\media\\upload\\1\\a.jpg"])},
        ["images/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "COCO with images/ in the names": (
        "coco",
        {"instances.json": red.coco(["images/a.jpg"])},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "COCO, Roboflow at the root": ("coco", {"_annotations.coco.json": red.coco()}, ["a.jpg"], {"train": 1}, ""),
    "COCO percent-encoded": (
        "coco",
        {"instances.json": red.coco(["a%20b.jpg"])},
        ["images/a b.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "COCO in another case": (
        "coco",
        {"instances.json": red.coco(["A.JPG"])},
        ["images/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "COCO composed, disk decomposed": (
        "coco",
        {"instances.json": red.coco(["café.jpg"])},
        [f"images/{_NFD}"],
        {"train": 1},
        "by their file name",
    ),
    "COCO address": (
        "coco",
        {"instances.json": red.coco(["https://host/data/a.jpg?token=" + "x" * 300])},
        ["images/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "COCO local-files of Label Studio": (
        "coco",
        {"instances.json": red.coco(["/data/local-files/?d=images/a.jpg"])},
        ["images/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "COCO longest end of the path": (
        "coco",
        {"instances.json": red.coco(["/home/me/set/left/a.jpg"])},
        ["images/left/a.jpg", "images/right/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "COCO split in the names": (
        "coco",
        {"annotations/instances_train.json": red.coco(["train/a.jpg"])},
        ["images/train/a.jpg"],
        {"train": 1},
        "",
    ),
    "macOS files in COCO": (
        "coco",
        {"annotations/instances_train.json": red.coco(), "annotations/._instances_train.json": b"\x00\x05"},
        ["train/a.jpg"],
        {"train": 1},
        "",
    ),
    "VOC of labelImg, all in one folder": ("voc", {"a.xml": red.xml()}, ["a.jpg"], {"train": 1}, ""),
    "VOC of Roboflow": (
        "voc",
        {"train/a.xml": red.xml(), "valid/b.xml": red.xml("b.jpg"), "test/c.xml": red.xml("c.jpg")},
        ["train/a.jpg", "valid/b.jpg", "test/c.jpg"],
        {"train": 1, "val": 1, "test": 1},
        "",
    ),
    "VOC in lower case": ("voc", {"annotations/a.xml": red.xml()}, ["images/a.jpg"], {"train": 1}, ""),
    "VOC annots": ("voc", {"annots/a.xml": red.xml()}, ["images/a.jpg"], {"train": 1}, ""),
    "VOC of the pets": ("voc", {"annotations/xmls/a.xml": red.xml()}, ["images/a.jpg"], {"train": 1}, ""),
    "VOC nested": (
        "voc",
        {"Annotations/x/a.xml": red.xml(), "Annotations/y/a.xml": red.xml()},
        ["JPEGImages/x/a.jpg", "JPEGImages/y/a.jpg"],
        {"train": 2},
        "",
    ),
    "VOC with a folder a split inside": (
        "voc",
        {"annotations/train/a.xml": red.xml(), "annotations/val/b.xml": red.xml("b.jpg")},
        ["images/train/a.jpg", "images/val/b.jpg"],
        {"train": 1, "val": 1},
        "",
    ),
    "VOC of CVAT with the list default": (
        "voc",
        {"Annotations/a.xml": red.xml(), "ImageSets/Main/default.txt": "a\n"},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "has only one",
    ),
    "VOC list with endings": (
        "voc",
        {"Annotations/a.xml": red.xml(), "ImageSets/Main/train.txt": "a.jpg\n"},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    "VOC lists of Paddle": (
        "voc",
        {"annotations/a.xml": red.xml(), "train.txt": "./images/a.jpg ./annotations/a.xml\n"},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "VOC absolute POSIX path": (
        "voc",
        {"Annotations/x.xml": red.xml("/home/me/images/a.jpg")},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "VOC absolute Windows path": (
        "voc",
        {"Annotations/x.xml": red.xml("C:\\Users\\me\\a.jpg")},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "VOC without numbers in size": (
        "voc",
        {"Annotations/a.xml": red.xml(size="<width></width><height/><depth/>")},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    "VOC beside files of macOS": (
        "voc",
        {"Annotations/a.xml": red.xml(), "Annotations/._a.xml": b"\x00\x05\x16", "__MACOSX/Annotations/._a.xml": b"x"},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    "YOLO of Roboflow without test": (
        "yolo",
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['red']\n",
            "train/labels/a.txt": _LINE,
            "valid/labels/b.txt": _LINE,
        },
        ["train/images/a.jpg", "valid/images/b.jpg"],
        {"train": 1, "val": 1},
        "not found",
    ),
    "YOLO with absolute paths of another machine": (
        "yolo",
        {"data.yaml": "train: /content/set/train/images\nnames: [red]\n", "train/labels/a.txt": _LINE},
        ["train/images/a.jpg"],
        {"train": 1},
        "by matching the end of their path",
    ),
    "YOLO label a.jpg.txt": (
        "yolo",
        {"data.yaml": "train: images\nnames: [red]\n", "labels/a.jpg.txt": _LINE},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "YOLO jfif": (
        "yolo",
        {"data.yaml": "train: images\nnames: [red]\n", "labels/a.txt": _LINE},
        ["images/a.jfif"],
        {"train": 1},
        "",
    ),
    "YOLO 1.1 of CVAT": (
        "yolo",
        {
            "obj.data": _OBJ,
            "obj.names": "red\n",
            "train.txt": "data/obj_train_data/a.jpg\n",
            "obj_train_data/a.txt": _LINE,
        },
        ["obj_train_data/a.jpg"],
        {"train": 1},
        "",
    ),
    "darknet": (
        "yolo",
        {
            "obj.data": _OBJ + "valid = data/test.txt\n",
            "data/obj.names": "red\n",
            "data/train.txt": "/home/me/darknet/data/obj/a.jpg\n",
            "data/test.txt": "data/obj/b.jpg\n",
            "data/obj/a.txt": _LINE,
            "data/obj/b.txt": _LINE,
        },
        ["data/obj/a.jpg", "data/obj/b.jpg"],
        {"train": 1, "val": 1},
        "by their file name",
    ),
    "YOLO of labelImg, all in one folder": (
        "yolo",
        {"classes.txt": "red\n", "a.txt": _LINE},
        ["a.jpg"],
        {"train": 1},
        "",
    ),
    "YOLO of labelImg, class file with the labels": (
        "yolo",
        {"labels/classes.txt": "red\n", "labels/a.txt": _LINE},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "YOLO, darknet of Roboflow": (
        "yolo",
        {
            "train/_darknet.labels": "red\n",
            "train/a.txt": _LINE,
            "valid/_darknet.labels": "red\n",
            "valid/b.txt": _LINE,
        },
        ["train/a.jpg", "valid/b.jpg"],
        {"train": 1, "val": 1},
        "",
    ),
    "YOLO in another case": (
        "yolo",
        {"data.yaml": "train: Images/Train\nnames: [red]\n", "labels/train/A.TXT": _LINE},
        ["images/train/a.jpg"],
        {"train": 1},
        "",
    ),
    "YOLO image decomposed, label composed": (
        "yolo",
        {"data.yaml": "train: images\nnames: [red]\n", "labels/café.txt": _LINE},
        [f"images/{_NFD}"],
        {"train": 1},
        "",
    ),
    "YOLO with a folder a split and classes.txt": (
        "yolo",
        {"classes.txt": "red\n", "train/labels/a.txt": _LINE, "val/labels/b.txt": _LINE},
        ["train/images/a.jpg", "val/images/b.jpg"],
        {"train": 1, "val": 1},
        "",
    ),
    "YOLO whose nc is not the number of names": (
        "yolo",
        {"data.yaml": "train: images\nnc: 3\nnames: [red]\n", "labels/a.txt": _LINE},
        ["images/a.jpg"],
        {"train": 1},
        "class counts ignored",
    ),
    "YOLO split without a label": (
        "yolo",
        {"data.yaml": _YAML, "labels/train/a.txt": _LINE},
        ["images/train/a.jpg", "images/val/b.jpg"],
        {"train": 1, "val": 0},
        "without a single annotation",
    ),
    "VOC split by the folders of the images": (
        "voc",
        {"annotations/a.xml": red.xml(), "annotations/b.xml": red.xml("b.jpg")},
        ["images/train/a.jpg", "images/val/b.jpg"],
        {"train": 1, "val": 1},
        "",
    ),
    "VOC in another case": ("voc", {"Annotations/A.xml": red.xml("A.JPG")}, ["JPEGImages/a.jpg"], {"train": 1}, ""),
    "YOLO beside files of macOS": (
        "yolo",
        {"data.yaml": "train: images\nnames: [red]\n", "labels/a.txt": _LINE, "labels/._a.txt": b"\x00\x05"},
        ["images/a.jpg", "images/._a.jpg"],
        {"train": 1},
        "",
    ),
}


def lay_out(root, files, images):
    for name, content in files.items():
        if isinstance(content, dict):
            red.write_json(root / name, content)
        else:
            red.write(root / name, content)
    for name in images:
        red.draw(root / name)


@pytest.mark.parametrize(("format", "files", "images", "splits", "said"), _LAYOUTS.values(), ids=_LAYOUTS)
def test_a_layout_is_read(tmp_path, format, files, images, splits, said):
    lay_out(tmp_path, files, images)
    dataset = read(format, tmp_path)
    assert {name: sum(len(e.labels) for e in examples) for name, examples in dataset.splits.items()} == splits
    check_red(dataset)
    assert any(said in kind for kind in kinds(dataset)) if said else not dataset.problems, dataset.problems


@pytest.mark.parametrize("encoding", ["gbk", "GB2312", "iso-8859-1", "utf-16", "utf-8", "windows-1252"])
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path, encoding):
    name = {"gbk": "红", "GB2312": "红", "utf-16": "红"}.get(encoding, "é")
    text = red.xml(head=f'<?xml version="1.0" encoding="{encoding}"?>\n').replace(">red<", f">{name}<")
    lay_out(tmp_path, {"Annotations/a.xml": text.encode(encoding)}, ["JPEGImages/a.jpg"])
    dataset = read("voc", tmp_path)
    assert [category.name for category in dataset.categories] == [name]
    check_red(dataset)


# --- values are read by their type ---


@pytest.mark.parametrize(
    ("value", "is_crowd"),
    [(0, False), (1, True), ("0", False), ("1", True), ("false", False), ("True", True), (None, False)],
)
def test_a_crowd_is_what_its_flag_says(tmp_path, value, is_crowd):
    document = red.coco(["a.jpg", "b.jpg"])
    document["annotations"][0]["iscrowd"] = value
    lay_out(tmp_path, {"instances.json": document}, ["images/a.jpg", "images/b.jpg"])
    assert [e.is_crowd.tolist() for e in read("coco", tmp_path).splits["train"]] == [[is_crowd], [False]]


_REFUSED_VALUES = {
    "iscrowd 2": (["annotations", 0, "iscrowd"], 2, r"annotations\[0\]: `iscrowd` is '2'; expected 0 or 1"),
    "iscrowd word": (["annotations", 0, "iscrowd"], "maybe", "expected 0 or 1"),
    "bbox with a boolean": (["annotations", 0, "bbox"], [True, 30, 60, 50], "expected a number"),
    "bbox of digits with _": (["annotations", 0, "bbox"], ["4_0", 30, 60, 50], "expected a number"),
    "category 1.5": (["annotations", 0, "category_id"], 1.5, "expected an integer"),
    "height true": (["images", 0, "height"], True, "expected a number"),
    "height 120.5": (["images", 0, "height"], 120.5, "expected a whole number of px"),
    "file_name number": (["images", 0, "file_name"], 7, "expected text"),
    "class name null": (["categories", 0, "name"], None, "has no `name`"),
    "class name list": (["categories", 0, "name"], ["red"], "expected text"),
    "bbox empty, nothing else": (["annotations", 0, "bbox"], [], "`bbox` is empty, and there is no segmentation"),
    "two names for one file": (["images", 1, "file_name"], "a.jpg", "lists `a.jpg` twice"),
}


_REFUSED_VALUES |= {
    f"file_name {name}": (["images", 0, "file_name"], value, "expected a file name")
    for name, value in {"empty": " ", "NUL": "a\0.jpg", "surrogate": "a\ud800.jpg", "long": "x" * 300 + ".jpg"}.items()
}


@pytest.mark.parametrize(("place", "value", "words"), _REFUSED_VALUES.values(), ids=_REFUSED_VALUES)
def test_a_value_of_another_type_is_refused(tmp_path, place, value, words):
    document = red.coco(["a.jpg", "b.jpg"])
    if words.startswith("lists"):
        document["images"][1]["height"] = 60
    part = document
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    lay_out(tmp_path, {"instances.json": document}, ["images/a.jpg", "images/b.jpg"])
    with pytest.raises(UserError, match=words):
        read("coco", tmp_path)


def test_ids_as_text_are_fine_if_they_are_consistent(tmp_path):
    for change in (str, float):
        document = red.coco(["a.jpg", "b.jpg"])
        for entry in (*document["images"], *document["annotations"], *document["categories"]):
            for name in ("id", "image_id", "category_id"):
                if name in entry:
                    entry[name] = change(entry[name])
        lay_out(tmp_path, {"instances.json": document}, ["images/a.jpg", "images/b.jpg"])
        dataset = read("coco", tmp_path)
        assert [example.id for example in dataset.splits["train"]] == [1, 2]
        assert [category.id for category in dataset.categories] == [1]
        check_red(dataset)
        assert not dataset.problems


def test_ids_that_are_words_are_counted(tmp_path):
    document = red.coco(["b.jpg", "a.jpg"])
    for entry in (*document["images"], *document["annotations"]):
        name = "id" if "file_name" in entry else "image_id"
        entry[name] = f"0{entry[name]}"
    lay_out(tmp_path, {"instances.json": document}, ["images/a.jpg", "images/b.jpg"])
    dataset = read("coco", tmp_path)
    assert [(e.id, e.file_name, len(e.labels)) for e in dataset.splits["train"]] == [(1, "b.jpg", 1), (2, "a.jpg", 1)]
    assert "files with text ids" in kinds(dataset)[0]


_RUNS = [40 * 120 + 30] + [50, 70] * 59 + [50, 40 + 60 * 120 - 0]
_SHAPES = {
    "polygon": [[40, 30, 100, 30, 100, 80, 40, 80]],
    "flat polygon": [40, 30, 100, 30, 100, 80, 40, 80],
    "two polygons": [[40, 30, 60, 30, 60, 80], [70, 40, 100, 40, 100, 80]],
    "RLE": {"size": [120, 160], "counts": _RUNS},
}


@pytest.mark.parametrize("shape", _SHAPES.values(), ids=_SHAPES)
@pytest.mark.parametrize("bbox", [[], None], ids=["empty", "null"])
def test_a_box_comes_from_the_segmentation_where_there_is_none(tmp_path, shape, bbox):
    lay_out(tmp_path, {"instances.json": red.coco(bbox=bbox, segmentation=shape)}, ["images/a.jpg"])
    dataset = read("coco", tmp_path)
    np.testing.assert_array_equal(dataset.splits["train"][0].boxes, [red.BOX])
    assert "computed from polygons or masks" in kinds(dataset)[0]


def test_compressed_masks_are_decoded(tmp_path):
    # pycocotools.mask.encode of the rectangle.
    counts = _compress(_RUNS)
    shape = {"size": [120, 160], "counts": counts}
    lay_out(tmp_path, {"instances.json": red.coco(bbox=None, segmentation=shape)}, ["images/a.jpg"])
    np.testing.assert_array_equal(read("coco", tmp_path).splits["train"][0].boxes, [red.BOX])


def _compress(runs):
    """Encodes counts as pycocotools does."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr((bits | (0x20 if more else 0)) + 48)
            if not more:
                break
    return text


def test_lvis_names_images_by_their_address(tmp_path):
    document = red.coco()
    del document["images"][0]["file_name"]
    document["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/a.jpg"
    for entry in document["annotations"]:
        del entry["iscrowd"]
    lay_out(tmp_path, {"lvis_v1_train.json": document, "lvis_v1_val.json": document}, ["train2017/a.jpg"])
    dataset = read("coco", tmp_path)
    assert [e.path.name for e in dataset.splits["val"]] == ["a.jpg"]
    assert list(dataset.splits) == ["train", "val"]
    check_red(dataset)


# --- two readings: a documented rule decides and is reported ---


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("given", ["kpt_shape", "option", "no word"])
def test_the_box_of_a_pose_is_its_first_numbers(tmp_path, size, given):
    points = [(0.3, 0.3), (0.6, 0.3), (0.6, 0.6), (0.0, 0.0)]
    rest = " ".join(f"{x} {y}" + (f" {2 if x else 0}" if size == 3 else "") for x, y in points)
    yaml = f"train: images\nnames: [red]\n{f'kpt_shape: [4, {size}]' if given == 'kpt_shape' else ''}\n"
    lay_out(tmp_path, {"data.yaml": yaml, "labels/a.txt": f"0 {red.YOLO} {rest}\n"}, ["images/a.jpg"])
    dataset = read("yolo", tmp_path, keypoints=(4, size) if given == "option" else None)
    if given == "no word" and size == 2:  # it may be a polygon
        assert "may be boxes with keypoints" in kinds(dataset)[0]
        return
    check_red(dataset)
    assert kinds(dataset) == ([yolo._POSE] if given == "no word" else [])


def test_a_pose_of_another_length_is_refused(tmp_path):
    yaml = "train: images\nnames: [red]\nkpt_shape: [2, 3]\n"
    lay_out(tmp_path, {"data.yaml": yaml, "labels/a.txt": f"0 {red.YOLO} .1 .1 .1 .1\n"}, ["images/a.jpg"])
    with pytest.raises(UserError, match=r"a.txt`, line 1: 9 numbers; expected 5 for a box, or 11"):
        read("yolo", tmp_path)


def test_an_oriented_box_is_no_pose(tmp_path):
    line = "0 0.25 0.25 0.625 0.25 0.625 0.666667 0.25 0.666667\n"
    lay_out(tmp_path, {"data.yaml": "train: images\nnames: [red]\n", "labels/a.txt": line}, ["images/a.jpg"])
    dataset = read("yolo", tmp_path)
    check_red(dataset)
    assert not dataset.problems


def test_a_confidence_is_dropped_on_request_only(tmp_path):
    files = {"data.yaml": "train: images\nnames: [red]\n", "labels/a.txt": f"0 {red.YOLO} 0.93\n"}
    lay_out(tmp_path, files, ["images/a.jpg"])
    with pytest.raises(UserError, match="--drop-confidence"):
        read("yolo", tmp_path)
    dataset = read("yolo", tmp_path, drop_confidence=True)
    check_red(dataset)
    assert kinds(dataset) == ["confidences in the last column ignored"]


def test_corners_in_the_wrong_order_are_swapped_on_request_only(tmp_path):
    lay_out(tmp_path, {"Annotations/a.xml": red.xml(box=(100, 80, 40, 30))}, ["JPEGImages/a.jpg"])
    dataset = read("voc", tmp_path)
    assert policy.prepare(dataset.splits["train"][0], "train").boxes.shape == (0, 4)
    check_red(read("voc", tmp_path, swap_corners=True))


def test_the_filename_decides_between_images_of_one_stem(tmp_path):
    lay_out(tmp_path, {"Annotations/a.xml": red.xml("a.png")}, ["JPEGImages/a.jpg", "JPEGImages/a.png"])
    assert read("voc", tmp_path).splits["train"][0].path.name == "a.png"
    for name in ("other.jpg", "a", ""):
        red.write(tmp_path / "Annotations" / "a.xml", red.xml(name))
        with pytest.raises(UserError, match=r"a.xml` could belong to .*a\.jpg or .*a\.png; name the right one"):
            read("voc", tmp_path)


def test_two_images_that_fit_a_stale_name_are_both_named(tmp_path):
    images = ["images/x/a.jpg", "images/y/a.jpg"]
    lay_out(tmp_path, {"instances.json": red.coco(["/home/me/a.jpg"])}, images)
    with pytest.raises(UserError, match=r"`/home/me/a.jpg`.* could be .*x/a.jpg or .*y/a.jpg"):
        read("coco", tmp_path)


def test_classes_of_one_name_are_one_class(tmp_path):
    document = red.coco(["a.jpg", "b.jpg"])
    document["categories"] = [{"id": 2, "name": "red "}, {"id": 1, "name": "red"}, {"id": 5, "name": "Red"}]
    document["annotations"][1]["category_id"] = 2
    lay_out(tmp_path, {"instances.json": document}, ["images/a.jpg", "images/b.jpg"])
    dataset = read("coco", tmp_path)
    assert [(category.id, category.name) for category in dataset.categories] == [(1, "red"), (5, "Red")]
    assert [e.labels.tolist() for e in dataset.splits["train"]] == [[0], [0]]
    merged, kept = dataset.problems
    assert (merged.kind, merged.detail) == (
        "classes with the same name merged under the lowest id",
        "`red` has ids 1, 2; kept 1",
    )
    assert "case" in kept.kind


def test_classes_of_one_name_are_one_class_across_splits_and_in_yaml(tmp_path):
    other = red.coco(["b.jpg"], category_id=7)
    other["categories"] = [{"id": 7, "name": "red"}]
    files = {"annotations/instances_train.json": red.coco(), "annotations/instances_val.json": other}
    lay_out(tmp_path / "coco", files, ["images/a.jpg", "images/b.jpg"])
    dataset = read("coco", tmp_path / "coco")
    assert [category.id for category in dataset.categories] == [1]
    assert [e.labels.tolist() for some in dataset.splits.values() for e in some] == [[0], [0]]
    files = {"data.yaml": "train: images\nnames: [blue, red, red]\n", "labels/a.txt": f"2 {red.YOLO}\n"}
    lay_out(tmp_path / "yolo", files, ["images/a.jpg"])
    dataset = read("yolo", tmp_path / "yolo")
    assert [(category.id, category.name) for category in dataset.categories] == [(0, "blue"), (1, "red")]
    assert dataset.splits["train"][0].labels.tolist() == [1]
    assert "merged" in kinds(dataset)[0]


@pytest.mark.parametrize("name", ["yes", "no", "null", "~", "007", "12:30", "1e3", "0x1F", "2024-01-31", "1_0"])
@pytest.mark.parametrize("form", ["[{}, red]", "{{0: {}, 1: red}}", "\n- {}\n- red", "\n  0: {}\n  1: red"])
def test_names_in_yaml_are_text(tmp_path, name, form):
    files = {"data.yaml": f"train: images\nnames: {form.format(name)}\n", "labels/a.txt": f"1 {red.YOLO}\n"}
    lay_out(tmp_path, files, ["images/a.jpg"])
    assert [category.name for category in read("yolo", tmp_path).categories] == [name, "red"]


@pytest.mark.parametrize("text", ["names: {0: a, 0: b}", "names: [a]\nnames: [b]", "names: {0: a, 00: b}"])
def test_a_key_that_stands_twice_in_yaml_is_refused(tmp_path, text):
    lay_out(tmp_path, {"data.yaml": f"train: images\n{text}\n"}, ["images/a.jpg"])
    with pytest.raises(UserError, match="twice"):
        read("yolo", tmp_path)


@pytest.mark.parametrize("empty", ["", "null", "~", "[]"])
def test_an_empty_split_in_yaml_is_none(tmp_path, empty):
    files = {"data.yaml": f"train: images\nval: {empty}\ntest:\nnames: [red]\n", "labels/a.txt": _LINE}
    lay_out(tmp_path, files, ["images/a.jpg"])
    assert list(read("yolo", tmp_path).splits) == ["train"]


def test_annotations_that_are_all_crowds_are_refused(tmp_path):
    lay_out(tmp_path, {"instances.json": red.coco(iscrowd=1)}, ["images/a.jpg"])
    with pytest.raises(UserError, match=r"All 1 annotations of `train` are crowds .* nothing to learn"):
        read("coco", tmp_path)
    assert not read("coco", tmp_path, crowds_as_objects=True).splits["train"][0].is_crowd.any()
    files = {"annotations/instances_train.json": red.coco(), "annotations/instances_val.json": red.coco(iscrowd=1)}
    lay_out(tmp_path / "two", files, ["train/a.jpg", "val/a.jpg"])
    assert any("all crowds" in kind for kind in kinds(read("coco", tmp_path / "two")))


def test_an_image_listed_twice_is_one_and_said(tmp_path):
    document = red.coco(["a.jpg", "a.jpg", "b.jpg"])
    lay_out(tmp_path, {"instances.json": document}, ["images/a.jpg", "images/b.jpg"])
    dataset = read("coco", tmp_path)
    assert [(e.file_name, len(e.labels)) for e in dataset.splits["train"]] == [("a.jpg", 1), ("b.jpg", 1)]
    assert kinds(dataset) == [sources.REPEATED_IMAGE]


def test_an_annotation_id_twice_is_said(tmp_path):
    document = red.coco(["a.jpg", "b.jpg"])
    document["annotations"].append(copy.deepcopy(document["annotations"][0]))
    document["annotations"].append(document["annotations"][1] | {"bbox": [1, 1, 5, 5]})
    lay_out(tmp_path, {"instances.json": document}, ["images/a.jpg", "images/b.jpg"])
    dataset = read("coco", tmp_path)
    assert [len(e.labels) for e in dataset.splits["train"]] == [1, 2]
    assert [kind.partition(",")[0] for kind in kinds(dataset)] == [
        "duplicate annotations (same id and content) dropped",
        "annotations with the same id as an earlier one",
    ]


def test_repeated_boxes_and_images_of_two_splits_are_said(tmp_path):
    files = {"data.yaml": _YAML.replace("images/val", "images/train"), "labels/train/a.txt": _LINE * 2}
    lay_out(tmp_path, files, ["images/train/a.jpg"])
    found = kinds(read("yolo", tmp_path))
    assert "images used more than once" in found
    assert "duplicate annotations in the same image kept" in found


def test_a_label_file_of_two_images_is_said(tmp_path):
    files = {"data.yaml": "train: images\nnames: [red]\n", "labels/a.txt": _LINE}
    lay_out(tmp_path, files, ["images/a.jpg", "images/a.png"])
    assert any("shared by several images" in kind for kind in kinds(read("yolo", tmp_path)))


# --- EXIF: on which image the boxes were drawn ---

_STORED_6 = (60, 30, 120, 80)  # the rectangle in the file of orientation 6: yxyx px


def _write_rotated(root, orientation, declared, boxes):
    """Writes COCO images with a rotation; `boxes` are yxyx px, `declared` (width, height)."""
    document = red.coco([f"{i}.jpg" for i in range(len(boxes))])
    for i, ((y1, x1, y2, x2), size) in enumerate(zip(boxes, declared, strict=True)):
        document["annotations"][i]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        document["images"][i] |= {"width": size[0], "height": size[1]}
        red.draw(root / "images" / f"{i}.jpg", orientation[i])
    red.write_json(root / "instances.json", document)


@pytest.mark.parametrize("other_is_stored", [False, True])
def test_the_rest_of_the_dataset_decides_how_a_rotation_is_read(tmp_path, other_is_stored):
    other = ((120, 160), _STORED_6) if other_is_stored else ((160, 120), red.BOX)
    # Orientation 3 keeps the size, so that it does not tell; as it is stored, the rectangle is turned by 180 degrees.
    own = (40, 60, 90, 120) if other_is_stored else red.BOX
    _write_rotated(tmp_path, [6, 3], [other[0], (160, 120)], [other[1], own])
    dataset = read("coco", tmp_path)
    check_red(dataset)
    assert kinds(dataset) == [rotation.BY_THE_REST]


@pytest.mark.parametrize("exif_boxes", ["auto", "upright", "stored"])
@pytest.mark.parametrize("orientation", [2, 3])
def test_a_rotation_that_cannot_be_told_is_said_and_an_option_settles_it(tmp_path, exif_boxes, orientation):
    stored = {2: (30, 60, 80, 120), 3: (40, 60, 90, 120)}[orientation]
    _write_rotated(tmp_path, [orientation], [(160, 120)], [stored if exif_boxes == "stored" else red.BOX])
    dataset = read("coco", tmp_path, exif_boxes=exif_boxes)
    check_red(dataset)
    assert kinds(dataset) == ([rotation.UNTOLD] if exif_boxes == "auto" else [])


def test_boxes_that_fit_one_way_only_tell_the_rotation(tmp_path):
    # Nothing is declared; of 120 x 160 px as it is stored, the box would leave the upright image of 160 x 120 px.
    _write_rotated(tmp_path, [6], [(0, 0)], [(40, 40, 130, 90)])
    dataset = read("coco", tmp_path)
    assert dataset.splits["train"][0].is_upright is False
    assert not dataset.problems


# --- faults: all of them are listed, or left out on request ---


def _write_faults(root):
    document = red.coco(["a.jpg", "b.jpg", "c.jpg"])
    document["annotations"][0]["bbox"] = []
    document["annotations"][1]["category_id"] = 9
    lay_out(root, {"instances.json": document}, ["images/a.jpg", "images/b.jpg", "images/c.jpg"])
    return "coco"


def _write_voc_faults(root):
    files = {
        "Annotations/a.xml": red.xml().replace("<xmin>40</xmin>", ""),
        "Annotations/b.xml": red.xml()[:-9],
        "Annotations/c.xml": red.xml(),
    }
    lay_out(root, files, ["JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg"])
    return "voc"


def _write_yolo_faults(root):
    files = {
        "data.yaml": "train: images\nnames: [red]\n",
        "labels/a.txt": f"0 {red.YOLO}\n3 {red.YOLO}\n",
        "labels/b.txt": "0 40 30 60 50\n",
    }
    lay_out(root, files, ["images/a.jpg", "images/b.jpg"])
    return "yolo"


@pytest.mark.parametrize(
    ("write", "names"),
    [
        pytest.param(_write_faults, ["annotations[0]", "annotations[1]"], id="coco"),
        pytest.param(_write_voc_faults, ["a.xml", "b.xml"], id="voc"),
        pytest.param(_write_yolo_faults, ["a.txt`, line 2", "b.txt`, line 1"], id="yolo"),
    ],
)
def test_all_faults_are_listed_or_left_out(tmp_path, write, names):
    root = tmp_path / "source"
    format = write(root)
    with pytest.raises(UserError, match=r"1 more annotation is broken. .* `--skip-broken-annotations`"):
        conversion.convert(format, root, output=tmp_path / "out", num_workers=1)
    result = conversion.convert(format, root, output=tmp_path / "out", num_workers=1, dry_run=True)
    assert result.num_broken_annotations == 2
    text = _show(result)
    assert all(name in text for name in names), text
    dataset = read(format, root, is_lenient=True)
    check_red(dataset)
    assert sum(len(e.labels) for e in dataset.splits["train"]) == 1


def test_a_dry_run_lists_faults_where_nothing_else_is_left(tmp_path):
    lay_out(tmp_path / "source", {"Annotations/a.xml": red.xml()[:-9]}, ["JPEGImages/a.jpg"])
    result = conversion.convert("voc", tmp_path / "source", output=tmp_path / "out", num_workers=1, dry_run=True)
    assert "a.xml` is not valid XML" in _show(result)


def _show(result):
    text = io.StringIO()
    result.show(Console(file=text, width=300))
    return text.getvalue()


# --- every file and every annotation is accounted for ---


def test_the_summary_adds_up(tmp_path):
    files = {
        "data.yaml": "train: images\nnames: [red]\n",
        "labels/a.txt": _LINE + "0 .5 .5 0 0\n",
        "labels/stray.txt": _LINE,
        "extra.xml": red.xml(),
        "notes.md": "notes",
    }
    lay_out(tmp_path / "source", files, ["images/a.jpg", "images/empty.jpg", "elsewhere/b.jpg"])
    red.write(tmp_path / "source" / "images" / "c.jxl", b"x")
    red.write(tmp_path / "source" / "images" / "c.JP2", b"x")
    result = conversion.convert("yolo", tmp_path / "source", output=tmp_path / "out", num_workers=1, dry_run=True)
    account = result.account
    unused = {problem.file_name for problem in account.unused}
    assert unused == {
        "labels/stray.txt",
        "extra.xml",
        "notes.md",
        "images/c.jxl",
        "images/c.JP2",
        "elsewhere/b.jpg",
    }
    text = _show(result)
    assert "Images: 2 used (1 of them background, with no annotations), 3 unused" in text
    assert "Annotations: 2 read, 1 written (0 of them clipped), 1 boxes with no area dropped" in text
    for name in ("images/c.jxl", "labels/stray.txt", ".jxl is not supported", "elsewhere/b.jpg"):
        assert name in text
    assert json.loads(json.dumps(result.to_dict()))["account"]["num_background"] == 1


def test_labels_in_another_place_are_named(tmp_path):
    files = {"data.yaml": "train: images\nnames: [red]\n", "annotations/a.txt": _LINE}
    lay_out(tmp_path / "source", files, ["images/a.jpg"])
    with pytest.raises(UserError, match=r"no boxes at all.* Looked for a.txt in .*labels.* 1 .txt file in annot"):
        conversion.convert("yolo", tmp_path / "source", output=tmp_path / "out", num_workers=1)
    lay_out(tmp_path / "voc", {"notes/a.json": "{}"}, ["images/a.jpg"])
    with pytest.raises(UserError, match=r"no VOC annotations.* 1 .jpg file in images/"):
        conversion.convert("voc", tmp_path / "voc", output=tmp_path / "out", num_workers=1)


# --- splits ---


@pytest.mark.parametrize("name", ["default", "Train", "job_12", "val", "Testing"])
def test_a_single_split_of_any_name_is_training_data(tmp_path, name):
    document = red.coco([f"{i}.jpg" for i in range(4)])
    files = {f"annotations/instances_{name}.json": document}
    lay_out(tmp_path / "source", files, [f"images/{name}/{i}.jpg" for i in range(4)])
    result = conversion.convert(
        "coco", tmp_path / "source", output=tmp_path / "out", num_workers=1, dry_run=True, val_fraction=0.25
    )
    assert {split: figures.num_examples for split, figures in result.splits.items()} == {"train": 3, "val": 1}
    kept = read("coco", tmp_path / "source", splits=(name,))
    assert list(kept.splits) == [sources.normalize_split(name)]


def test_an_empty_split_is_left_out_unless_it_is_train(tmp_path):
    lay_out(tmp_path, {"data.yaml": _YAML, "labels/train/a.txt": _LINE}, ["images/train/a.jpg"])
    (tmp_path / "images" / "val").mkdir()
    dataset = read("yolo", tmp_path)
    assert list(dataset.splits) == ["train"]
    assert kinds(dataset) == ["splits without images skipped"]


def test_fractions_where_px_are_expected_are_refused(tmp_path):
    lay_out(tmp_path, {"instances.json": red.coco(bbox=[0.25, 0.25, 0.375, 0.41])}, ["images/a.jpg"])
    with pytest.raises(UserError, match="look like fractions"):
        read("coco", tmp_path)


def test_a_split_that_is_asked_for_must_be_there(tmp_path):
    text = "train: images/train\nval: images/val\ntest: ../test/images\nnames: [red]\n"
    files = {"data.yaml": text, "labels/train/a.txt": _LINE, "labels/val/b.txt": _LINE}
    lay_out(tmp_path, files, ["images/train/a.jpg", "images/val/b.jpg"])
    assert list(read("yolo", tmp_path, splits=("train", "val")).splits) == ["train", "val"]
    with pytest.raises(UserError, match=r"`test` is `../test/images`, but .* was not found"):
        read("yolo", tmp_path, splits=("test",))
    with pytest.raises(UserError, match=r"`splits` names `extra`"):
        read("yolo", tmp_path, splits=("extra",))
