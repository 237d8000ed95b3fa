"""Habits of annotation tools: shapes, stale names, backgrounds, splits; each is read right and reported."""

import base64
import io
import json
import zlib

import little_formats
import numpy as np
import pytest
from little_formats import RED, WIDTH, cvat_box, cvat_xml, draw, label_studio_region, labelme, save, via_region
from PIL import Image

from efficientdet.data import collection, formats, image_folder, open_images, shapes, tables, via
from efficientdet.data import label_studio as studio
from efficientdet.errors import UserError

_HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
_OPEN_IMAGES = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
_VIA_HEADER = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"


def _read(format, root, **options):
    """Reads a dataset: boxes in px of each image, rounded to 0.01, and how often each kind of problem occurred."""
    source = formats.READERS[format](root, **options)
    boxes = {}
    for split, examples in source.splits.items():
        for example in examples:
            scale = [120, WIDTH, 120, WIDTH] if example.is_normalized else 1
            rows = np.round(example.boxes * scale, 2).tolist()
            names = [source.categories[label].name for label in example.labels]
            boxes[f"{split}:{example.file_name}"] = list(zip(names, map(tuple, rows), strict=True))
    kinds = {}
    for problem in source.problems:
        assert problem.split in source.splits
        kinds[problem.kind] = kinds.get(problem.kind, 0) + problem.count
    return boxes, kinds


def _labelme_shape(kind, points, label="red"):
    return {"label": label, "points": points} | ({"shape_type": kind} if kind else {})


def _cvat(root, text):
    draw(root / "a.png")
    save(root / "annotations.xml", cvat_xml(f'<image id="0" name="a.png" width="160" height="120">{text}</image>'))


def _studio(root, *results, **task):
    draw(root / "a.png")
    save(
        root / "tasks.json", [{"id": 5, "data": {"image": "a.png"}, "annotations": [{"result": list(results)}]} | task]
    )


def _studio_shape(kind, **value):
    region = label_studio_region("red", RED)
    return region | {"type": f"{kind}labels", "value": value | {f"{kind}labels": ["red"]}}


def _via(root, *shape, attributes=None, **fields):
    draw(root / "a.png")
    regions = [
        {"shape_attributes": one, "region_attributes": {"x": "red"} if attributes is None else attributes}
        for one in shape
    ]
    save(root / "via.json", {"a.png1": {"filename": "a.png", "size": 1, "regions": regions} | fields})


def _bitmap():
    content = io.BytesIO()
    Image.new("1", (60, 50), 1).save(content, "PNG")
    return {"origin": [40, 30], "data": base64.b64encode(zlib.compress(content.getvalue())).decode()}


def _supervisely(root, **entry):
    draw(root / "set" / "img" / "a.png")
    document = {"size": {"height": 120, "width": 160}, "objects": [{"classTitle": "red"} | entry]}
    save(root / "set" / "ann" / "a.png.json", document)


