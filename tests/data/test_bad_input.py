"""Bad input, a row a kind: one line that names the file, and nothing half written."""

import little_datasets
import pytest

from efficientdet.data import conversion
from efficientdet.errors import UserError


def _edit_coco(change):
    def edit(root):
        document = little_datasets.coco_document()
        change(document)
        little_datasets.write_coco(root, document)

    return edit


def _edit_voc(pattern, replacement):
    def edit(root):
        little_datasets.write_voc(root)
        path = root / "Annotations" / "a.xml"
        assert pattern in path.read_text()
        path.write_text(path.read_text().replace(pattern, replacement))

    return edit


def _edit_file(write, name, edit):
    def apply(root):
        write(root)
        path = root / name
        content = edit(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)

    return apply


_COCO, _VOC, _YOLO = little_datasets.write_coco, little_datasets.write_voc, little_datasets.write_yolo
_BAD_INPUTS = {
    "image cut short": ("coco", _edit_file(_COCO, "images/a.jpg", lambda c: c[:-200]), "`a.jpg` cannot be decoded"),
    "image missing": ("coco", _edit_file(_COCO, "images/a.jpg", lambda c: None), "`a.jpg` is missing"),
    "image that is text": (
        "coco",
        _edit_file(_COCO, "images/a.jpg", lambda c: b"x"),
        "`a.jpg` is not a supported image",
    ),
    "other size declared": ("coco", _edit_coco(lambda d: d["images"][0].update(height=41)), "`a.jpg` is 40 x 60"),
    "json cut short": (
        "coco",
        _edit_file(_COCO, "instances.json", lambda c: c[:-9]),
        "instances.json` is not valid JSON",
    ),
    "json with a number of 5,000 digits": (
        "coco",
        _edit_file(_COCO, "instances.json", lambda c: b"[1" + b"0" * 5000 + b"]"),
        "instances.json` is not valid JSON",
    ),
    "json with a key twice": (
        "coco",
        _edit_file(_COCO, "instances.json", lambda c: c[:-1] + b', "annotations": []}'),
        "instances.json` has `annotations` twice in one entry",
    ),
    "json in another encoding": (
        "coco",
        _edit_file(_COCO, "instances.json", lambda c: b"\xff" + c),
        "not UTF-8 text",
    ),
    "captions": (
        "coco",
        _edit_coco(lambda d: d.pop("categories")),
        "instances.json` has no `categories` list",
    ),
    "training images only": (
        "coco",
        _edit_coco(lambda d: d.pop("annotations")),
        "instances.json` has no `annotations` list",
    ),
    "no file_name": ("coco", _edit_coco(lambda d: d["images"][0].pop("file_name")), "image 7 has no `file_name`"),
    "no bbox": ("coco", _edit_coco(lambda d: d["annotations"][1].pop("bbox")), r"annotations\[1\] has no `bbox`"),
    "bbox of words": ("coco", _edit_coco(lambda d: d["annotations"][0].update(bbox=["a"] * 4)), "expected a number"),
    "unknown class": ("coco", _edit_coco(lambda d: d["annotations"][0].update(category_id=4)), "unknown class 4"),
    "image id twice": ("coco", _edit_coco(lambda d: d["images"][1].update(id=7)), "two images with the id 7"),
    "one id, two names": ("coco", _edit_coco(lambda d: d["categories"][1].update(id=90)), "calls class 90 `dog`"),
    "no images": ("coco", _edit_coco(lambda d: d.update(images=[], annotations=[])), "has no images"),
    "no boxes": ("coco", _edit_coco(lambda d: d.update(annotations=[])), "has no boxes at all"),
    "no box with area": (
        "coco",
        _edit_coco(lambda d: [a.update(bbox=[1, 1, 0, 0]) for a in d["annotations"]]),
        r"has no usable boxes \(2 boxes with no area dropped\)",
    ),
    "path out of the folder": (
        "coco",
        _edit_coco(lambda d: d["images"][0].update(file_name="../../etc/passwd")),
        "instances.json` names the image `../../etc/passwd`, which is outside",
    ),
    "no annotations": ("coco", _edit_file(_COCO, "instances.json", lambda c: None), "has no COCO annotations"),
    "source missing": ("voc", lambda root: None, "expected a folder"),
    "xml cut short": ("voc", _edit_voc("</annotation>", ""), "a.xml` is not valid XML"),
    "no name": ("voc", _edit_voc("<name>cat</name>", ""), "a.xml`: <object> has no `name`"),
    "no corner": ("voc", _edit_voc("<xmin>10</xmin>", ""), "a.xml`: <bndbox> has no `xmin`"),
    "corner of words": ("voc", _edit_voc("<xmin>10</xmin>", "<xmin>left</xmin>"), "a.xml`: `xmin` is 'left'"),
    "no bndbox": ("voc", _edit_voc("bndbox", "box"), "a.xml`: object 0 .* has no `bndbox`"),
    "empty split file": ("voc", _edit_file(_VOC, "ImageSets/Main/val.txt", lambda c: b"\n"), "val.txt` is empty"),
    "split names no xml": (
        "voc",
        _edit_file(_VOC, "ImageSets/Main/val.txt", lambda c: b"z"),
        "val.txt` lists `z`, but",
    ),
    "name twice": ("voc", _edit_file(_VOC, "ImageSets/Main/val.txt", lambda c: b"b\nb"), "val.txt` lists `b` twice"),
    "yaml malformed": ("yolo", _edit_file(_YOLO, "data.yaml", lambda c: b"names: [a"), "data.yaml` is not valid YAML"),
    "yaml without names": (
        "yolo",
        _edit_file(_YOLO, "data.yaml", lambda c: b"train: images"),
        "data.yaml` has no `names`",
    ),
    "yaml names no folder": (
        "yolo",
        _edit_file(_YOLO, "data.yaml", lambda c: c.replace(b"images/train", b"images/gone")),
        "data.yaml`: `train` is `images/gone`",
    ),
    "line of words": ("yolo", _edit_file(_YOLO, "labels/train/a.txt", lambda c: b"cat 1 2 3 4"), "a.txt`, line 1"),
    "line of six": (
        "yolo",
        _edit_file(_YOLO, "labels/train/a.txt", lambda c: b"0 .1 .1 .1 .1 .9"),
        "line 1: 6 numbers",
    ),
    "class out of range": (
        "yolo",
        _edit_file(_YOLO, "labels/train/a.txt", lambda c: b"7 .1 .1 .1 .1"),
        "unknown class 7",
    ),
}


@pytest.mark.parametrize(("format", "make", "words"), _BAD_INPUTS.values(), ids=_BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, format, make, words):
    source = tmp_path / "source"
    make(source)
    with pytest.raises(UserError, match=words) as caught:
        conversion.convert(format, source, output=tmp_path / "out", num_workers=1)
    assert "\n" not in str(caught.value)
    assert set(little_datasets.names(tmp_path)) <= {"source"}


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    source = little_datasets.write_coco(tmp_path / "coco")
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match="`output`") as caught:
            conversion.convert("coco", source, output=output, num_workers=1)
        assert "\n" not in str(caught.value)


def test_an_unknown_class_names_the_file(tmp_path):
    source = little_datasets.write_voc(tmp_path / "voc")
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\n")
    with pytest.raises(UserError, match=r"a.xml`: unknown class `dog`, which is not listed in .*classes.txt"):
        conversion.convert("voc", source, output=tmp_path / "out", classes=classes)
    with pytest.raises(UserError, match="`classes`"):
        conversion.convert("coco", source, output=tmp_path / "out", classes=classes)
