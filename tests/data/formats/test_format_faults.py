"""Faults in annotation files: one line that names the file, the place and the field. And formats that are not known."""

import json

import pytest
from little_formats import RED, cvat_box, cvat_xml, draw, label_studio_region, labelme, save, via_region, write_labelme
from little_formats import write_tensorflow_csv as write_csv

from efficientdet.data import conversion, recognition, registry
from efficientdet.errors import UserError

_HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
_OPEN_IMAGES = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
_VIA = "filename,region_shape_attributes,region_attributes\n"


def _labelme(**changes):
    """Returns a labelme document whose first shape is changed."""
    document = labelme("a.png", [("red", RED)])
    document["shapes"][0] |= changes
    return document


def _cvat(text, size='width="160" height="120"'):
    return cvat_xml(f'<image id="7" name="a.png" {size}>{text}</image>')


def _studio(**value):
    region = label_studio_region("red", RED, **value)
    return [{"id": 5, "data": {"image": "a.png"}, "annotations": [{"result": [region]}]}]


def _via(**shape):
    region = via_region("red", RED)
    region["shape_attributes"] |= shape
    return {"a.png1": {"filename": "a.png", "size": 1, "regions": [region]}}


def _createml(**coordinates):
    box = {"x": 1, "y": 1, "width": 1, "height": 1} | coordinates
    return [{"image": "a.png", "annotations": [{"label": "red", "coordinates": box}]}]


def _supervisely(**changes):
    entry = {"classTitle": "red", "geometryType": "rectangle", "points": {"exterior": [[1, 1], [2, 2]]}}
    return {"size": {"height": 120, "width": 160}, "objects": [entry | changes]}


def _folder(bbox=(1, 1, 2, 2), categories=("red",)):
    return {"file_name": "a.png", "objects": {"bbox": [bbox], "categories": categories}}


