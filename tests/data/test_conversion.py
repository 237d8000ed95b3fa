"""The verb convert: what comes in comes out, what is broken is mended, left out or refused, and never half written."""

import io
import json
import shutil
from pathlib import Path

import little_datasets
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from efficientdet import cli
from efficientdet.data import conversion, policy, synthetic
from efficientdet.data.reading import rotation
from efficientdet.data.records import shards, staging, store, tfrecord
from efficientdet.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _convert(format, source, output, **options):
    return conversion.convert(format, source, output=output, **{"num_workers": 1} | options)


def _read(folder, split):
    """Reads all records of a split."""
    opened = store.open_records(str(folder), split)
    for shard, offset, length in zip(opened.shards, opened.offsets, opened.lengths, strict=True):
        with open(opened.paths[shard], "rb") as file:  # noqa: PTH123 - paths are strings
            file.seek(offset)
            yield {name: value.numpy() for name, value in tfrecord.parse(file.read(length)).items()}


def _counts(result):
    return {(problem.kind, problem.file_name): problem.count for problem in result.problems}


def test_coco_survives_the_conversion(tmp_path):
    source = little_datasets.write_coco(tmp_path / "coco")
    result = _convert("coco", source, tmp_path / "out")
    empty, full = _read(tmp_path / "out", "train")
    assert (empty["id"], full["id"]) == (3, 7)
    assert full["encoded"] == (source / "images" / "a.jpg").read_bytes()
    # 1e-6: float32.
    np.testing.assert_allclose(full["boxes"] * [40, 60, 40, 60], [[5, 10, 35, 30], [0, 0, 40, 60]], rtol=1e-6)
    assert full["category_ids"].tolist() == [90, 2]
    assert full["is_crowd"].tolist() == [False, True]
    assert full["area"].tolist() == [123.5, 2000]
    split = result.splits["train"]
    assert (split.num_examples, split.num_boxes, split.num_crowds, split.max_boxes) == (2, 2, 1, 2)
    assert split.boxes_per_class == (1, 1)
    assert result.problems == ()


def test_generated_images_survive_the_conversion(tmp_path):
    synthetic.write_coco_folder(tmp_path / "coco", {"train": 3, "val": 2}, (64, 64), seed=0)
    result = _convert("coco", tmp_path / "coco", tmp_path / "out")
    assert {name: split.num_examples for name, split in result.splits.items()} == {"train": 3, "val": 2}
    assert result.problems == ()


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = little_datasets.write_voc(tmp_path / "voc")
    for name in ("first", "second"):
        _convert("voc", source, tmp_path / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}


