"""What people give by mistake: one line on standard error, exit status 1, no traceback, nothing half written."""

import json

import little_datasets
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from efficientdet import cli, presets
from efficientdet.checkpoints import names


def _truncate(path, count):
    path.write_bytes(path.read_bytes()[:-count])


def _coco(root, change=None):
    document = little_datasets.coco_document()
    if change:
        change(document)
    return little_datasets.write_coco(root / "in", document)


def _convert(*words):
    return lambda root: ["convert", *words[:1], str(root / "in"), *words[1:], "--output", str(root / "out")]


def _cut_image(root):
    _truncate(_coco(root) / "images" / "a.jpg", 300)


def _no_image(root):
    (_coco(root) / "images" / "a.jpg").unlink()


def _cut_json(root):
    _truncate(_coco(root) / "instances.json", 20)


def _wrong_size(root):
    _coco(root, lambda d: d["images"][0].update(height=400))


def _no_class(root):
    _coco(root, lambda d: d["annotations"][0].update(category_id=1))


def _same_id(root):
    _coco(root, lambda d: d["images"][1].update(id=7))


def _no_boxes(root):
    _coco(root, lambda d: d.update(annotations=[]))


def _escape(root):
    _coco(root, lambda d: d["images"][0].update(file_name="../../etc/passwd"))


def _bomb(root):
    Image.new("1", (30000, 30000)).save(_coco(root) / "images" / "a.jpg", "PNG")


def _voc_cut(root):
    _truncate(little_datasets.write_voc(root / "in") / "Annotations" / "a.xml", 30)


def _voc_entities(root):
    path = little_datasets.write_voc(root / "in") / "Annotations" / "a.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "bbbb">]>\n' + path.read_text())


def _yolo_class(root):
    folder = little_datasets.write_yolo(root / "in")
    label = next(iter(sorted(folder.rglob("a.txt"))))
    label.write_text("77 0.5 0.5 0.2 0.2\n")


def _occupied(root):
    _coco(root)
    (root / "out").mkdir()
    (root / "out" / "keep.txt").write_text("mine")


def _image(root):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / "in.png")


def _weights(root):
    (root / "w.safetensors").write_bytes(b"\x80\x04 this is not a weights file")


def _config_file(root):
    (root / "config.json").write_text(json.dumps({"model": {"num_cells": "many"}}))


def _file(root):
    _image(root)
    (root / "file").write_text("")


def _detections(root):
    _file(root)
    (root / "found.json").write_text("no JSON")


def _checkpoint(root):
    """Has the names of a detector, so that it is known as one, and no values that fit."""
    _file(root)
    sources = names.variable_sources(presets.MODELS["d0"], "effdet").values()
    tensors = {source.name: np.zeros(9, np.float32) for source in sources}
    save_file({**tensors, "class_net.predict.conv_pw.bias": np.zeros(810, np.float32)}, root / "d0.safetensors")


def _nothing(root):
    pass