_FAULTS = {
    "csv word": ("csv", "a.csv", _HEADER + "a.png,160,120,red,4O,30,100,80", r"a.csv`, line 2: `xmin` is '4O'"),
    "csv decimal comma": ("csv", "a.csv", "a.png;40,5;30;100;80;red\n", r"no annotated images in this format"),
    "csv half a box": ("csv", "a.csv", _HEADER + "a.png,160,120,red,,30,100,80", r"line 2: `xmin` is ''"),
    "csv no class": ("csv", "a.csv", _HEADER + "a.png,160,120,,40,30,100,80", r"line 2: `class` is missing"),
    "csv no file": ("csv", "a.csv", _HEADER + ",160,120,red,40,30,100,80", r"line 2: `filename` is missing"),
    "csv short row": (
        "csv",
        "a.csv",
        _HEADER + "a.png,160,120,red,40,30,100",
        "line 2: 7 cells, but the first line has",
    ),
    "csv half a px": ("csv", "a.csv", _HEADER + "a.png,160.5,120,red,4,3,10,8", "line 2: `width` is 160.5"),
    "csv two sizes": (
        "csv",
        "a.csv",
        _HEADER + "a.png,160,120,red,4,3,10,8\na.png,120,160,red,4,3,10,9",
        "line 3: `a.png` is declared as 160 x 120 px .* 120 x 160 px earlier",
    ),
    "csv quote": ("csv", "a.csv", _HEADER + '"a"b.png,160,120,red,4,3,10,8', "line 2: not valid CSV"),
    "csv in another encoding": (
        "csv",
        "a.csv",
        (_HEADER + "caf\u00e9.png,160,120,red,4,3,10,8\n").encode("latin-1"),
        "a.csv`, after line 1: not valid UTF-8",
    ),
    "csv without header": ("csv", "a.csv", "a.png,40,30,100,80,red\na.png,40,x,100,80,red", "line 2: `y1` is 'x'"),
    "labelme text": (
        "labelme",
        "a.json",
        _labelme(points=[["40", 30], [1, 2]]),
        r"shapes\[0\]: `points\[0\]\[0\]` is",
    ),
    "labelme bool": ("labelme", "a.json", _labelme(points=[[True, 30], [1, 2]]), "True; expected a number"),
    "labelme points": ("labelme", "a.json", _labelme(points=[[1, 2], [3, 4], [5, 6]]), "a rectangle with 3 points"),
    "labelme label": ("labelme", "a.json", _labelme(label=7), r"shapes\[0\]: `label` is 7; expected text"),
    "labelme empty label": ("labelme", "a.json", _labelme(label=" "), "`label` is ' '; expected text"),
    "labelme shape": ("labelme", "a.json", _labelme(shape_type="blob"), "`shape_type` is 'blob'; expected one of"),
    "labelme height": (
        "labelme",
        "a.json",
        _labelme() | {"imageHeight": "120"},
        "`imageHeight` is '120'; expected a number",
    ),
    "labelme cut short": ("labelme", "a.json", json.dumps(_labelme())[:-9], "a.json` is not valid JSON"),
    "labelme key twice": (
        "labelme",
        "a.json",
        json.dumps(_labelme())[:-1] + ', "shapes": []}',
        "a.json` has `shapes` twice in one entry",
    ),
    "labelme name": ("labelme", "a.json", _labelme() | {"imagePath": "a\0.png"}, "expected a file name"),
    "cvat number": ("cvat", "a.xml", _cvat(cvat_box("red", (1, 2, "x", 4))), r"image 7: <box> 0: `ybr` is 'x'"),
    "cvat label": ("cvat", "a.xml", _cvat(cvat_box("", RED)), "image 7: <box> 0: `label` is missing"),
    "cvat points": ("cvat", "a.xml", _cvat('<polygon label="red" points="1,2;3"/>'), "`points` contains '3'"),
    "cvat shape": ("cvat", "a.xml", _cvat('<blob label="red"/>'), "<blob> 0: unknown shape; expected box"),
    "cvat size": ("cvat", "a.xml", _cvat("", 'width="wide" height="120"'), "image 7: `width` is 'wide'"),
    "cvat cut short": ("cvat", "a.xml", _cvat("")[:-9], "a.xml` is not valid XML"),
    "cvat entities": (
        "cvat",
        "a.xml",
        '<!DOCTYPE a [<!ENTITY b "c">]><annotations><image>&b;</image></annotations>',
        "a.xml` is not valid XML",
    ),
    "open images px": (
        "openimages",
        "a.csv",
        _OPEN_IMAGES + "a,/m/0r,40,100,30,80,0",
        "line 2: `ymin` is 30; expected a fr",
    ),
    "open images flag": ("openimages", "a.csv", _OPEN_IMAGES + "a,/m/0r,0,1,0,1,yes", "`IsGroupOf` is 'yes'"),
    "createml text": ("createml", "a.json", _createml(x="1"), r"\[0\].annotations\[0\]: `coordinates.x` is '1'"),
    "createml missing": ("createml", "a.json", _createml(width=None), "`coordinates.width` is missing"),
    "label studio text": (
        "labelstudio",
        "a.json",
        _studio(x="1"),
        "task 5: region 0: `x` is '1'; expected a number",
    ),
    "label studio labels": ("labelstudio", "a.json", _studio(rectanglelabels=[]), r"region 0: the labels are \[\]"),
    "label studio turned": (
        "labelstudio",
        "a.json",
        [
            {
                "id": 5,
                "image": "a.png",
                "label": [{"x": 1, "original_width": 2, "image_rotation": 90, "rectanglelabels": ["a"]}],
            }
        ],
        "drawn on an image rotated by 90 degrees",
    ),
    "label studio two images": (
        "labelstudio",
        "a.json",
        [{"id": 5, "data": {"left": "a.png", "right": "b.png"}, "annotations": []}],
        "task 5: 2 fields name an image",
    ),
    "via text": ("via", "a.json", _via(x="1"), r"a.png1: regions\[0\]: `x` is '1'; expected a number"),
    "via shape": ("via", "a.json", _via(name="blob"), r"the shape is 'blob'; expected one of rect"),
    "via csv": (
        "via",
        "a.csv",
        _VIA + 'a.png,"{""name"": ","{}"',
        "line 2: `region_shape_attributes` is not valid JSON",
    ),
    "supervisely text": (
        "supervisely",
        "a.png.json",
        _supervisely(points={"exterior": [["1", 2]]}),
        r"objects\[0\]: `points.exterior\[0\]\[0\]` is '1'",
    ),
    "supervisely bitmap": (
        "supervisely",
        "a.png.json",
        _supervisely(geometryType="bitmap", bitmap={"origin": [1, 2], "data": "AAAA"}),
        r"objects\[0\]: `bitmap.data` cannot be decoded",
    ),
    "imagefolder box": (
        "imagefolder",
        "metadata.jsonl",
        _folder(bbox=(1, 2, 3)),
        r"line 1: `bbox\[0\]` is \[1, 2, 3\]",
    ),
    "imagefolder lengths": ("imagefolder", "metadata.jsonl", _folder(categories=()), "lists of equal length"),
    "imagefolder class": ("imagefolder", "metadata.jsonl", _folder(categories=(1.5,)), "the category is '1.5'"),
    "imagefolder row": ("imagefolder", "metadata.jsonl", "{", "metadata.jsonl`, line 1 is not valid JSON"),
}