def test_formats_that_say_the_same_give_the_same_records(tmp_path):
    little_datasets.write_voc_file(tmp_path / "voc", "a", little_datasets.voc_object("cat", (15, 10, 45, 30)))
    yolo = tmp_path / "yolo"
    shutil.copytree(tmp_path / "voc" / "JPEGImages", yolo / "images")
    (yolo / "labels").mkdir()
    (yolo / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (yolo / "classes.txt").write_text("cat\n")
    for format in ("voc", "yolo"):
        _convert(format, tmp_path / format, tmp_path / f"{format}-out")
    (left,), (right,) = _read(tmp_path / "voc-out", "train"), _read(tmp_path / "yolo-out", "train")
    assert left.pop("category_ids").tolist() == [1]
    assert right.pop("category_ids").tolist() == [0]
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp"])
def test_further_frames_are_reported(tmp_path, suffix):
    little_datasets.write_voc_file(tmp_path / "voc", "a", little_datasets.voc_object("cat", (15, 10, 45, 30)))
    frames = [Image.new("RGB", (60, 40), (level, 0, 0)) for level in (200, 20)]
    (tmp_path / "voc" / "JPEGImages" / "a.jpg").unlink()
    frames[0].save(tmp_path / "voc" / "JPEGImages" / f"a.{suffix}", save_all=True, append_images=frames[1:])
    result = _convert("voc", tmp_path / "voc", tmp_path / "out")
    assert _counts(result)[policy.FIRST_FRAME, f"a.{suffix}"] == 1


def test_boxes_are_clipped_or_dropped_and_reported(tmp_path):
    boxes = {
        "inside": (1, 2, 3, 4),
        "clipped": (50, 30, 70, 50),
        "clipped by less than a px, not worth a line": (59, 39, 60.5, 40.5),
        "outside": (61, 0, 70, 10),
        "without area": (5, 5, 5, 9),
        "turned round": (9, 9, 5, 5),
        "not a number": ("nan", 1, 2, 3),
        "infinite": (1, 1, "1e999", 3),
    }
    objects = "".join(little_datasets.voc_object("cat", box) for box in boxes.values())
    little_datasets.write_voc_file(tmp_path / "voc", "a", objects)
    result = _convert("voc", tmp_path / "voc", tmp_path / "out")
    (record,) = _read(tmp_path / "out", "train")
    # 1e-6: float32.
    expected = [[2, 1, 4, 3], [30, 50, 40, 60], [39, 59, 40, 60]]
    np.testing.assert_allclose(record["boxes"] * [40, 60, 40, 60], expected, rtol=1e-6)
    assert record["boxes"].max() == 1
    np.testing.assert_array_equal(record["area"], [4, 100, 1])
    assert _counts(result) == {
        (policy.CLIPPED, "a.jpg"): 1,
        (policy.OUTSIDE, "a.jpg"): 1,
        (policy.NO_AREA, "a.jpg"): 2,
        (policy.NOT_FINITE, "a.jpg"): 2,
    }
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["problems"][policy.NO_AREA] == 2


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "gif"), ("I;16", "png"), ("RGB", "bmp"), ("RGB", "webp")],
)
def test_other_images_become_rgb_jpeg(tmp_path, mode, suffix):
    source = little_datasets.write_voc(tmp_path / "voc")
    (source / "JPEGImages" / "a.jpg").unlink()
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 60), 257 * 102, np.uint16))
    else:
        image = Image.new("RGB", (60, 40), (102, 102, 102)).convert(mode)
    image.save(source / "JPEGImages" / f"a.{suffix}")
    result = _convert("voc", source, tmp_path / "out")
    (record,) = _read(tmp_path / "out", "train")
    with Image.open(io.BytesIO(record["encoded"])) as jpeg:
        assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "RGB", (60, 40))
        # 2 levels: CMYK rounds. 102 is a grey of the usual GIF palette.
        np.testing.assert_allclose(np.asarray(jpeg), 102, atol=2)
    assert _counts(result) == {(policy.REENCODED, f"a.{suffix}"): 1}


@pytest.mark.parametrize(
    ("declared", "rotated"),
    [((40, 60), True), ((60, 40), False), ((0, 0), True)],
    ids=["declared upright", "declared as stored", "not declared"],
)
def test_exif_rotation_follows_the_declared_size(tmp_path, declared, rotated):
    exif = Image.Exif()
    exif[0x0112] = 6
    little_datasets.write_voc_file(tmp_path / "voc", "a", little_datasets.voc_object("cat", (0, 0, 20, 10)), declared)
    path = little_datasets.draw(tmp_path / "voc" / "JPEGImages" / "a.jpg", (60, 40), exif=exif)
    result = _convert("voc", tmp_path / "voc", tmp_path / "out")
    (record,) = _read(tmp_path / "out", "train")
    height, width = (40, 60) if rotated else (60, 40)
    assert (record["height"], record["width"]) == (height, width)
    np.testing.assert_allclose(record["boxes"] * [height, width, height, width], [[0, 0, 10, 20]], rtol=1e-6)
    with Image.open(io.BytesIO(record["encoded"])) as jpeg, Image.open(path) as original:
        assert jpeg.size == (width, height)
        assert 0x0112 not in jpeg.getexif()
        if not rotated:
            np.testing.assert_array_equal(np.asarray(jpeg), np.asarray(original))
    untold = {(rotation.UNTOLD, "a.jpg"): 1} if declared == (0, 0) else {}
    assert _counts(result) == {(policy.ROTATED if rotated else policy.TAG_REMOVED, "a.jpg"): 1} | untold


