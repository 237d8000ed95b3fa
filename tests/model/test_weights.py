"""Weights files: what is saved comes back, and what does not fit is named."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from efficientdet import config as configs
from efficientdet.errors import UserError
from efficientdet.model import variables, weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.structures import Category

_MODEL = configs.ModelConfig(
    image_size=(64, 64),
    num_classes=2,
    backbone=configs.BackboneConfig(width=0.25, depth=0.25),
    feature_channels=8,
    num_cells=1,
    head_repeats=1,
)
_CATEGORIES = (Category(id=3, name="cat"), Category(id=7, name="dög"))


@pytest.fixture(scope="module")
def model():
    return EfficientDet(_MODEL)


@pytest.fixture
def saved(model, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        weights.variable_name(variable): np.abs(rng.normal(size=variable.shape)).astype(np.float32)
        for variable in model.weights
    }
    path = tmp_path / "weights.safetensors"
    weights.save(path, arrays, _MODEL, _CATEGORIES)
    return path, arrays


def test_what_is_saved_comes_back(model, saved):
    path, arrays = saved
    loaded = weights.load(path)
    assert loaded.model == _MODEL
    assert loaded.categories == _CATEGORIES
    weights.assign(model, loaded)
    for variable in model.weights:
        np.testing.assert_array_equal(variable.numpy(), arrays[weights.variable_name(variable)])


def test_nothing_else_is_left_beside_the_file(saved):
    path, _ = saved
    assert [child.name for child in path.parent.iterdir()] == [path.name]


_WRITE = """
import pathlib, sys
import numpy as np
from efficientdet import config
from efficientdet.model import weights
from efficientdet.structures import Category
arrays = {f"layer_{n}/kernel": np.full((n, 3), n, np.float32) for n in range(20)}
weights.save(pathlib.Path(sys.argv[1]), arrays, config.ModelConfig(), (Category(id=1, name='a "cat"\\n\x7f dög'),))
"""


def test_equal_weights_are_equal_bytes_in_any_process(tmp_path):
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", _WRITE, str(path)], check=True, env=environment)
    assert len({path.read_bytes() for path in paths}) == 1
    arrays, metadata = weights.read_safetensors(paths[0])
    assert list(arrays["layer_7/kernel"][0]) == [7, 7, 7]
    assert json.loads(metadata["categories"]) == [{"id": 1, "name": 'a "cat"\n\x7f dög'}]


def test_the_best_weights_of_a_run_are_found(saved, tmp_path):
    path, _ = saved
    folder = tmp_path / "run" / "weights"
    folder.mkdir(parents=True)
    (folder / "last.safetensors").write_bytes(path.read_bytes())
    assert weights.find(tmp_path / "run").name == "last.safetensors"
    (folder / "best.safetensors").write_bytes(path.read_bytes())
    assert weights.find(tmp_path / "run").name == "best.safetensors"


def _change(path, change):
    arrays = load_file(path)
    metadata = weights.read_safetensors(path)[1]
    change(arrays, metadata)
    save_file(arrays, path, metadata)


def _change_model(**values):
    def change(_, metadata):
        metadata["model"] = json.dumps({**json.loads(metadata["model"]), **values})

    return change


_STEM = "backbone/stem/kernel"
_VARIANCE = "backbone/stem_norm/moving_variance"
_BROKEN = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a complete safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "not a complete safetensors file"),
    "a pickle": (
        lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR."),
        "not a complete safetensors file",
    ),
    "a header that asks for all memory": (
        lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        "not a complete safetensors file",
    ),
    "of another program": (lambda p: _change(p, lambda _, m: m.pop("format")), "has the format None"),
    "without classes": (lambda p: _change(p, lambda _, m: m.pop("categories")), "damaged metadata"),
    "without post-processing": (lambda p: _change(p, lambda _, m: m.pop("postprocess")), "damaged metadata"),
    "model of another type": (lambda p: _change(p, _change_model(num_cells="two")), "num_cells` is 'two'"),
    "unknown field": (lambda p: _change(p, _change_model(color="red")), "unknown field `color`"),
    "an id that is not a number": (
        lambda p: _change(p, lambda _, m: m.update(categories='[{"id": "x", "name": "a"}, {"id": 2, "name": "b"}]')),
        "damaged metadata",
    ),
    "an id twice": (
        lambda p: _change(p, lambda _, m: m.update(categories='[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]')),
        "two classes with the same id",
    ),
    "metadata of many levels": (lambda p: _change(p, lambda _, m: m.update(model="[" * 100_000)), "damaged metadata"),
    "no pixels": (lambda p: _change(p, _change_model(image_size=[0, 0])), "`model.image_size` is 0 x 0"),
    "no anchors": (lambda p: _change(p, _change_model(aspect_ratios=[])), "`model.aspect_ratios` is ()"),
    "division by zero": (lambda p: _change(p, _change_model(pixel_std=[0, 0, 0])), "`model.pixel_std` is (0.0"),
    "no candidates": (
        lambda p: _change(p, lambda _, m: m.update(postprocess='{"max_candidates": -1}')),
        "`postprocess.max_candidates` is -1",
    ),
    "classes that are too many": (lambda p: _change(p, _change_model(num_classes=3)), "2 classes, but its model has 3"),
    "variable missing": (lambda p: _change(p, lambda a, _: a.pop(_STEM)), f"`{_STEM}` is missing"),
    "variable left over": (lambda p: _change(p, lambda a, _: a.update(x=a[_STEM])), "`x` is not in the model"),
    "transposed": (
        lambda p: _change(p, lambda a, _: a.update({_STEM: a[_STEM].T.copy()})),
        "has the shape (8, 3, 3, 3)",
    ),
    "half precision": (lambda p: _change(p, lambda a, _: a.update({_STEM: a[_STEM].astype("f2")})), "the type F16"),
    "not finite": (lambda p: _change(p, lambda a, _: a.update({_STEM: a[_STEM] * np.nan})), "that are not finite"),
    "a variance below 0": (
        lambda p: _change(p, lambda a, _: a.update({_VARIANCE: -1 - a[_VARIANCE] ** 2})),
        f"`{_VARIANCE}` has values below 0",
    ),
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_a_broken_file_is_one_line_that_names_it(saved, kind):
    path, _ = saved
    spoil, expected = _BROKEN[kind]
    spoil(path)
    with pytest.raises(UserError) as caught:
        weights.load(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


_HUGE = {
    "wide features": (_change_model(feature_channels=100_000), "more problems"),
    "features beyond all limits": (_change_model(feature_channels=10**6), "`model.feature_channels` is 1000000"),
    "many cells": (_change_model(num_cells=20), "`feature_network/cell_1_node_0/"),
    "a deep backbone": (_change_model(backbone={"depth": 20.0, "width": 0.25}), "is missing, and"),
    "a deeper backbone": (_change_model(backbone={"depth": 1e9}), "`model.backbone.depth` is 1000000000.0"),
    "a wide backbone": (_change_model(backbone={"width": 20.0, "depth": 0.25}), "has the shape"),
    "many anchors": (_change_model(num_octaves=100), "has the shape"),
    "large images": (_change_model(image_size=[20_000, 20_000]), "the backbone would need"),
    "larger images": (_change_model(image_size=[10**9, 10**9]), "between 32 and 100,000"),
    "many candidates": (
        lambda _, metadata: metadata.update(postprocess='{"max_candidates": 2147483648}'),
        "`postprocess.max_candidates` is 2147483648",
    ),
    "many detections": (
        lambda _, metadata: metadata.update(postprocess='{"max_detections": 2147483647}'),
        "`postprocess.max_detections` is 2147483647",
    ),
    "many classes": (
        lambda arrays, metadata: (
            _change_model(num_classes=10**5)(arrays, metadata),
            metadata.update(categories=json.dumps([{"id": n, "name": ""} for n in range(10**5)])),
        ),
        "has the shape",
    ),
}
_IN_LITTLE_MEMORY = """
import pathlib, resource, sys
from efficientdet import backend
from efficientdet.formats.keras import KerasRuntime
from efficientdet.errors import UserError
backend.choose()
from efficientdet.checkpoints import pretrained
from efficientdet.model import anchors, efficientdet
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
for path in sys.argv[1:]:
    try:
        KerasRuntime(path)
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_a_file_that_claims_a_huge_network_is_refused_in_little_memory(saved, tmp_path):
    path, _ = saved
    paths = []
    for kind, (change, _) in _HUGE.items():
        paths.append(tmp_path / f"{kind}.safetensors")
        shutil.copy(path, paths[-1])
        _change(paths[-1], change)
    command = [sys.executable, "-c", _IN_LITTLE_MEMORY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(_HUGE)
    for line, made, (_, expected) in zip(said, paths, _HUGE.values(), strict=True):
        assert str(made) in line
        assert expected in line


def test_a_file_of_thousands_of_classes_is_known_as_ours(model, saved, tmp_path):
    _, arrays = saved
    categories = [Category(id=number, name=f"a class with a long name {number}") for number in range(1, 3001)]
    for name in ("a", "b", "c"):  # the order of the metadata differs from file to file
        weights.save(tmp_path / name, arrays, _MODEL, categories)
        assert weights.is_ours(tmp_path / name)
    assert not weights.is_ours(tmp_path / "nowhere")


def test_several_problems_are_counted(saved):
    path, _ = saved
    _change(path, lambda arrays, _: [arrays.pop(name) for name in list(arrays)[:3]])
    with pytest.raises(UserError, match="and 2 more problems"):
        weights.load(path)


def test_a_file_that_cannot_be_written_is_one_line(saved, tmp_path):
    _, arrays = saved
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        weights.save(tmp_path / "file" / "weights.safetensors", arrays, _MODEL, _CATEGORIES)


def test_a_config_is_kept_whole(saved):
    path, _ = saved
    changed = dataclasses.replace(_MODEL, fusion="sum", activation="relu6", pixel_mean=(0.5, 0.5, 0.5))
    arrays = {name: np.ones(shape, np.float32) for name, shape in variables.variable_shapes(changed).items()}
    weights.save(path, arrays, changed, _CATEGORIES)
    assert weights.load(path).model == changed
