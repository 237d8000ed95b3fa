"""What a command imports before it answers, in a process of its own: help does with little, exports without Keras."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from efficientdet import cli

_HEAVY = ("keras", "tensorflow", "jax")
_NOT_FOR_HELP = (*_HEAVY, "numpy._core", "PIL._binary", "requests.adapters", "yaml.loader")
_HELP = [*([verb] for verb in cli.VERBS), *(["benchmark", name] for name in cli.VERBS["benchmark"].verbs)]


def _run(*words):
    """Runs a command; returns (status, standard output, standard error, what it loaded of `_NOT_FOR_HELP`)."""
    program = (
        "import sys, json, atexit\n"
        f"loaded = lambda: [name for name in {_NOT_FOR_HELP} if name in sys.modules]\n"
        "atexit.register(lambda: print(json.dumps(loaded()), file=sys.stderr))\n"
        "from efficientdet.cli import main\n"
        f"sys.argv[1:] = {list(map(str, words))!r}\n"
        "sys.exit(main())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    *lines, loaded = found.stderr.splitlines()
    return found.returncode, found.stdout, lines, json.loads(loaded)


@pytest.mark.parametrize("words", _HELP, ids=" ".join)
def test_help_prints_nothing_else_and_loads_little(words):
    status, output, errors, loaded = _run(*words, "--help")
    assert status == 0
    assert "usage: efficientdet" in output
    assert errors == []
    assert loaded == []


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("start_up") / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def distinct_weights(tiny, tmp_path_factory):
    """Weights whose scores are far apart: nearly equal ones change places in an export, which is refused then."""
    from efficientdet.benchmarks import drawn_weights
    from efficientdet.model import weights
    from efficientdet.structures import Category

    path = tmp_path_factory.mktemp("start_up") / "distinct.safetensors"
    categories = tuple(Category(id=number, name=str(number)) for number in range(tiny.num_classes))
    weights.save(path, drawn_weights.random_weights(tiny), tiny, categories)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_export_is_run_without_keras_and_tensorflow(tmp_path, distinct_weights, image, format, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    from efficientdet.exporters import exports

    made = exports.export(distinct_weights, format=format, output=tmp_path / format, answer="raw")
    assert made is not None
    status, _, _, loaded = _run("predict", tmp_path / format, image, "--output", tmp_path / "found")
    assert status == 0
    assert not {*loaded} & {*_HEAVY}


@pytest.mark.slow
def test_weights_that_were_converted_before_are_too(tmp_path, finding_weights, image):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    from efficientdet import backend

    if backend.may_have_gpu():
        pytest.skip("a GPU decides which runtime is fastest")
    for number in range(2):  # the first converts
        status, _, _, loaded = _run("predict", finding_weights, image, "--output", tmp_path / str(number))
        assert status == 0
        assert not {*loaded} & {*_HEAVY} or number == 0


@pytest.mark.slow
def test_tensorflow_s_own_lines_stay_away_from_the_terminal_also_in_other_processes(tmp_path):
    from efficientdet.data import synthetic

    synthetic.write_coco_folder(tmp_path / "source", {"train": 3}, (64, 64), seed=0)
    words = ["--output", tmp_path / "records", "--num-workers", "2", "--num-shards", "2"]
    status, _, errors, _ = _run("convert", "coco", tmp_path / "source", *words)
    assert status == 0
    assert [line for line in errors if "absl" in line or "oneDNN" in line or "tensorflow" in line.lower()] == []


@pytest.mark.slow
def test_tensorflow_s_own_lines_stay_away_in_python_too(tmp_path):
    from efficientdet.data import synthetic

    synthetic.write_coco_folder(tmp_path / "source", {"train": 3}, (64, 64), seed=0)
    words = [str(tmp_path / name) for name in ("source", "records")]
    program = f"import efficientdet; efficientdet.convert('coco', {words[0]!r}, output={words[1]!r})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert [line for line in found.stderr.splitlines() if not line.startswith("Converting")] == []


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0")], ids=["default", "off"]
)
def test_onednn_is_asked_for_before_any_module_can_import_tensorflow(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"} | given
    words = "import efficientdet, os, sys; print(os.environ['TF_ENABLE_ONEDNN_OPTS'], 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, "False"]