def test_broken_images_are_left_out_on_request_and_counted_otherwise(tmp_path):
    source = little_datasets.write_voc(tmp_path / "voc")
    for stem in ("c", "d", "e"):
        little_datasets.write_voc_file(source, stem, little_datasets.voc_object("cat", (1, 1, 9, 9)), size=(41, 60))
    (source / "JPEGImages" / "d.jpg").unlink()
    path = source / "JPEGImages" / "e.jpg"
    path.write_bytes(path.read_bytes()[:-99])
    (source / "ImageSets" / "Main" / "train.txt").write_text("e\nd\na\nc\n")
    with pytest.raises(UserError, match=r"^`c.jpg` is 40 x 60 px .* 41 x 60. 2 more images are broken") as caught:
        _convert("voc", source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert little_datasets.names(tmp_path) == ["voc"]
    result = _convert("voc", source, tmp_path / "out", skip_broken_images=True)
    assert result.num_broken == 3
    assert [problem.file_name for problem in result.problems] == ["c.jpg", "d.jpg", "e.jpg"]
    assert result.splits["train"].num_examples == len(list(_read(tmp_path / "out", "train"))) == 1


def test_the_images_of_each_split_are_named_beside_the_records(tmp_path):
    for index in range(10):
        little_datasets.write_voc_file(tmp_path / "voc", f"p{index}", little_datasets.voc_object("cat", (1, 1, 9, 9)))
    broken = tmp_path / "voc" / "JPEGImages" / "p3.jpg"
    broken.write_bytes(broken.read_bytes()[:-99])
    result = _convert("voc", tmp_path / "voc", tmp_path / "out", val_fraction=0.3, skip_broken_images=True)
    named = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert list(named) == ["train", "val"]
    # VOC's images are counted from 1, in the order of their names.
    written = {
        split: sorted(f"p{record['id'] - 1}.jpg" for record in _read(tmp_path / "out", split)) for split in named
    }
    assert named == written
    assert len(named["val"]) >= 2
    assert sorted(named["train"] + named["val"]) == [f"p{index}.jpg" for index in range(10) if index != 3]
    text = io.StringIO()
    result.show(Console(file=text, width=200))
    assert text.getvalue().endswith("out; its splits.json lists the images of each split\n")


def test_a_dry_run_reports_and_writes_nothing(tmp_path):
    source = little_datasets.write_coco(tmp_path / "coco")
    (source / "images" / "b.jpg").unlink()
    result = _convert("coco", source, tmp_path / "out", dry_run=True)
    assert result.num_broken == 1
    assert result.splits["train"].num_boxes == 2
    assert little_datasets.names(tmp_path) == ["coco"]


def test_a_dry_run_fails_where_a_conversion_would_stop(tmp_path, capsys):
    source = little_datasets.write_coco(tmp_path / "coco")
    words = ["convert", "coco", str(source), "--output", str(tmp_path / "out"), "--num-workers", "1", "--dry-run"]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["would_stop"] == ""
    (source / "images" / "b.jpg").unlink()
    assert cli.main(words) == 1
    said = capsys.readouterr()
    assert "b.jpg" in said.out
    assert said.err.splitlines()[-1] == (
        f"efficientdet: 1 images in `{source}` cannot be used and would stop a conversion."
    )
    assert cli.main([*words, "--skip-broken-images"]) == 0


def test_images_without_annotations_are_converted_to_test_on(tmp_path):
    document = little_datasets.coco_document()
    del document["annotations"]
    source = little_datasets.write_coco(tmp_path / "coco")
    (source / "image_info.json").write_text(json.dumps(document))
    test_dev = ("test-dev", "image_info.json", "images")
    result = _convert("coco", source, tmp_path / "out", files=(test_dev,))
    assert _counts(result) == {
        ("files without annotations (usable for prediction, but not for evaluation)", "image_info.json"): 1
    }
    opened = store.open_records(str(tmp_path / "out"), "test-dev", may_lack_boxes=True)
    assert (len(opened), opened.num_boxes, opened.categories) == (2, 0, result.categories)
    with pytest.raises(UserError, match="but no boxes"):
        store.open_records(str(tmp_path / "out"), "test-dev")
    # Training images need boxes all the same.
    (source / "none.json").write_text(json.dumps({**document, "annotations": []}))
    with pytest.raises(UserError, match="no boxes at all"):
        _convert("coco", source, tmp_path / "both", files=(("train", "none.json", "images"), test_dev))
    both = _convert("coco", source, tmp_path / "both", files=(("train", "instances.json", "images"), test_dev))
    assert {name: split.num_boxes for name, split in both.splits.items()} == {"train": 2, "test-dev": 0}


def test_a_share_of_train_becomes_val(tmp_path):
    for index in range(10):
        little_datasets.write_voc_file(tmp_path / "voc", f"p{index}", little_datasets.voc_object("cat", (1, 1, 9, 9)))
    first = _convert("voc", tmp_path / "voc", tmp_path / "out", val_fraction=0.2)
    assert {name: split.num_examples for name, split in first.splits.items()} == {"train": 8, "val": 2}
    ids = [record["id"] for split in ("train", "val") for record in _read(tmp_path / "out", split)]
    assert sorted(ids) == list(range(1, 11))
    with pytest.raises(UserError, match=r"`val_fraction` is 0.99"):
        _convert("voc", tmp_path / "voc", tmp_path / "other", val_fraction=0.99)
    with pytest.raises(UserError, match="this one has train, val"):
        _convert("voc", little_datasets.write_voc(tmp_path / "both"), tmp_path / "other", val_fraction=0.2)


def test_records_are_dealt_to_shards_in_turn(tmp_path):
    for index in range(5):
        little_datasets.write_voc_file(tmp_path / "voc", f"p{index}", little_datasets.voc_object("cat", (1, 1, 9, 9)))
    _convert("voc", tmp_path / "voc", tmp_path / "out", num_shards=2)
    assert [record["id"] for record in _read(tmp_path / "out", "train")] == [1, 3, 5, 2, 4]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tfrecord")) == [
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
    ]


