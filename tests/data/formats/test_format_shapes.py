"""Whatever shape a tool draws becomes its box, and what is done to it is said."""

import base64
import io
import zlib

import pytest
from little_annotations import read, write_cvat, write_studio, write_via
from little_formats import RED, cvat_box, draw, label_studio_region, labelme, save, via_region
from PIL import Image

from efficientdet.data.formats import tables
from efficientdet.data.parsing import shapes

_HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def _labelme_shape(kind, points, label="red"):
    return {"label": label, "points": points} | ({"shape_type": kind} if kind else {})


def _studio_shape(kind, **value):
    region = label_studio_region("red", RED)
    return region | {"type": f"{kind}labels", "value": value | {f"{kind}labels": ["red"]}}


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
        lambda r: write_cvat(r, cvat_box("red", (45, 30, 65, 110), 'rotation="90"')),
        (15, 60, 95, 80),
        {shapes.ROTATED: 1},
    ),
    "cvat polygon": (
        "cvat",
        lambda r: write_cvat(r, '<polygon label="red" points="40,30;100.00,50;70,80"/>'),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "cvat polyline": (
        "cvat",
        lambda r: write_cvat(r, '<polyline label="red" points="40,30;100,80"/>'),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "cvat ellipse turned by 90 degrees": (
        "cvat",
        lambda r: write_cvat(r, '<ellipse label="red" cx="70" cy="55" rx="25" ry="30" rotation="90"/>'),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "cvat mask": (
        "cvat",
        lambda r: write_cvat(r, '<mask label="red" rle="1, 2" left="40" top="30" width="60" height="50"/>'),
        (30, 40, 80, 100),
        {},
    ),
    "label studio rectangle rotated about its corner": (
        "labelstudio",
        lambda r: write_studio(r, label_studio_region("red", (30, 100, 90, 150), rotation=90)),
        (30, 40, 80, 100),
        {shapes.ROTATED: 1},
    ),
    "label studio polygon": (
        "labelstudio",
        lambda r: write_studio(r, _studio_shape("polygon", points=[[25, 25], [62.5, 25], [40, 66.66666667]])),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "label studio ellipse": (
        "labelstudio",
        lambda r: write_studio(
            r, _studio_shape("ellipse", x=43.75, y=45.83333333, radiusX=18.75, radiusY=20.83333333, rotation=0)
        ),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "label studio labels apart from the shape": (
        "labelstudio",
        lambda r: write_studio(
            r,
            label_studio_region("red", RED) | {"type": "rectangle"},
            {"id": "x", "type": "labels", "value": {"labels": ["red"]}},
        ),
        (30, 40, 80, 100),
        {},
    ),
    "via circle": (
        "via",
        lambda r: write_via(r, {"name": "circle", "cx": 70, "cy": 55, "r": 5}),
        (50, 65, 60, 75),
        {shapes.OUTLINES: 1},
    ),
    "via ellipse": (
        "via",
        lambda r: write_via(r, {"name": "ellipse", "cx": 70, "cy": 55, "rx": 30, "ry": 25}),
        (30, 40, 80, 100),
        {shapes.OUTLINES: 1},
    ),
    "via polygon": ("via", lambda r: write_via(r, _POLYGON), (30, 40, 80, 100), {shapes.OUTLINES: 1}),
    "via 1, regions by number": (
        "via",
        lambda r: write_via(r, regions={"0": via_region("red", RED)}),
        (30, 40, 80, 100),
        {},
    ),
    "via checkbox": (
        "via",
        lambda r: write_via(
            r, via_region("", RED)["shape_attributes"], attributes={"kind": {"red": True, "blue": False}}
        ),
        (30, 40, 80, 100),
        {},
    ),
    "via class among attributes": (
        "via",
        lambda r: write_via(r, via_region("", RED)["shape_attributes"], attributes={"quality": "good", "Label": "red"}),
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
}


@pytest.mark.parametrize(("format", "write", "box", "kinds"), _SHAPES.values(), ids=_SHAPES)
def test_a_shape_becomes_its_box_and_that_is_said(tmp_path, format, write, box, kinds):
    write(tmp_path)
    if format in ("labelme", "csv", "imagefolder"):
        draw(tmp_path / "a.png")
    boxes, found = read(format, tmp_path)
    (objects,) = boxes.values()
    assert objects == [("red", box)]
    assert found == kinds


def test_what_is_not_a_box_is_left_out_and_counted(tmp_path):
    draw(tmp_path / "labelme" / "a.png")
    points = [_labelme_shape("point", [[1, 2]]), _labelme_shape("line", [[1, 2], [3, 4]])]
    save(tmp_path / "labelme" / "a.json", labelme("a.png", [("red", RED)], flags={}))
    document = labelme("a.png", [("red", RED)])
    save(tmp_path / "labelme" / "a.json", document | {"shapes": document["shapes"] + points})
    write_cvat(tmp_path / "cvat", cvat_box("red", RED) + '<points label="red" points="1,2"/><tag label="red"/>')
    brush = {"type": "brushlabels", "value": {"brushlabels": ["red"], "rle": [1]}}
    write_studio(tmp_path / "labelstudio", label_studio_region("red", RED), brush, {"type": "choices", "value": {}})
    rectangle = via_region("red", RED)["shape_attributes"]
    write_via(tmp_path / "via", rectangle, *[{"name": "point", "cx": 1, "cy": 2}] * 2)
    for format in ("labelme", "cvat", "labelstudio", "via"):
        boxes, kinds = read(format, tmp_path / format)
        assert boxes == {"train:a.png": [("red", RED)]}, format
        assert kinds == {shapes.WITHOUT_AREA: 2}, format
