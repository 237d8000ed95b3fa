"""More of what people bring, a row a case: the box in the records lies on the red rectangle, or one line says why not.

The kinds are those of `test_field_cases`; here the format is never named, and what is measured is what training reads.
"""

import json
import os
import unicodedata

import numpy as np
import pytest
import red_images as red

from efficientdet.data import conversion, sources
from efficientdet.data.parsing import corners
from efficientdet.data.records import store, tfrecord
from efficientdet.errors import UserError

_LINE = f"0 {red.YOLO}\n"
_YAML = "train: images/train\nval: images/val\nnames: [red]\n"
_ONE = "train: images\nnames: [red]\n"
_CSV = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
_ROW = "a.jpg,160,120,red,40,30,100,80\n"
_TWO = ["images/train/a.jpg", "images/val/b.jpg"]
_LABELS = {"labels/train/a.txt": _LINE, "labels/val/b.txt": _LINE}
_BOTH = {"train": 1, "val": 1}


def _coco(names=("a.jpg",), **fields):
    """Gives a COCO document whose lists `fields` replace, or whose one annotation they change."""
    lists = {name: value for name, value in fields.items() if name in ("images", "annotations", "categories")}
    return red.coco(names, **{k: v for k, v in fields.items() if k not in lists}) | lists


def _without(document, *names):
    for entry in document["annotations"]:
        for name in names:
            entry.pop(name)
    return document


def _images(**changes):
    return [{"id": 1, "file_name": "a.jpg", "width": 160, "height": 120} | changes]


def _shape(element):
    """Gives a VOC annotation in which another element is in the place of `bndbox`."""
    text = red.xml()
    return text[: text.index("<bndbox>")] + element + text[text.index("</object>") :]


_POLYGON = "<polygon><x1>40</x1><y1>30</y1><x2>100</x2><y2>30</y2><x3>100</x3><y3>80</y3></polygon>"
_POINTS = "<polygon><pt><x>40</x><y>30</y></pt><pt><x>100</x><y>80</y></pt><pt><x>40</x><y>80</y></pt></polygon>"
_ROTATED = "<robndbox><cx>70</cx><cy>55</cy><w>50</w><h>60</h><angle>1.570796</angle></robndbox>"
_OUTLINE = [[40, 30, 100, 30, 100, 80, 40, 80]]
_CORNERS = [40, 30, 100, 80]
_DETECTION = [{"image_id": 1, "category_id": 1, "bbox": red.BBOX, "score": 0.5}]
_CAPTIONS = {"images": _images(), "annotations": [{"id": 1, "image_id": 1, "caption": "a red box"}]}
_FOLDER_ROW = {"file_name": "a.jpg", "objects": {"bbox": [_CORNERS], "area": [3000], "categories": ["red"]}}
_NFD = unicodedata.normalize("NFD", "café")
_SPLITS = "set,filename,class,xmin,ymin,xmax,ymax\n"
_NAN = "b.jpg,160,120,nan,nan,nan,nan,nan\n"
_OPEN = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na.jpg,/m/1,0.25,0.625,0.25,0.666667,False\n"
_MODEL = "nc: 1\nbackbone: [[-1, 1, Conv, [64, 3, 2]]]\n"