def test_each_split_can_have_its_own_number_of_shards_but_no_empty_ones(tmp_path):
    synthetic.write_coco_folder(tmp_path / "coco", {"train": 3, "val": 2, "test": 2}, (64, 64), seed=0)
    _convert("coco", tmp_path / "coco", tmp_path / "out", num_shards={"train": 2, "val": 32})
    names = [path.name.partition("-of-") for path in sorted((tmp_path / "out").glob("*.tfrecord"))]
    assert [(name[:-6], total[:5]) for name, _, total in names] == [
        ("test", "00001"),
        ("train", "00002"),
        ("train", "00002"),
        ("val", "00002"),
        ("val", "00002"),
    ]
    with pytest.raises(UserError, match=r"`num_shards` names the split `vale`; choose from test, train, val"):
        _convert("coco", tmp_path / "coco", tmp_path / "other", num_shards={"vale": 2})
    with pytest.raises(UserError, match="`num_shards` is -1"):
        _convert("coco", tmp_path / "coco", tmp_path / "other", num_shards={"val": -1})


def test_overwriting_replaces_a_dataset_and_nothing_else(tmp_path):
    source = little_datasets.write_coco(tmp_path / "coco")
    _convert("coco", source, tmp_path / "out")
    (tmp_path / "out" / "stray").touch()
    with pytest.raises(UserError, match=r"is not empty.*--overwrite"):
        _convert("coco", source, tmp_path / "out")
    _convert("coco", source, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "stray").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").touch()
    with pytest.raises(UserError, match="not a converted dataset"):
        _convert("coco", source, tmp_path / "home", overwrite=True)
    with pytest.raises(UserError, match="contains the source"):
        _convert("coco", source, tmp_path, overwrite=True)
    assert little_datasets.names(tmp_path) == ["coco", "home", "out"]


def test_a_failure_while_overwriting_keeps_the_old_dataset(tmp_path):
    source = little_datasets.write_coco(tmp_path / "coco")
    _convert("coco", source, tmp_path / "out")
    before = little_datasets.names(tmp_path / "out")
    (source / "images" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"a.jpg"):
        _convert("coco", source, tmp_path / "out", overwrite=True)
    assert little_datasets.names(tmp_path / "out") == before


def test_an_interruption_leaves_nothing_behind(tmp_path):
    def interrupted():
        with staging.output_folder(tmp_path / "out", tmp_path / "source", False, False) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert little_datasets.names(tmp_path) == []


@pytest.mark.parametrize(
    ("option", "format", "owner"),
    [
        ({"crowds_as_objects": True}, "voc", "COCO"),
        ({"keypoints": (4, 2)}, "coco", "YOLO"),
        ({"drop_confidence": True}, "labelme", "YOLO"),
        ({"drop_difficult": True}, "csv", "VOC"),
        ({"files": (("train", Path("a.json"), Path("images")),)}, "yolo", "COCO"),
    ],
)
def test_an_option_of_another_format_is_refused(tmp_path, option, format, owner):
    (name,) = option
    with pytest.raises(UserError, match=f"`{name}` only works with {owner}, but the format is {format}"):
        _convert(format, tmp_path, tmp_path / "out", **option)


@pytest.mark.parametrize(("count", "expected"), [(19, {"train": 19}), (20, {"train": 18, "val": 2})])
def test_a_tenth_is_held_out_by_default_and_the_summary_says_so(tmp_path, count, expected):
    source = tmp_path / "source"
    synthetic.write_coco_folder(source, {"train": count}, (32, 32), seed=0)
    result = _convert("coco", source, tmp_path / "out")
    assert {name: split.num_examples for name, split in result.splits.items()} == expected
    said = [problem for problem in result.problems if "held out" in problem.kind]
    assert len(said) == (len(expected) - 1)
    assert all("`--val-fraction`" in problem.detail for problem in said)
    assert list(_convert("coco", source, tmp_path / "all", val_fraction=0).splits) == ["train"]