@pytest.mark.parametrize(("format", "name", "content", "words"), _FAULTS.values(), ids=_FAULTS)
def test_a_fault_is_one_line_that_names_the_place(tmp_path, format, name, content, words):
    draw(tmp_path / "a.png")
    save(tmp_path / name, content)
    with pytest.raises(UserError, match=words) as caught:
        registry.read(format, tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_disagree_on_fractions_are_refused(tmp_path):
    draw(tmp_path / "a.png")
    save(tmp_path / "train.csv", _HEADER + "a.png,160,120,red,40,30,100,80\n")
    save(tmp_path / "val.csv", _HEADER + "a.png,160,120,red,0.25,0.25,0.6,0.6\n")
    with pytest.raises(UserError, match=r"train.csv` has boxes in px, but `.*val.csv` has fractions"):
        registry.read("csv", tmp_path)


def test_an_image_that_is_missing_is_named(tmp_path):
    draw(tmp_path / "in" / "a.png")
    rows = "a.png,160,120,red,40,30,100,80\n../../etc/gone.png,160,120,red,4,3,10,8\n"
    save(tmp_path / "in" / "a.csv", _HEADER + rows)
    with pytest.raises(UserError, match=r"gone.png` is missing: there is no file .*in/gone.png"):
        conversion.convert("csv", tmp_path / "in", output=tmp_path / "out", num_workers=1)
    result = conversion.convert(
        "auto", tmp_path / "in", output=tmp_path / "out", num_workers=1, skip_broken_images=True
    )
    assert (result.format, result.num_broken, result.splits["train"].num_examples) == ("csv", 1, 1)


_KITTI = "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
_UNKNOWN = {
    "nothing": (
        "x.md",
        "",
        r"is not a dataset in a known format. It contains 2 .xyz files in `labels/`, 1 .md file at the top level",
    ),
    "KITTI": ("label_2/a.txt", _KITTI, "`label_2/a.txt` looks like KITTI labels"),
    "VoTT": ("a-asset.json", {"asset": {}, "regions": []}, "looks like VoTT JSON"),
    "CVAT video": (
        "a.xml",
        "<annotations><track id='0'/></annotations>",
        "CVAT's video format .export as `CVAT for im",
    ),
    "TFRecords": ("a.tfrecord", "x", "`a.tfrecord` looks like TFRecords .train on them directly"),
    "Parquet": ("data/train-00000.parquet", "x", "looks like a Parquet file"),
    "archive": ("set.zip", "x", "looks like an archive .unpack it first"),
    "captions": ("a.json", {"images": [], "annotations": []}, "looks like COCO captions"),
    "records": (
        "dataset.json",
        {"version": 1, "format": "coco", "source": "x", "categories": [], "splits": {}},
        "`dataset.json` is already converted",
    ),
    "broken JSON": ("a.json", "{", "`a.json` is a file that cannot be read: .*a.json` is not valid JSON"),
}


@pytest.mark.parametrize(("name", "content", "words"), _UNKNOWN.values(), ids=_UNKNOWN)
def test_a_format_that_is_not_known_is_named_as_what_it_looks_like(tmp_path, name, content, words):
    for other in ("a.xyz", "b.xyz"):
        save(tmp_path / "labels" / other, "")
    save(tmp_path / name, content)
    with pytest.raises(UserError, match=words) as caught:
        recognition.recognize(tmp_path)
    assert "\n" not in str(caught.value)
    assert "Supported formats: coco, voc, yolo, csv" in str(caught.value)


def test_two_formats_in_one_folder_are_for_the_user_to_choose(tmp_path):
    write_labelme(tmp_path)
    write_csv(tmp_path)
    words = r"looks like csv \(see `data/train_labels.csv`\) and labelme \(see `train/a b.json`\); choose one"
    with pytest.raises(UserError, match=words):
        recognition.recognize(tmp_path)


@pytest.mark.parametrize(
    ("format", "name", "content"),
    [("labelme", "annotations/a.json", _labelme()), ("cvat", "Annotations/a.xml", _cvat(""))],
)
def test_files_in_folders_that_others_use_are_told_by_their_content(tmp_path, format, name, content):
    draw(tmp_path / "images" / "a.png")
    save(tmp_path / name, content)
    assert recognition.recognize(tmp_path) == format


def test_a_reader_that_finds_nothing_says_what_the_folder_holds(tmp_path):
    write_labelme(tmp_path)
    with pytest.raises(
        UserError, match=r"no annotated images in this format. It contains 2 .json files in `train/`, 2 .png"
    ):
        registry.read("cvat", tmp_path)
    with pytest.raises(UserError, match=r"`source` .*gone was not found; expected a folder"):
        registry.read("cvat", tmp_path / "gone")
