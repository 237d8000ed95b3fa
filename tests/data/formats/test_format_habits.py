"""Habits of annotation tools: stale names, backgrounds, splits, encodings; each is read right and reported."""

import json
import re

import little_formats
import numpy as np
import pytest
from little_annotations import read, write_cvat, write_studio, write_via
from little_formats import RED, cvat_box, cvat_xml, draw, label_studio_region, labelme, save, via_region

from efficientdet.data import conversion, registry
from efficientdet.data.formats import image_folder, open_images, via
from efficientdet.data.formats import label_studio as studio
from efficientdet.data.parsing import shapes
from efficientdet.data.reading import collection
from efficientdet.errors import UserError

_HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
_OPEN_IMAGES = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
_VIA_HEADER = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"

_POLYGON = {"name": "polygon", "all_points_x": [40, 100, 70], "all_points_y": [30, 50, 80]}
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
    boxes, kinds = read("csv", tmp_path)
    assert boxes == {f"train:{found}": [("red", RED)]}
    assert kinds.get(collection.MOVED, 0) == moved
    assert set(kinds) <= {collection.MOVED}


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
    write_studio(tmp_path, label_studio_region("red", RED), data={"image": address, "text": "a note"})
    (tmp_path / "a.png").unlink()
    draw(tmp_path / "images" / file_name)
    assert read("labelstudio", tmp_path)[0] == {f"train:images/{file_name}": [("red", RED)]}


def test_one_file_may_name_images_of_two_subsets_alike(tmp_path):
    text = ""
    for subset in ("Train", "Validation"):
        draw(tmp_path / "images" / subset / "a.png")
        box = cvat_box("red", RED)
        text += f'<image id="0" name="a.png" subset="{subset}" width="160" height="120">{box}</image>'
    save(tmp_path / "annotations.xml", cvat_xml(text))
    boxes, kinds = read("cvat", tmp_path)
    assert list(boxes) == ["train:images/Train/a.png", "val:images/Validation/a.png"]
    assert kinds == {}


def test_two_candidates_are_an_error_that_names_both(tmp_path):
    for folder in ("one", "two"):
        draw(tmp_path / folder / "a.png")
    save(tmp_path / "a.csv", _HEADER + "/elsewhere/a.png,160,120,red,40,30,100,80\n")
    with pytest.raises(UserError, match=r"a.csv`, line 2: .*could be `one/a.png` or `two/a.png`"):
        read("csv", tmp_path)
    save(tmp_path / "a.csv", _HEADER + "/elsewhere/two/a.png,160,120,red,40,30,100,80\n")
    assert list(read("csv", tmp_path)[0]) == ["train:two/a.png"]


def test_the_split_decides_between_two_candidates(tmp_path):
    for split in ("Train", "Validation"):
        draw(tmp_path / "images" / split / "a.png")
        save(tmp_path / f"cells_{split.lower()}.csv", _HEADER + "a.png,160,120,red,40,30,100,80\n")
    assert list(read("csv", tmp_path)[0]) == ["train:images/Train/a.png", "val:images/Validation/a.png"]
    assert list(read("csv", tmp_path, splits=("val",))[0]) == ["val:images/Validation/a.png"]
    with pytest.raises(UserError, match="`splits` names `test`"):
        read("csv", tmp_path, splits=("test",))


def test_one_file_with_test_in_its_name_is_not_a_split(tmp_path):
    draw(tmp_path / "crash tests" / "a.png")
    save(tmp_path / "crash_test.csv", _HEADER + "a.png,160,120,red,40,30,100,80\n")
    assert list(read("csv", tmp_path)[0]) == ["train:crash tests/a.png"]


def test_a_renamed_image_is_found_beside_its_labelme_file(tmp_path):
    draw(tmp_path / "new.png")
    save(tmp_path / "new.json", labelme("old.png", [("red", RED)]))
    boxes, kinds = read("labelme", tmp_path)
    assert boxes == {"train:new.png": [("red", RED)]}
    assert kinds == {collection.MOVED: 1}