def test_formats_are_detected(tmp_path):
    for format, write in (
        ("coco", little_datasets.write_coco),
        ("voc", little_datasets.write_voc),
        ("yolo", little_datasets.write_yolo),
    ):
        assert conversion.detect_format(write(tmp_path / format)) == format
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a dataset in a known format"):
        conversion.detect_format(tmp_path / "empty")


def test_a_source_is_converted_once_until_it_changes(tmp_path):
    for index in range(20):
        little_datasets.write_voc_file(tmp_path / "voc", f"p{index}", little_datasets.voc_object("cat", (1, 1, 9, 9)))
    first = conversion.convert_once(tmp_path / "voc")
    assert store.split_names(first) == ["train", "val"]
    time = (first / "dataset.json").stat().st_mtime_ns
    assert conversion.convert_once(tmp_path / "voc") == first
    assert (first / "dataset.json").stat().st_mtime_ns == time
    little_datasets.write_voc_file(tmp_path / "voc", "p20", little_datasets.voc_object("cat", (1, 1, 9, 9)))
    second = conversion.convert_once(tmp_path / "voc", tmp_path / "elsewhere")
    assert second.parent == tmp_path / "elsewhere"
    assert second.name != first.name


def test_the_summary_prints_and_becomes_json(tmp_path):
    source = little_datasets.write_coco(tmp_path / "coco")
    document = little_datasets.coco_document()
    document["annotations"] += [{"id": 9, "image_id": 3, "category_id": 2, "bbox": [1, 1, 0, 0], "area": 0}]
    little_datasets.write_coco(source, document)
    result = _convert("coco", source, tmp_path / "out")
    text = io.StringIO()
    result.show(Console(file=text, width=80))
    for words in ("dog", "1 boxes with no area dropped", "b.jpg (train)", "Written to"):
        assert words in text.getvalue()
    assert json.loads(json.dumps(result.to_dict()))["splits"]["train"]["num_crowds"] == 1


@pytest.mark.slow
def test_several_processes_write_what_one_writes(tmp_path):
    for index in range(6):
        little_datasets.write_voc_file(tmp_path / "voc", f"p{index}", little_datasets.voc_object("cat", (1, 1, 9, 9)))
    for workers in (1, 2):
        _convert("voc", tmp_path / "voc", tmp_path / f"out{workers}", num_workers=workers, num_shards=3)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out1").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out2").iterdir()}
    tasks = [shards.Task(split="x", path=tmp_path / "gone" / "x", examples=[], categories=())] * 2
    with pytest.raises(UserError, match="cannot be written"):
        shards.write_all(tasks, 2)


def _shared(name):
    folder = little_datasets.SHARED / name
    return pytest.param(folder, marks=pytest.mark.skipif(not folder.is_dir(), reason=f"no {name} here"))


@pytest.mark.parametrize("source", [_shared("bccd")])
def test_the_blood_cells_are_converted_by_their_split_files(tmp_path, source):
    result = _convert("voc", source, tmp_path / "out")
    assert {name: split.num_examples for name, split in result.splits.items()} == {"train": 205, "val": 87, "test": 72}
    assert sum(split.num_boxes for split in result.splits.values()) == 4886
    assert [category.name for category in result.categories] == ["Platelets", "RBC", "WBC"]
    assert _counts(result) == {(policy.NO_AREA, f"BloodImage_00{n}.jpg"): 1 for n in (338, 343)}


@pytest.mark.parametrize("source", [_shared("coco_val")])
def test_all_boxes_of_coco_are_accounted_for(tmp_path, source):
    result = _convert("coco", source, tmp_path / "out", val_fraction=0)
    split = result.splits["train"]
    assert (split.num_examples, split.num_boxes, split.num_crowds) == (60, 507, 6)
    assert len(result.categories) == 80
    annotations = json.loads((source / "instances.json").read_text())["annotations"]
    boxes = np.concatenate(
        [r["boxes"] * np.tile([r["height"], r["width"]], 2) for r in _read(tmp_path / "out", "train")]
    )
    x, y, width, height = np.asarray([a["bbox"] for a in sorted(annotations, key=lambda a: a["image_id"])]).T
    # 1e-3 px: float32 fractions of 640 px.
    np.testing.assert_allclose(boxes, np.stack([y, x, y + height, x + width], -1), atol=1e-3)