_TRAIN = ["train", "demo", "--run-dir"]
_KINDS = {
    "no such folder": (_nothing, _convert("coco"), "expected a folder with images and annotations"),
    "image cut short": (_cut_image, _convert("coco"), "a.jpg"),
    "image missing": (_no_image, _convert("coco"), "a.jpg"),
    "json cut short": (_cut_json, _convert("coco"), "instances.json"),
    "another size declared": (_wrong_size, _convert("coco"), "a.jpg"),
    "unknown class": (_no_class, _convert("coco"), "instances.json"),
    "an id twice": (_same_id, _convert("coco"), "instances.json"),
    "no boxes": (_no_boxes, _convert("coco"), "in`"),
    "path out of the folder": (_escape, _convert("coco"), "etc/passwd"),
    "decompression bomb": (_bomb, _convert("coco"), "a.jpg"),
    "xml cut short": (_voc_cut, _convert("voc"), "a.xml"),
    "xml with entities": (_voc_entities, _convert("voc"), "a.xml"),
    "yolo class out of range": (_yolo_class, _convert("yolo"), "a.txt"),
    "no such split": (_coco, _convert("coco", "--splits", "night"), "night"),
    "impossible fraction": (_coco, _convert("coco", "--val-fraction", "1.5"), "`val_fraction` is 1.5"),
    "output in use": (_occupied, _convert("coco"), "out is not empty"),
    "no preset": (_nothing, lambda root: ["train", "d99"], "`d99` is not a preset"),
    "no training data": (_nothing, lambda root: [*_TRAIN, str(root / "out")], "`data.train` is empty"),
    "training data missing": (
        _nothing,
        lambda root: [*_TRAIN, str(root / "out"), "--data.train", str(root / "no")],
        "no`",
    ),
    "batch of nothing": (
        _nothing,
        lambda root: [*_TRAIN, str(root / "out"), "--data.train", "synthetic", "--training.batch-size", "0"],
        "`training.batch_size` is 0",
    ),
    "image too small": (
        _nothing,
        lambda root: [*_TRAIN, str(root / "out"), "--data.train", "synthetic", "--model.image-size", "16", "16"],
        "`model.image_size` is 16 x 16",
    ),
    "config of another type": (
        _config_file,
        lambda root: ["train", "--config", str(root / "config.json"), "--run-dir", str(root / "out")],
        "num_cells` is 'many'",
    ),
    "no weights": (
        _image,
        lambda root: ["predict", str(root / "no"), str(root / "in.png"), "--output", str(root / "out")],
        "no` does not exist",
    ),
    "weights that are none": (
        lambda root: (_weights(root), _image(root)),
        lambda root: ["predict", str(root / "w.safetensors"), str(root / "in.png"), "--output", str(root / "out")],
        "w.safetensors` is not a complete safetensors file",
    ),
    "no image to predict": (
        _weights,
        lambda root: ["predict", str(root / "w.safetensors"), str(root / "no.jpg"), "--output", str(root / "out")],
        "no.jpg` does not exist",
    ),
    "nothing to evaluate on": (
        _weights,
        lambda root: ["evaluate", str(root / "w.safetensors"), "--data", str(root / "no")],
        "no`",
    ),
    # What is read is of no use either: the place to write to is looked at before.
    "nowhere to write an evaluation": (
        _file,
        lambda root: ["evaluate", str(root / "no"), "--data", "no", "--output", str(root / "file" / "out")],
        "file/out/metrics.json` cannot be written: Not a directory",
    ),
    "nowhere to write what a count found": (
        _detections,
        lambda root: ["evaluate", str(root / "found.json"), "--data", "no", "--output", str(root / "file")],
        "file/metrics.json` cannot be written: Not a directory",
    ),
    "nowhere to write detections": (
        lambda root: (_file(root), (root / "out" / "found.json").mkdir(parents=True)),
        lambda root: [
            *("evaluate", str(root / "no"), "--data", "no", "--output", str(root / "out")),
            *("--results-name", "found.json"),
        ],
        "out/found.json` cannot be written: Is a directory",
    ),
    "nowhere to write predictions": (
        _file,
        lambda root: ["predict", str(root / "no"), str(root / "in.png"), "--output", str(root / "file" / "out")],
        "file/out/predictions.json` cannot be written: Not a directory",
    ),
    "nowhere to write weights": (
        _checkpoint,
        lambda root: ["import-weights", str(root / "d0.safetensors"), "--output", str(root / "file" / "ours")],
        "file/ours` cannot be written: Not a directory",
    ),
    "nowhere to write a preview": (
        _file,
        lambda root: ["preview", str(root / "no"), "--output", str(root / "file" / "sheet.jpg")],
        "file/sheet.jpg` cannot be written: Not a directory",
    ),
    "nowhere to write a run": (
        _file,
        lambda root: [*_TRAIN, str(root / "file" / "run"), "--data.source", str(root / "no")],
        "file/run/config.json` cannot be written: Not a directory",
    ),
    "unknown backend": (_nothing, lambda root: ["describe", "d0", "--backend", "mxnet"], "`backend` is `mxnet`"),
    "no such model": (_nothing, lambda root: ["describe", "d8"], "`d8` is not a preset"),
}


@pytest.mark.parametrize("kind", _KINDS)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(kind, tmp_path, capfd):
    prepare, words, expected = _KINDS[kind]
    prepare(tmp_path)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    arguments = words(tmp_path)
    if arguments[0] == "convert":
        arguments += ["--num-workers", "1"]
    assert cli.main(arguments) == 1
    captured = capfd.readouterr()
    said = [line for line in captured.err.splitlines() if line.startswith("efficientdet: ")]
    assert len(said) == 1
    assert captured.err.endswith(said[0] + "\n")
    assert expected in said[0]
    assert "Traceback" not in captured.err
    assert not captured.out
    after = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert after == before