_CORNERS = [[40, 30], [100, 30], [100, 80], [40, 80]]
_POLYGON = {"name": "polygon", "all_points_x": [40, 100, 70], "all_points_y": [30, 50, 80]}
_SHAPES = {
    "labelme polygon": (
        "labelme",
        lambda r: save(r / "a.json", labelme("a.png", [], shapes=[_labelme_shape("polygon", _CORNERS)])),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "labelme without shape_type": (
        "labelme",
        lambda r: save(r / "a.json", labelme("a.png", [], shapes=[_labelme_shape(None, _CORNERS)])),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "labelme circle": (
        "labelme",
        lambda r: save(r / "a.json", labelme("a.png", [], shapes=[_labelme_shape("circle", [[70, 55], [73, 59]])])),
        (50, 65, 60, 75),
        {shapes.OUTLINES: 1},
    ),
    "labelme mask": (
        "labelme",
        lambda r: save(r / "a.json", labelme("a.png", [], shapes=[_labelme_shape("mask", [[40, 30], [100, 80]])])),
        (30, 40, 80, 100),
        {},
    ),
    "labelme rotation": (
        "labelme",
        lambda r: save(r / "a.json", labelme("a.png", [], shapes=[_labelme_shape("rotation", _CORNERS)])),
        (30, 40, 80, 100),
        {shapes.ROTATED: 1},
    ),
    "cvat box rotated by 90 degrees": (
        "cvat",
        lambda r: _cvat(r, cvat_box("red", (45, 30, 65, 110), 'rotation="90"')),
        (15, 60, 95, 80),
        {shapes.ROTATED: 1},
    ),
    "cvat polygon": (
        "cvat",
        lambda r: _cvat(r, '<polygon label="red" points="40,30;100.00,50;70,80"/>'),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "cvat polyline": (
        "cvat",
        lambda r: _cvat(r, '<polyline label="red" points="40,30;100,80"/>'),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "cvat ellipse turned by 90 degrees": (
        "cvat",
        lambda r: _cvat(r, '<ellipse label="red" cx="70" cy="55" rx="25" ry="30" rotation="90"/>'),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "cvat mask": (
        "cvat",
        lambda r: _cvat(r, '<mask label="red" rle="1, 2" left="40" top="30" width="60" height="50"/>'),
        (30, 40, 80, 100),
        {},
    ),
    "label studio rectangle rotated about its corner": (
        "labelstudio",
        lambda r: _studio(r, label_studio_region("red", (30, 100, 90, 150), rotation=90)),
        (30, 40, 80, 100),
        {shapes.ROTATED: 1},
    ),
    "label studio polygon": (
        "labelstudio",
        lambda r: _studio(r, _studio_shape("polygon", points=[[25, 25], [62.5, 25], [40, 66.66666667]])),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "label studio ellipse": (
        "labelstudio",
        lambda r: _studio(
            r, _studio_shape("ellipse", x=43.75, y=45.83333333, radiusX=18.75, radiusY=20.83333333, rotation=0)
        ),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "label studio labels apart from the shape": (
        "labelstudio",
        lambda r: _studio(
            r,
            label_studio_region("red", RED) | {"type": "rectangle"},
            {"id": "x", "type": "labels", "value": {"labels": ["red"]}},
        ),
        (30, 40, 80, 100),
        {},
    ),
    "via circle": (
        "via",
        lambda r: _via(r, {"name": "circle", "cx": 70, "cy": 55, "r": 5}),
        (50, 65, 60, 75),
        {shapes.OUTLINES: 1},
    ),
    "via ellipse": (
        "via",
        lambda r: _via(r, {"name": "ellipse", "cx": 70, "cy": 55, "rx": 30, "ry": 25}),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "via polygon": ("via", lambda r: _via(r, _POLYGON), (30, 40, 80, 100), {shapes.OUTLINES: 1}),
    "via 1, regions by number": (
        "via",
        lambda r: _via(r, regions={"0": via_region("red", RED)}),
        (30, 40, 80, 100),
        {},
    ),
    "via checkbox": (
        "via",
        lambda r: _via(r, via_region("", RED)["shape_attributes"], attributes={"kind": {"red": True, "blue": False}}),
        (30, 40, 80, 100),
        {},
    ),
    "via class among attributes": (
        "via",
        lambda r: _via(r, via_region("", RED)["shape_attributes"], attributes={"quality": "good", "Label": "red"}),
        (30, 40, 80, 100),
        {},
    ),
    "supervisely polygon": (
        "supervisely",
        lambda r: _supervisely(r, geometryType="polygon", points={"exterior": _CORNERS, "interior": []}),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "supervisely bitmap": (
        "supervisely",
        lambda r: _supervisely(r, geometryType="bitmap", bitmap=_bitmap()),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "imagefolder, a list of objects": (
        "imagefolder",
        lambda r: save(
            r / "metadata.jsonl",
            {"file_name": "a.png", "objects": [{"bbox": [40.0, 30, 60, 50], "category": "red"}], "width": 160},
        ),
        (30, 40, 80, 100),
        {},
    ),
    "csv with semicolons, other names and another order": (
        "csv",
        lambda r: save(r / "a.csv", "label;x_max;y_max;x_min;y_min;image\nred;100;80;40;30;a.png\n"),
        (30, 40, 80, 100),
        {},
    ),
    "csv of makesense.ai": (
        "csv",
        lambda r: save(
            r / "a.csv",
            "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
            "red,40,30,60,50,a.png,160,120\n",
        ),
        (30, 40, 80, 100),
        {},
    ),
    "csv of fractions": (
        "csv",
        lambda r: save(r / "a.csv", _HEADER + "a.png,160,120,red,0.25,0.25,0.625,0.6666667\n"),
        (30, 40, 80, 100),
        {tables.FRACTIONS: 1},
    ),
    "csv with a column that is not read, and a byte order mark": (
        "csv",
        lambda r: save(r / "a.csv", "\ufeffpath,x1,y1,x2,y2,class,occluded\na.png,40,30,100,80,red,1\n"),
        (30, 40, 80, 100),
        {tables.UNUSED_COLUMNS: 1},
    ),
    "a box twice": (
        "csv",
        lambda r: save(r / "a.csv", "a.png,40,30,100,80,red\na.png,40,30,100,80,red\n"),
        (30, 40, 80, 100),
        {collection.TWICE: 1},
    ),
}


@pytest.mark.parametrize(("format", "write", "box", "kinds"), _SHAPES.values(), ids=_SHAPES)
def test_a_shape_becomes_its_box_and_that_is_said(tmp_path, format, write, box, kinds):
    write(tmp_path)
    if format in ("labelme", "csv", "imagefolder"):
        draw(tmp_path / "a.png")
    boxes, found = _read(format, tmp_path)
    (objects,) = boxes.values()
    assert objects == [("red", box)]
    assert found == kinds


def test_what_is_not_a_box_is_left_out_and_counted(tmp_path):
    draw(tmp_path / "labelme" / "a.png")
    points = [_labelme_shape("point", [[1, 2]]), _labelme_shape("line", [[1, 2], [3, 4]])]
    save(tmp_path / "labelme" / "a.json", labelme("a.png", [("red", RED)], flags={}))
    document = labelme("a.png", [("red", RED)])
    save(tmp_path / "labelme" / "a.json", document | {"shapes": document["shapes"] + points})
    _cvat(tmp_path / "cvat", cvat_box("red", RED) + '<points label="red" points="1,2"/><tag label="red"/>')
    brush = {"type": "brushlabels", "value": {"brushlabels": ["red"], "rle": [1]}}
    _studio(tmp_path / "labelstudio", label_studio_region("red", RED), brush, {"type": "choices", "value": {}})
    rectangle = via_region("red", RED)["shape_attributes"]
    _via(tmp_path / "via", rectangle, *[{"name": "point", "cx": 1, "cy": 2}] * 2)
    for format in ("labelme", "cvat", "labelstudio", "via"):
        boxes, kinds = _read(format, tmp_path / format)
        assert boxes == {"train:a.png": [("red", RED)]}, format
        assert kinds == {shapes.WITHOUT_AREA: 2}, format


_NAMES = {
    "an absolute path of another machine": ("/home/someone/set/images/a b.png", "images/a b.png", 1),
    "a Windows path": (r"C:\Users\someone\set\images\a b.png", "images/a b.png", 1),
    "a relative Windows path": (r"..\images\a b.png", "images/a b.png", 1),
    "percent signs": ("a%20b.png", "images/a b.png", 1),
    "an address": ("https://cloud/bucket/a%20b.png?key=1", "images/a b.png", 1),
    "another case": ("A B.PNG", "images/a b.png", 1),
    "accents encoded otherwise": ("cafe\u0301.png", "images/caf\u00e9.png", 1),
    "a plain name": ("a b.png", "images/a b.png", 0),
    "a path below the folder": ("images/a b.png", "images/a b.png", 0),
}


@pytest.mark.parametrize(("name", "found", "moved"), _NAMES.values(), ids=_NAMES)
def test_a_stale_name_is_found_by_its_end(tmp_path, name, found, moved):
    for file_name in ("a b.png", "caf\u00e9.png"):
        draw(tmp_path / "images" / file_name)
    save(tmp_path / "a.csv", _HEADER + f"{name},160,120,red,40,30,100,80\n")
    boxes, kinds = _read("csv", tmp_path)
    assert boxes == {f"train:{found}": [("red", RED)]}
    assert kinds.get(collection.MOVED, 0) == moved
    assert kinds[collection.UNUSED_IMAGE] == 1


@pytest.mark.parametrize(
    ("address", "file_name"),
    [
        ("/data/upload/3/8a5f01c2-a_b.png", "8a5f01c2-a_b.png"),
        ("/data/upload/3/8a5f01c2-a_b.png", "a b.png"),
        ("/data/upload/3/8a5f01c2-a_b1.png", "a b(1).png"),
        ("/data/local-files/?d=images/1/a%20b.png", "a b.png"),
        ("s3://bucket/images/a b.png", "a b.png"),
        (r"..\..\label-studio\media\upload\3\8a5f01c2-a.png", "8a5f01c2-a.png"),
    ],
)
def test_label_studio_s_names_are_found(tmp_path, address, file_name):
    _studio(tmp_path, label_studio_region("red", RED), data={"picture": address, "text": "a note"})
    (tmp_path / "a.png").unlink()
    draw(tmp_path / "images" / file_name)
    assert _read("labelstudio", tmp_path)[0] == {f"train:images/{file_name}": [("red", RED)]}


def test_two_candidates_are_an_error_that_names_both(tmp_path):
    for folder in ("one", "two"):
        draw(tmp_path / folder / "a.png")
    save(tmp_path / "a.csv", _HEADER + "/elsewhere/a.png,160,120,red,40,30,100,80\n")
    with pytest.raises(UserError, match=r"a.csv`, line 2: .*both `one/a.png` and `two/a.png` could be it"):
        _read("csv", tmp_path)
    save(tmp_path / "a.csv", _HEADER + "/elsewhere/two/a.png,160,120,red,40,30,100,80\n")
    assert list(_read("csv", tmp_path)[0]) == ["train:two/a.png"]


def test_the_split_decides_between_two_candidates(tmp_path):
    for split in ("Train", "Validation"):
        draw(tmp_path / "images" / split / "a.png")
        save(tmp_path / f"cells_{split.lower()}.csv", _HEADER + "a.png,160,120,red,40,30,100,80\n")
    assert list(_read("csv", tmp_path)[0]) == ["train:images/Train/a.png", "val:images/Validation/a.png"]
    assert list(_read("csv", tmp_path, splits=("val",))[0]) == ["val:images/Validation/a.png"]
    with pytest.raises(UserError, match="`splits` names `test`"):
        _read("csv", tmp_path, splits=("test",))


def test_one_file_with_test_in_its_name_is_not_a_split(tmp_path):
    draw(tmp_path / "crash tests" / "a.png")
    save(tmp_path / "crash_test.csv", _HEADER + "a.png,160,120,red,40,30,100,80\n")
    assert list(_read("csv", tmp_path)[0]) == ["train:crash tests/a.png"]


def test_a_renamed_image_is_found_beside_its_labelme_file(tmp_path):
    draw(tmp_path / "new.png")
    save(tmp_path / "new.json", labelme("old.png", [("red", RED)]))
    boxes, kinds = _read("labelme", tmp_path)
    assert boxes == {"train:new.png": [("red", RED)]}
    assert kinds == {collection.MOVED: 1}


def test_backgrounds_are_kept(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    save(tmp_path / "a.csv", "a.png,40,30,100,80,red\nb.png,,,,,\n")
    assert _read("csv", tmp_path) == ({"train:a.png": [("red", RED)], "train:b.png": []}, {})
    save(tmp_path / "a.csv", _HEADER + "a.png,160,120,red,40,30,100,80\nb.png,160,120,,,,,\n")
    assert _read("csv", tmp_path) == ({"train:a.png": [("red", RED)], "train:b.png": []}, {})


def test_every_file_is_accounted_for(tmp_path):
    for name in ("a.png", "b.png", ".hidden.png", "__MACOSX/a.png", "predictions/a.png"):
        draw(tmp_path / name)
    save(tmp_path / "a.json", labelme("a.png", [("red", RED)]))
    save(tmp_path / "copy.json", labelme("a.png", [("blue", RED)]))
    save(tmp_path / "notes.json", {"by": "me"})
    save(tmp_path / "b.xml", "<annotation/>")
    save(tmp_path / "._a.json", "\0")
    source = formats.READERS["labelme"](tmp_path)
    assert {(problem.kind, problem.file_name) for problem in source.problems} == {
        (collection.UNUSED_IMAGE, "b.png"),
        (collection.UNUSED_FILE, "notes.json"),
        (collection.UNUSED_FILE, "b.xml"),
        (collection.SEVERAL_FILES, "a.png"),
    }


def test_an_image_in_two_splits_or_twice_in_a_file_is_said(tmp_path):
    draw(tmp_path / "a.png")
    for split in ("train", "test"):
        save(tmp_path / f"{split}.csv", _HEADER + "a.png,160,120,red,40,30,100,80\n")
    assert _read("csv", tmp_path)[1] == {collection.TWO_SPLITS: 1}
    draw(tmp_path / "createml" / "a.png")
    entry = {"image": "a.png", "annotations": []}
    save(tmp_path / "createml" / "a.json", [entry, entry])
    assert _read("createml", tmp_path / "createml")[1] == {collection.LISTED_TWICE: 1}


def test_open_images_groups_are_crowds_and_images_that_are_not_here_are_counted(tmp_path):
    draw(tmp_path / "a.png")
    row = "a,/m/0r,0.25,0.625,0.25,0.66666667,{}\n"
    save(tmp_path / "boxes.csv", _OPEN_IMAGES + row.format(1) + "far,/m/0r,0,1,0,1,0\n" * 2)
    source = formats.READERS["openimages"](tmp_path)
    assert source.splits["train"][0].is_crowd.tolist() == [True]
    boxes, kinds = _read("openimages", tmp_path)
    assert boxes == {"train:a.png": [("/m/0r", RED)]}
    assert kinds == {collection.NOT_HERE: 2, open_images.CODES: 1}


def test_label_studio_takes_the_truth_else_the_latest_annotation(tmp_path):
    one, two, three = (
        {"result": [label_studio_region(name, RED)], "updated_at": date}
        for name, date in (("one", "2026-02-01"), ("two", "2026-03-01"), ("three", "2026-01-01"))
    )
    skipped = {"result": [], "was_cancelled": True, "updated_at": "2027-01-01"}
    _studio(tmp_path, annotations=[one, two, three, skipped], predictions=[{"result": []}])
    boxes, kinds = _read("labelstudio", tmp_path)
    assert boxes == {"train:a.png": [("two", RED)]}
    assert kinds == {studio.OTHER_ANNOTATORS: 3, studio.PREDICTIONS: 1}
    _studio(tmp_path, annotations=[one, two, three | {"ground_truth": True}])
    assert _read("labelstudio", tmp_path)[0] == {"train:a.png": [("three", RED)]}
    _studio(tmp_path, annotations=[skipped])
    with pytest.raises(UserError, match=f"no annotated image .* 1 {studio.NOT_SUBMITTED}"):
        _read("labelstudio", tmp_path)


def test_a_via_dataset_without_attributes_has_one_class(tmp_path):
    _via(tmp_path, _POLYGON, attributes={})
    boxes, kinds = _read("via", tmp_path)
    assert boxes == {"train:a.png": [("object", (30, 40, 80, 100))]}
    assert kinds == {via.NO_ATTRIBUTE: 1, shapes.OUTLINES: 1}


def test_a_via_project_is_read_and_a_row_without_region_is_a_background(tmp_path):
    draw(tmp_path / "a.png")
    entry = {"filename": "a.png", "size": 1, "regions": [via_region("red", RED)]}
    save(tmp_path / "project.json", {"_via_settings": {}, "_via_img_metadata": {"a.png1": entry}})
    draw(tmp_path / "b.png")
    save(tmp_path / "b.csv", _VIA_HEADER + 'b.png,1,"{}",0,0,"{}","{}"\n')
    assert _read("via", tmp_path)[0] == {"train:a.png": [("red", RED)], "train:b.png": []}


def test_numbered_categories_of_an_imagefolder_are_named_by_classes(tmp_path):
    draw(tmp_path / "in" / "a.png")
    row = {"file_name": "a.png", "objects": {"bbox": [[40, 30, 60, 50]], "categories": [1]}}
    save(tmp_path / "in" / "metadata.jsonl", row)
    assert _read("imagefolder", tmp_path / "in") == ({"train:a.png": [("class_1", RED)]}, {image_folder.NUMBERED: 1})
    classes = save(tmp_path / "classes.txt", "blue\nred\n")
    assert _read("imagefolder", tmp_path / "in", classes=classes) == ({"train:a.png": [("red", RED)]}, {})


def test_classes_may_be_given(tmp_path):
    little_formats.write_labelme(tmp_path / "in")
    classes = save(tmp_path / "classes.txt", "red\ngreen\nblue\nwhite\n")
    source = formats.READERS["labelme"](tmp_path / "in", classes=classes)
    assert [(c.id, c.name) for c in source.categories] == [(1, "red"), (2, "green"), (3, "blue"), (4, "white")]
    save(classes, "red\ngreen\n")
    with pytest.raises(
        UserError, match=r"a b.json`: shapes\[1\]: has the unknown class `blue`; .*classes.txt does not"
    ):
        formats.READERS["labelme"](tmp_path / "in", classes=classes)


def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path):
    for encoding in ("gbk", "utf-16", "iso-8859-1"):
        name = "\u732b" if encoding != "iso-8859-1" else "caf\u00e9"
        folder = tmp_path / encoding
        _cvat(folder, cvat_box("red", RED))
        text = (folder / "annotations.xml").read_text().replace("utf-8", encoding)
        (folder / "annotations.xml").write_bytes(text.replace('"red"', f'"{name}"').encode(encoding))
        assert _read("cvat", folder)[0] == {"train:a.png": [(name, RED)]}


def test_a_number_that_is_not_finite_is_left_to_the_policy(tmp_path):
    draw(tmp_path / "a.png")
    document = json.dumps(labelme("a.png", [("red", RED)])).replace("100", "NaN")
    save(tmp_path / "a.json", document)
    (example,) = formats.READERS["labelme"](tmp_path).splits["train"]
    assert np.isnan(example.boxes).all()