def test_backgrounds_are_kept(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    save(tmp_path / "a.csv", "a.png,40,30,100,80,red\nb.png,,,,,\n")
    assert read("csv", tmp_path) == ({"train:a.png": [("red", RED)], "train:b.png": []}, {})
    save(tmp_path / "a.csv", _HEADER + "a.png,160,120,red,40,30,100,80\nb.png,160,120,,,,,\n")
    assert read("csv", tmp_path) == ({"train:a.png": [("red", RED)], "train:b.png": []}, {})


def test_every_file_is_accounted_for(tmp_path):
    for name in ("a.png", "b.png", ".hidden.png", "__MACOSX/a.png", "predictions/a.png"):
        draw(tmp_path / name)
    save(tmp_path / "a.json", labelme("a.png", [("red", RED)]))
    save(tmp_path / "copy.json", labelme("a.png", [("blue", RED)]))
    save(tmp_path / "test" / "notes.json", {"by": "me"})
    save(tmp_path / "b.xml", "<annotation/>")
    save(tmp_path / "._a.json", "\0")
    assert read("labelme", tmp_path)[1] == {collection.SEVERAL_FILES: 1}
    account = _check("labelme", tmp_path).account
    assert {problem.file_name for problem in account.unused} == {"b.png", "test/notes.json", "b.xml"}
    assert (account.num_unused_images, account.num_annotation_files, account.num_annotations) == (1, 2, 2)


def _check(format, root):
    return conversion.convert(format, root, output=root / "out", num_workers=1, dry_run=True)


def test_an_image_in_two_splits_or_twice_in_a_file_is_said(tmp_path):
    draw(tmp_path / "a.png")
    for split in ("train", "test"):
        save(tmp_path / f"{split}.csv", _HEADER + "a.png,160,120,red,40,30,100,80\n")
    assert _check("csv", tmp_path).counts()["images used more than once"] == 1
    draw(tmp_path / "createml" / "a.png")
    entry = {"image": "a.png", "annotations": []}
    save(tmp_path / "createml" / "a.json", [entry, entry])
    assert read("createml", tmp_path / "createml")[1] == {collection.LISTED_TWICE: 1}


def test_a_box_that_stands_twice_is_said_in_every_format(tmp_path):
    for format, write in dict(little_formats.WRITERS.values()).items():
        source = tmp_path / format
        write(source)
        path = max((p for p in source.rglob("*.*") if p.suffix in _TEXTS), key=lambda p: (p.stat().st_size, p.name))
        path.write_text(_doubled(path))
        found = _check(format, source)
        # COCO's annotations have ids, and one that comes again as it was is dropped; others cannot be told apart.
        assert sum(split.num_boxes for split in found.splits.values()) > 4 - (format == "coco"), format
        said = [kind for kind in found.counts() if "duplicate" in kind]
        assert said, (format, found.counts())


_TEXTS = (".json", ".jsonl", ".csv", ".xml", ".txt")


def _doubled(path):
    """Writes an annotation file with each of its boxes twice."""
    text = path.read_text()
    if path.suffix in (".csv", ".txt"):
        head, *rows = text.splitlines()
        return "\n".join([head, *(row for row in rows for _ in range(2)), *([] if path.suffix == ".csv" else [head])])
    if path.suffix == ".xml":
        return re.sub(r"(<object>.*?</object>|<box .*?/box>|<box [^>]*/>)", r"\1\1", text, flags=re.DOTALL)
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    return "\n".join(json.dumps(_with_lists_doubled(json.loads(line))) for line in lines)


_LISTS = {"shapes", "annotations", "objects", "result", "regions", "label", "bbox", "categories", "image"}


def _with_lists_doubled(value, name=""):
    if isinstance(value, dict):
        is_coco = "images" in value
        return {k: one if is_coco and k != "annotations" else _with_lists_doubled(one, k) for k, one in value.items()}
    if not isinstance(value, list):
        return value
    is_list = name in _LISTS and value and not all(isinstance(one, int | float) for one in value)
    return (value if is_list else [_with_lists_doubled(one) for one in value]) * (2 if is_list else 1)


def test_open_images_groups_are_crowds_and_images_that_are_not_here_are_counted(tmp_path):
    draw(tmp_path / "a.png")
    row = "a,/m/0r,0.25,0.625,0.25,0.66666667,{}\n"
    save(tmp_path / "boxes.csv", _OPEN_IMAGES + row.format(1) + "far,/m/0r,0,1,0,1,0\n" * 2)
    source = registry.read("openimages", tmp_path)
    assert source.splits["train"][0].is_crowd.tolist() == [True]
    boxes, kinds = read("openimages", tmp_path)
    assert boxes == {"train:a.png": [("/m/0r", RED)]}
    assert kinds == {collection.NOT_HERE: 2, open_images.CODES: 1}


def test_label_studio_takes_the_truth_else_the_latest_annotation(tmp_path):
    one, two, three = (
        {"result": [label_studio_region(name, RED)], "updated_at": date}
        for name, date in (("one", "2026-02-01"), ("two", "2026-03-01"), ("three", "2026-01-01"))
    )
    skipped = {"result": [], "was_cancelled": True, "updated_at": "2027-01-01"}
    write_studio(tmp_path, annotations=[one, two, three, skipped], predictions=[{"result": []}])
    boxes, kinds = read("labelstudio", tmp_path)
    assert boxes == {"train:a.png": [("two", RED)]}
    assert kinds == {studio.OTHER_ANNOTATORS: 3, studio.PREDICTIONS: 1}
    write_studio(tmp_path, annotations=[one, two, three | {"ground_truth": True}])
    assert read("labelstudio", tmp_path)[0] == {"train:a.png": [("three", RED)]}
    write_studio(tmp_path, annotations=[skipped])
    with pytest.raises(UserError, match=f"no annotated images .* 1 {studio.NOT_SUBMITTED}"):
        read("labelstudio", tmp_path)


def test_a_via_dataset_without_attributes_has_one_class(tmp_path):
    write_via(tmp_path, _POLYGON, attributes={})
    boxes, kinds = read("via", tmp_path)
    assert boxes == {"train:a.png": [("object", (30, 40, 80, 100))]}
    assert kinds == {via.NO_ATTRIBUTE: 1, shapes.OUTLINES: 1}


def test_a_via_project_is_read_and_a_row_without_region_is_a_background(tmp_path):
    draw(tmp_path / "a.png")
    entry = {"filename": "a.png", "size": 1, "regions": [via_region("red", RED)]}
    save(tmp_path / "project.json", {"_via_settings": {}, "_via_img_metadata": {"a.png1": entry}})
    draw(tmp_path / "b.png")
    save(tmp_path / "b.csv", _VIA_HEADER + 'b.png,1,"{}",0,0,"{}","{}"\n')
    assert read("via", tmp_path)[0] == {"train:a.png": [("red", RED)], "train:b.png": []}


def test_numbered_categories_of_an_imagefolder_are_named_by_classes(tmp_path):
    draw(tmp_path / "in" / "a.png")
    row = {"file_name": "a.png", "objects": {"bbox": [[40, 30, 60, 50]], "categories": [1]}}
    save(tmp_path / "in" / "metadata.jsonl", row)
    assert read("imagefolder", tmp_path / "in") == ({"train:a.png": [("class_1", RED)]}, {image_folder.NUMBERED: 1})
    classes = save(tmp_path / "classes.txt", "blue\nred\n")
    assert read("imagefolder", tmp_path / "in", classes=classes) == ({"train:a.png": [("red", RED)]}, {})


def test_classes_may_be_given(tmp_path):
    little_formats.write_labelme(tmp_path / "in")
    classes = save(tmp_path / "classes.txt", "red\ngreen\nblue\nwhite\n")
    source = registry.read("labelme", tmp_path / "in", classes=classes)
    assert [(c.id, c.name) for c in source.categories] == [(1, "red"), (2, "green"), (3, "blue"), (4, "white")]
    save(classes, "red\ngreen\n")
    with pytest.raises(
        UserError, match=r"a b.json`: shapes\[1\]: unknown class `blue`, which is not listed in .*classes.txt"
    ):
        registry.read("labelme", tmp_path / "in", classes=classes)


def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path):
    for encoding in ("gbk", "utf-16", "iso-8859-1"):
        name = "\u732b" if encoding != "iso-8859-1" else "caf\u00e9"
        folder = tmp_path / encoding
        write_cvat(folder, cvat_box("red", RED))
        text = (folder / "annotations.xml").read_text().replace("utf-8", encoding)
        (folder / "annotations.xml").write_bytes(text.replace('"red"', f'"{name}"').encode(encoding))
        assert read("cvat", folder)[0] == {"train:a.png": [(name, RED)]}


def test_a_number_that_is_not_finite_is_left_to_the_policy(tmp_path):
    draw(tmp_path / "a.png")
    document = json.dumps(labelme("a.png", [("red", RED)])).replace("100", "NaN")
    save(tmp_path / "a.json", document)
    (example,) = registry.read("labelme", tmp_path).splits["train"]
    assert np.isnan(example.boxes).all()
