"""The programs in examples/, and the Python in the README, run as they are written."""

import dataclasses
import json
import pathlib
import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from efficientdet import presets
from efficientdet.model import weights

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What examples/train_and_detect.py wrote, in two steps of a shrunken preset on little images."""
    folder = tmp_path_factory.mktemp("example")
    words = [str(folder), "--epochs", "1", "--images", "16", "--image-size", "64"]
    demo = presets.find_preset("demo")
    backbone = dataclasses.replace(demo.model.backbone, width=0.25, depth=0.25)
    model = dataclasses.replace(demo.model, backbone=backbone, feature_channels=8, num_cells=1, head_repeats=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "demo", dataclasses.replace(demo, model=model))
        patch.setattr(sys, "argv", ["train_and_detect.py", *words])
        runpy.run_path(str(_ROOT / "examples" / "train_and_detect.py"), run_name="__main__")
    return folder


def _read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_example_is_run_by_a_test():
    names = sorted(path.name for path in (_ROOT / "examples").glob("*.py"))
    assert names == ["detect.py", "train_and_detect.py"]


@pytest.mark.slow
def test_the_example_trains_and_writes_an_image_with_what_it_found(output):
    assert (output / "run" / "weights" / "best.safetensors").is_file()
    first = _read(output / "images" / "val" / "000001.jpg")
    assert _read(output / "detections.jpg").shape == first.shape


@pytest.fixture(scope="module")
def sure_weights(finding_weights, tmp_path_factory):
    """Weights whose scores are above the detector's own threshold."""
    loaded = weights.load(finding_weights)
    arrays = dict(loaded.arrays) | {"class_head/predict/pointwise/bias": np.full(27, 0.5, np.float32)}
    path = tmp_path_factory.mktemp("weights") / "sure.safetensors"
    weights.save(path, arrays, loaded.model, loaded.categories)
    return path


def test_the_example_detects_in_every_way(sure_weights, tmp_path, monkeypatch, capsys):
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    words = ["detect.py", str(sure_weights), str(tmp_path / "a.png"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(_ROOT / "examples" / "detect.py"), run_name="__main__")
    assert _read(tmp_path / "out" / "found.jpg").shape == image.shape
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert {"cat", "dog", "cow"} & {detection["class"] for detection in found["detections"]}
    assert f"{len(found['detections'])} rows" in capsys.readouterr().out


def test_the_python_of_the_guide_runs_as_it_is_written(sure_weights, tmp_path, monkeypatch):
    snippets = re.findall(
        r"```python\n(.*?)```", (_ROOT / "docs" / "predict.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert snippets
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "d0").symlink_to(sure_weights)
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    (tmp_path / "photographs").mkdir()
    for path in ("photograph.jpg", "photographs/a.jpg", "photographs/b.jpg"):
        Image.fromarray(image).save(path)
    names = {"image": image}
    for snippet in snippets:
        exec(compile(snippet, "predict.md", "exec"), names)
    assert _read(tmp_path / "found.jpg").shape == image.shape


def test_the_python_of_the_readme_runs_as_it_is_written(sure_weights, tmp_path, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", (_ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 1
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "lite0").symlink_to(sure_weights)
    monkeypatch.chdir(tmp_path)
    image = np.full((90, 130, 3), 128, np.uint8)
    Image.fromarray(image).save("holiday.jpg")
    assert len(snippets[0].strip().splitlines()) == 4  # with a blank one
    exec(compile(snippets[0], "README.md", "exec"), {})
    drawn = _read(tmp_path / "found.jpg")
    assert drawn.shape == image.shape
    assert np.abs(drawn.astype(int) - image).max() > 60, "boxes and names in full colours"
