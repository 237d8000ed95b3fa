"""`train --export`: a run that ends with an export, or does not begin."""

import importlib.util

import numpy as np
import pytest

from efficientdet import cli
from efficientdet.benchmarks import drawn_weights
from efficientdet.formats import manifest as manifests
from efficientdet.model import weights
from efficientdet.structures import Category


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")
def test_a_run_ends_with_an_export(tiny, tmp_path, capsys):
    """What happens after the last step."""
    arrays = drawn_weights.random_weights(tiny)
    bias = "class_head/predict/pointwise/bias"
    arrays[bias] = np.full_like(arrays[bias], -3.0)  # few boxes above the threshold: no crowd of nearly equal ones
    categories = [Category(id=number, name=str(number)) for number in range(3)]
    weights.save(tmp_path / "run" / "weights" / "best.safetensors", arrays, tiny, categories)
    cli._export_run(str(tmp_path / "run"), "openvino")
    folder, manifest = manifests.read(tmp_path / "run" / "exports" / "openvino")
    assert (manifest.target, manifest.precision, manifest.model) == ("openvino", "float32", tiny)
    assert f"{folder}: openvino, float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export", "tensorrt"], "`--export` is tensorrt; there are saved_model"),
        (["--export", "onnx", "--seeds", "0..1"], "`--export` and `--seeds` do not go together"),
    ],
)
def test_a_run_that_could_not_end_with_its_export_does_not_begin(tmp_path, capsys, words, message):
    assert cli.main(["train", "demo", "--run-dir", str(tmp_path / "run"), *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