# name -> (files, images, boxes of each split, words that are said; none: nothing is)
_READ = {
    # --- YOLO: where things are ---
    "YAML and labels of Windows": (
        {"data.yaml": "\ufeff" + _YAML.replace("\n", "\r\n")} | dict.fromkeys(_LABELS, f"\ufeff{_LINE}\r\n  \r\n"),
        _TWO,
        _BOTH,
        "",
    ),
    "a stale absolute path": ({"data.yaml": "path: /home/me/set\n" + _YAML} | _LABELS, _TWO, _BOTH, ""),
    "a stale relative path": ({"data.yaml": "path: ../datasets/set\n" + _YAML} | _LABELS, _TWO, _BOTH, ""),
    "a path to the folder beside": (
        {"set.yaml": "path: data\n" + _YAML} | {f"data/{name}": text for name, text in _LABELS.items()},
        [f"data/{name}" for name in _TWO],
        _BOTH,
        "",
    ),
    "YAML in capitals": ({"Data.YAML": _YAML} | _LABELS, _TWO, _BOTH, ""),
    "two YAML files that agree": ({"coco8.yaml": _YAML, "copy.yml": _YAML} | _LABELS, _TWO, _BOTH, ""),
    "the YAML file of a model beside": ({"set.yaml": _YAML, "yolov8n.yaml": _MODEL} | _LABELS, _TWO, _BOTH, ""),
    "an archive in an archive": (
        {"a/b/c/set/data.yaml": _YAML, "__MACOSX/a/b/._data.yaml": b"\0"}
        | {f"a/b/c/set/{name}": text for name, text in _LABELS.items()},
        [f"a/b/c/set/{name}" for name in _TWO],
        _BOTH,
        "",
    ),
    "lists of folders": (
        {"data.yaml": _YAML.replace("images/train", "[images/x, images/y]"), "labels/x/a.txt": _LINE}
        | {"labels/y/c.txt": _LINE, "labels/val/b.txt": _LINE},
        ["images/x/a.jpg", "images/y/c.jpg", "images/val/b.jpg"],
        {"train": 2, "val": 1},
        "",
    ),
    "list files of Windows": (
        {"data.yaml": "train: train.txt\nnames: [red]\n", "train.txt": "\ufeffimages\\a b.jpg\r\n\r\n"}
        | {"labels/a b.txt": _LINE},
        ["images/a b.jpg"],
        {"train": 1},
        "",
    ),
    "an image twice in a list": (
        {"data.yaml": "train: train.txt\nnames: [red]\n", "train.txt": "images/a.jpg\n./images/a.jpg\n"}
        | {"labels/a.txt": _LINE},
        ["images/a.jpg"],
        {"train": 1},
        sources.REPEATED_IMAGE,
    ),
    "classes.txt once a split": (
        {"labels/train/classes.txt": "red\n", "labels/val/classes.txt": "red\n"} | _LABELS,
        _TWO,
        _BOTH,
        "",
    ),
    "classes.txt in each split": (
        {"train/labels/classes.txt": "red\n", "train/labels/a.txt": _LINE, "valid/labels/b.txt": _LINE},
        ["train/images/a.jpg", "valid/images/b.jpg"],
        _BOTH,
        "",
    ),
    "folders inside folders": ({"classes.txt": "red\n", "x/y/a.txt": _LINE}, ["x/y/a.jpg"], {"train": 1}, ""),
    "obj.names without obj.data": ({"obj.names": "red\n", "obj/a.txt": _LINE}, ["obj/a.jpg"], {"train": 1}, ""),
    "YAML of names alone": (
        {"data.yaml": "names: [red]\nnc: 1\n", "train/labels/a.txt": _LINE, "valid/labels/b.txt": _LINE},
        ["train/images/a.jpg", "valid/images/b.jpg"],
        _BOTH,
        "",
    ),
    "notes.json of Label Studio": (
        {"classes.txt": "red\n", "notes.json": {"categories": [], "info": {}}, "labels/1f-a.txt": _LINE},
        ["images/1f-a.jpg"],
        {"train": 1},
        "",
    ),
    "classes.txt in another order": (
        {"data.yaml": "train: images\nnames: [red, blue]\n", "classes.txt": "blue\nred\n", "labels/a.txt": _LINE},
        ["images/a.jpg"],
        {"train": 1},
        "lists of classes ignored, since they differ",
    ),
    "names with dots, spaces, capitals": (
        {"data.yaml": _ONE, "labels/IMG 1.0 (2).rf.1f.txt": _LINE},
        ["images/IMG 1.0 (2).rf.1f.JPEG"],
        {"train": 1},
        "",
    ),
    # --- YOLO: values ---
    "numbers in every notation": (
        {"data.yaml": _ONE, "labels/a.txt": "0.0\t4.375e-01 4.58333E-1\t+.375 0.416667  \n\n\n"},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "UTF-16 labels": ({"data.yaml": _ONE, "labels/a.txt": _LINE.encode("utf-16")}, ["images/a.jpg"], {"train": 1}, ""),
    "a box of nan": (
        {"data.yaml": _ONE, "labels/a.txt": _LINE + "0 nan nan nan nan\n"},
        ["images/a.jpg"],
        {"train": 1},
        "NaN or infinite coordinates",
    ),
    "an empty label file and none": (
        {"data.yaml": _ONE, "labels/a.txt": _LINE, "labels/b.txt": ""},
        ["images/a.jpg", "images/b.jpg", "images/c.jpg"],
        {"train": 1},
        "",
    ),
    "boxes, polygons and a closed polygon": (
        {"data.yaml": _ONE, "labels/a.txt": "0 .25 .25 .625 .25 .625 .666667 .25 .666667 .25 .25\n" + _LINE},
        ["images/a.jpg"],
        {"train": 2},
        "",
    ),
    "an oriented box at 45 degrees": (
        {"data.yaml": _ONE, "labels/a.txt": "0 .4375 .25 .625 .458333 .4375 .666667 .25 .458333\n"},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    # --- COCO: which file ---
    "instances beside three other tasks": (
        {"annotations/instances_train.json": red.coco(), "annotations/captions_train.json": _CAPTIONS}
        | {"annotations/person_keypoints_train.json": red.coco(), "annotations/panoptic_train.json": _CAPTIONS},
        ["train/a.jpg"],
        {"train": 1},
        "",
    ),
    "detections called instances": (
        {"annotations/instances_val.json": red.coco(), "annotations/instances_val_results.json": _DETECTION},
        ["val/a.jpg"],
        {"train": 1},
        "has only one",
    ),
    "predictions.json beside": (
        {"instances.json": red.coco(), "predictions.json": _DETECTION},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "FiftyOne's folders": (
        {"train/labels.json": red.coco(), "validation/labels.json": red.coco(["b.jpg"])},
        ["train/data/a.jpg", "validation/data/b.jpg"],
        _BOTH,
        "",
    ),
    "Objects365's patches": (
        {"zhiyuan_objv2_train.json": red.coco(["images/v1/patch8/a.jpg"])},
        ["train/patch8/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "UTF-16 JSON": ({"instances.json": json.dumps(red.coco()).encode("utf-16")}, ["images/a.jpg"], {"train": 1}, ""),
    "a JSON file of Windows": (
        {"instances.json": b"\xef\xbb\xbf" + json.dumps(red.coco(), indent=1).replace("\n", "\r\n").encode()},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    # --- COCO: names ---
    "a path of Windows": (
        {"instances.json": red.coco(["D:\\set\\images\\a.jpg"])},
        ["images/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "a name without its ending": (
        {"instances.json": red.coco(["a"])},
        ["images/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "an upload of Label Studio by its first name": (
        {"result.json": red.coco(["images/1f2e3d4c-a.jpg"])},
        ["images/a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "an ending in capitals": ({"instances.json": red.coco()}, ["images/a.JPG"], {"train": 1}, "by their file name"),
    "a decomposed name": (
        {"instances.json": red.coco([f"{_NFD}.jpg"])},
        ["images/café.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "signs in a name": (
        {"instances.json": red.coco(["it's a+b 100%#1.jpg"])},
        ["images/it's a+b 100%#1.jpg"],
        {"train": 1},
        "",
    ),
    # --- COCO: values ---
    "numbers as text": (
        {"instances.json": _coco(bbox=["4e1", "30", "60.0", "50"], area="3000", iscrowd="False")},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "blank flag and area": ({"instances.json": _coco(iscrowd="", area="")}, ["images/a.jpg"], {"train": 1}, ""),
    "ids as decimal text": (
        {"instances.json": _coco(category_id="1.0", image_id="1.0", images=_images(id=1.0))},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "class 0": (
        {"instances.json": _coco(category_id=0, categories=[{"id": 0, "name": "red"}])},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "a class below 0": (
        {"instances.json": _coco(category_id=-1, categories=[{"id": -1, "name": "red"}])},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "an image entry twice": (
        {"instances.json": _coco(images=_images() * 2)},
        ["images/a.jpg"],
        {"train": 1},
        sources.REPEATED_IMAGE,
    ),
    "sizes of 0": ({"instances.json": _coco(images=_images(width=0, height=0))}, ["images/a.jpg"], {"train": 1}, ""),
    "sizes as text": (
        {"instances.json": _coco(images=_images(width="160", height="120.0"))},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "corners, as the area says": (
        {"instances.json": _coco(bbox=_CORNERS)},
        ["images/a.jpg"],
        {"train": 1},
        corners.TOLD,
    ),
    "corners, as the polygon says": (
        {"instances.json": _without(_coco(bbox=_CORNERS, segmentation=_OUTLINE), "area")},
        ["images/a.jpg"],
        {"train": 1},
        corners.TOLD,
    ),
    "a polygon that fits the width": (
        {"instances.json": _without(_coco(segmentation=_OUTLINE), "area")},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "corners in an imagefolder": ({"train/metadata.jsonl": _FOLDER_ROW}, ["train/a.jpg"], {"train": 1}, corners.TOLD),
    # --- VOC ---
    "XML with a namespace": (
        {"Annotations/a.xml": red.xml().replace("<annotation>", '<annotation verified="yes" xmlns="http://x/y">')},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    "XML after an empty line": (
        {"Annotations/a.xml": "\r\n" + red.xml(head='<?xml version="1.0" encoding="utf-8"?>')},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    "XML with blanks around values": (
        {"Annotations/a.xml": red.xml(box=(" 40\n", "\t3.0e1", "1e2", "80.")).replace(">red<", ">\n red\n<")},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    "a part with a box of its own": (
        {"Annotations/a.xml": red.xml().replace("</object>", "<part><bndbox><xmin>1</xmin></bndbox></part></object>")},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    "a polygon with numbered corners": (
        {"Annotations/a.xml": _shape(_POLYGON)},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "outlines replaced by the boxes",
    ),
    "a polygon of LabelMe": (
        {"Annotations/a.xml": _shape(_POINTS)},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "outlines replaced by the boxes",
    ),
    "a rotated box of roLabelImg": (
        {"Annotations/a.xml": _shape(_ROTATED)},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "rotated boxes replaced",
    ),
    "a path for want of a filename": (
        {"x.xml": red.xml().replace("filename>a.jpg</filename>", "path>C:\\set\\a.jpg</path>")},
        ["a.jpg"],
        {"train": 1},
        "by their file name",
    ),
    "folders called like splits": (
        {"train_annot/a.xml": red.xml(), "val_annot/b.xml": red.xml("b.jpg")},
        ["train/a.jpg", "val/b.jpg"],
        _BOTH,
        "",
    ),
    "lists of Windows": (
        {"Annotations/a.xml": red.xml(), "ImageSets/Main/Train.txt": "\ufeffa\t1\r\n\r\n"},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    "files of a desktop": (
        {"Annotations/a.xml": red.xml(), "pom.xml": "<project/>", "Thumbs.db": "", "desktop.ini": "", ".DS_Store": ""},
        ["JPEGImages/a.jpg"],
        {"train": 1},
        "",
    ),
    # --- CSV ---
    "CSV in UTF-16": ({"a.csv": (_CSV + _ROW).encode("utf-16")}, ["images/a.jpg"], {"train": 1}, ""),
    "Unicode text of Excel": (
        {"a.csv": (_CSV + _ROW).replace(",", "\t").encode("utf-16")},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "TSV": ({"a.tsv": (_CSV + _ROW).replace(",", "\t")}, ["images/a.jpg"], {"train": 1}, ""),
    "sep= of Excel": (
        {"a.csv": "\ufeffsep=;\r\n" + (_CSV + _ROW).replace(",", ";").replace("\n", "\r\n")},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "a comma in a name": ({"a.csv": _CSV + f'"b, {_ROW[:5]}",{_ROW[6:]}'}, ["images/b, a.jpg"], {"train": 1}, ""),
    "an unnamed index of pandas": ({"a.csv": f",{_CSV}0,{_ROW}"}, ["images/a.jpg"], {"train": 1}, ""),
    "a background of pandas": (
        {"a.csv": _CSV + _ROW + _NAN},
        ["images/a.jpg", "images/b.jpg"],
        {"train": 1},
        "",
    ),
    "image ids": (
        {"a.csv": "image_id,label,x_min,y_min,x_max,y_max\na,red,40,30,100,80\n"},
        ["images/a.jpg"],
        {"train": 1},
        "by name in a different folder",
    ),
    "a column of splits": (
        {"a.csv": _SPLITS + "TRAIN,a.jpg,red,40,30,100,80\nValid,b.jpg,red,40,30,100,80\n"},
        ["images/a.jpg", "images/b.jpg"],
        _BOTH,
        "",
    ),
    "a set that is not a split": (
        {"a.csv": _SPLITS + "7,a.jpg,red,40,30,100,80\n"},
        ["images/a.jpg"],
        {"train": 1},
        "with unused columns",
    ),
    "a class table with a header": (
        {"a.csv": "images/a.jpg,40,30,100,80,red\n", "classes.csv": "class,id\nred,0\n"},
        ["images/a.jpg"],
        {"train": 1},
        "",
    ),
    "Open Images with endings": (
        {"train-annotations-bbox.csv": _OPEN, "class-descriptions.csv": "/m/1,red\n"},
        ["train/a.jpg"],
        {"train": 1},
        "",
    ),
}


def _lay_out(root, files, images):
    for name, content in files.items():
        if isinstance(content, str | bytes):
            red.write(root / name, content)
        else:
            red.write_json(root / name, content)
    for name in images:
        red.draw(root / name)


def _convert(root, **options):
    return conversion.convert("auto", root / "source", output=root / "out", num_workers=1, **options)


def _check_records(folder, result):
    """Checks that each box of the records lies on the red rectangle of its image."""
    for split, figures in result.splits.items():
        if not figures.num_boxes:
            continue
        opened = store.open_records(str(folder), split)
        for number in range(len(opened.lengths)):
            record = tfrecord.parse(store.read(opened, number))
            jpeg = record["encoded"].numpy()
            for box in record["boxes"].numpy() * [red.HEIGHT, red.WIDTH, red.HEIGHT, red.WIDTH]:
                np.testing.assert_allclose(box, red.find_red(jpeg), atol=1)  # JPEG blurs the edge


@pytest.mark.parametrize(("files", "images", "splits", "said"), _READ.values(), ids=_READ)
def test_a_case_is_read(tmp_path, files, images, splits, said):
    _lay_out(tmp_path / "source", files, images)
    result = _convert(tmp_path)
    assert {name: figures.num_boxes for name, figures in result.splits.items()} == splits
    assert {category.name for category in result.categories} <= {"red", "blue"}
    assert sum(figures.num_examples for figures in result.splits.values()) == len(images)
    _check_records(tmp_path / "out", result)
    kinds = list(result.counts())
    assert any(said in kind for kind in kinds) if said else not kinds, result.problems


# name -> (files, images, words of the refusal)
_REFUSED = {
    "YAML files that differ": (
        {"one.yaml": _ONE, "two.yml": _ONE.replace("red", "blue"), "labels/a.txt": _LINE},
        r"one.yaml` and two.yml both have `names`; rename the right one to data.yaml",
    ),
    "class lists that differ": (
        {"labels/train/classes.txt": "red\n", "labels/val/classes.txt": "blue\n"} | _LABELS,
        r"train/classes.txt` and .*val/classes.txt differ, .* pass the right list with `--classes`",
    ),
    "names as text": (
        {"data.yaml": "train: images\nnames: red\n", "labels/a.txt": _LINE},
        r"data.yaml`: `names` is 'red'; expected a list of class names, such as \[cat, dog\]",
    ),
    "names that are missing": (
        {"data.yaml": "train: images\nnc: 1\nnames:\n", "labels/a.txt": _LINE},
        r"data.yaml` has no `names`; add a list .* `--classes` with a file",
    ),
    "names as objects": ({"data.yaml": "train: images\nnames: [{a: 1}]\n"}, r"class 0 in `names` is .*expected text"),
    "decimal commas": (
        {"data.yaml": _ONE, "labels/a.txt": _LINE.replace(".", ",")},
        r"a.txt`, line 1: '0 0,4375 .* is not all numbers",
    ),
    "a class beyond the names": ({"data.yaml": _ONE, "labels/a.txt": "-1 .5 .5 .1 .1\n"}, r"unknown class -1; `names`"),
    "COCO without classes": (
        {"instances.json": {k: v for k, v in red.coco().items() if k != "categories"}},
        r"`instances.json` looks like COCO without `categories`",
    ),
    "one id for two images": (
        {"instances.json": _coco(images=_images() + _images(file_name="b.jpg"))},
        r"two images with the id 1: 'a.jpg' and 'b.jpg'",
    ),
    "bbox in one text": ({"instances.json": _coco(bbox="[40, 30, 60, 50]")}, r"annotations\[0\]: `bbox` is '\[40, "),
    "annotations of other images": (
        {"instances.json": _coco(image_id=9)},
        r"no boxes at all, so .* 1 annotations of unlisted images dropped",
    ),
    "height and width swapped": (
        {"instances.json": _coco(images=_images(width=120, height=160))},
        r"`a.jpg` is 120 x 160 px .* says 160 x 120. Height and width may be swapped",
    ),
    "corners in the wrong order": (
        {"a.csv": _CSV + "a.jpg,160,120,red,100,80,40,30\n"},
        r"\(1 boxes with no area dropped\).*`--swap-corners`",
    ),
    "two boxes in an object": (
        {"a.xml": red.xml().replace("</bndbox>", "</bndbox><bndbox/>")},
        r"a.xml`: object 0 \(red\) has more than one `bndbox`; .*line 1",
    ),
    "two names of an object": (
        {"a.xml": red.xml().replace("</name>", "</name><name>blue</name>", 1)},
        r"a.xml`: <object> has more than one `name`; expected one",
    ),
    "two sides of a box": (
        {"a.xml": red.xml().replace("</ymax>", "</ymax><ymax>90</ymax>", 1)},
        r"a.xml`: <bndbox> has more than one `ymax`; expected one",
    ),
    "rows with a comma more": (
        {"a.csv": _CSV + _ROW[:-1] + ",\n"},
        r"a.csv`, line 2: 9 cells, but the first line has 8",
    ),
    "a box of text in an imagefolder": (
        {"train/metadata.jsonl": {"file_name": "a.jpg", "objects": {"bbox": [["4"] * 4], "categories": ["red"]}}},
        r"metadata.jsonl`, line 1: `bbox\[0\]\[0\]` is '4'",
    ),
    "a split of no name": (
        {"a.csv": _SPLITS + "train,a.jpg,red,40,30,100,80\nvla,a.jpg,red,40,30,100,80\n"},
        r"a.csv`, line 3: `set` is 'vla'; expected train, val, test",
    ),
    "a row without class": ({"a.csv": _CSV + _ROW.replace("red", "nan")}, r"a.csv`, line 2: `class` is missing"),
    "columns that could mean two things": (
        {"a.csv": "filename,label,x,y,w,h\na.jpg,red,40,30,60,50\n"},
        r"`a.csv` looks like a table with the columns `filename, label, x, y, w, h` \(expected filename, class",
    ),
    "Excel's own format": ({"a.xlsx": b"PK\3\4"}, r"`a.xlsx` looks like an Excel workbook \(save the sheet as"),
    "labels of OIDv4's toolkit": ({"Label/a.txt": "Red box 40 30 100 80\n"}, r"looks like OIDv4 toolkit labels"),
    "labels of DOTA": (
        {"labelTxt/a.txt": "imagesource:x\ngsd:0.1\n40 30 100 30 100 80 40 80 red 0\n"},
        r"looks like DOTA labels",
    ),
    "a list of keras-yolo3's": (
        {"classes.txt": "red\n", "train.txt": "images/a.jpg 40,30,100,80,0 1,2,3,4,0\n"},
        r"`train.txt` looks like a keras-yolo3 list",
    ),
    "panoptic segments alone": (
        {"annotations/panoptic_val2017.json": _coco(annotations=[{"image_id": 1, "segments_info": []}])},
        r"no COCO annotations; .* `panoptic_val2017.json` is for another task and has no boxes",
    ),
    "decimal commas in a table": (
        {"a.csv": (_CSV + _ROW).replace(",", ";").replace("40;", "40,5;")},
        r"a.csv`, line 2: `xmin` is '40,5'; expected a number with a decimal point",
    ),
    "labels of VisDrone": ({"annotations/a.txt": "40,30,60,50,1,4,0,0\n"}, r"looks like VisDrone or MOT labels"),
    "JSON lines of Azure": (
        {"labels.jsonl": {"image_url": "x", "label": []}},
        r"`labels.jsonl` looks like Azure JSON lines",
    ),
    "JSON of another program": (
        {"data.json": {"frames": {}, "note": 1}},
        r"`data.json` looks like JSON with the fields `frames, note`",
    ),
    "a list of COCO's documents": ({"instances.json": [red.coco()]}, r"looks like a list of COCO documents"),
    "an image of another ending": (
        {"images/instances.json": red.coco(["a.png"])},
        r"`a.png` is missing: there is no file .*a.png, but there is a.jpg",
    ),
    "CVAT without images": (
        {"data.yaml": "train: train.txt\nnames: [red]\n", "train.txt": "data/images/train/b.jpg\n"},
        r"None of its images were found, such as .*b.jpg; export the images too",
    ),
    "detections alone": ({"predictions.json": _DETECTION}, r"`predictions.json` looks like detections in COCO's"),
    "VOC and YOLO": (
        {"Annotations/a.xml": red.xml(), "data.yaml": _ONE, "labels/a.txt": _LINE},
        r"looks like voc .* yolo",
    ),
    "images alone": ({}, r"not a dataset in a known format. It contains 1 .jpg file in `images/`"),
}


@pytest.mark.parametrize(("files", "words"), _REFUSED.values(), ids=_REFUSED)
def test_a_case_is_refused_in_one_line(tmp_path, files, words):
    _lay_out(tmp_path / "source", files, ["images/a.jpg"])
    with pytest.raises(UserError, match=words) as caught:
        _convert(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"\(it is an empty file\); expected JPEG"),
        (b"<!DOCTYPE html><title>404</title>", r"\(it is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\n",
            r"\(it is a Git LFS pointer; run `git lfs pull`",
        ),
    ],
    ids=["empty", "web page", "Git LFS"],
)
def test_what_stands_in_the_place_of_an_image_is_named(tmp_path, content, words):
    _lay_out(tmp_path / "source", {"data.yaml": _ONE, "labels/a.txt": _LINE, "images/b.jpg": content}, ["images/a.jpg"])
    with pytest.raises(UserError, match=rf"`images/b.jpg` is not a supported image {words}"):
        _convert(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data.yaml", "is a file; pass the folder of the dataset, such as .*source"),
        ("set.zip", "is an archive; unpack it and pass the folder"),
        ("gone", "was not found; expected a folder with images and annotations"),
    ],
)
def test_a_source_that_is_not_a_folder_is_explained(tmp_path, name, words):
    _lay_out(tmp_path / "source", {"data.yaml": _ONE, "set.zip": b"PK"}, [])
    for format in ("auto", "yolo", "csv"):
        with pytest.raises(UserError, match=rf"`source` .*{name} {words}"):
            conversion.convert(format, tmp_path / "source" / name, output=tmp_path / "out")


def test_all_faults_are_listed_where_no_row_can_be_read(tmp_path):
    _lay_out(tmp_path / "source", {"a.csv": _CSV + (_ROW[:-1] + ",\n") * 3}, ["images/a.jpg"])
    result = _convert(tmp_path, dry_run=True)
    assert result.num_broken_annotations == 3
    with pytest.raises(UserError, match="no images in the split `train`"):
        _convert(tmp_path, skip_broken_annotations=True)


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_boxes_that_may_be_corners_are_said(tmp_path, format):
    """Nothing but leaving the image shows it, so they are read as the format defines."""
    if format == "coco":
        document = _without(_coco(["a.jpg", "b.jpg"], bbox=[60, 50, 140, 110]), "area")
        _lay_out(tmp_path / "source", {"instances.json": document}, ["images/a.jpg", "images/b.jpg"])
    else:
        _lay_out(tmp_path / "source", {"data.yaml": _ONE, "labels/a.txt": "0 .25 .25 .625 .667\n"}, ["images/a.jpg"])
    assert corners.MAY_BE in _convert(tmp_path).counts()


def test_one_area_of_a_mask_that_is_that_of_corners_by_chance_is_no_sign_of_them(tmp_path):
    """Masks fill a part of their boxes; of many, one fills as much as the corners would span."""
    document = _coco(["a.jpg", "b.jpg", "c.jpg"], bbox=[20, 30, 60, 50])
    for entry, area in zip(document["annotations"], (40 * 20, 1900, 1500), strict=True):
        entry["area"] = area
    _lay_out(tmp_path / "source", {"instances.json": document}, ["images/a.jpg", "images/b.jpg", "images/c.jpg"])
    assert corners.TOLD not in _convert(tmp_path).counts()
    document["annotations"] = document["annotations"][:1]
    assert corners.are_told(document["annotations"])


def test_one_box_that_leaves_its_image_is_no_sign_of_corners(tmp_path):
    document = _without(_coco(["a.jpg", "b.jpg", "c.jpg"]), "area")
    document["annotations"][0]["bbox"] = [60, 50, 140, 110]
    _lay_out(tmp_path / "source", {"instances.json": document}, ["images/a.jpg", "images/b.jpg", "images/c.jpg"])
    assert list(_convert(tmp_path).counts()) == ["boxes clipped to the image"]


def test_links_are_followed_and_pipes_are_not_waited_for(tmp_path):
    red.draw(tmp_path / "elsewhere" / "a.jpg")
    _lay_out(tmp_path / "source", {"data.yaml": _ONE, "labels/a.txt": _LINE}, [])
    (tmp_path / "source" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    for name in ("b.txt", "b.xml", "b.json"):
        os.mkfifo(tmp_path / "source" / "labels" / name)
    result = _convert(tmp_path)
    assert result.splits["train"].num_boxes == 1
    _check_records(tmp_path / "out", result)
