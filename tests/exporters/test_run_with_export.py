"""`train --export`: a run that ends with an export, or does not begin."""

import dataclasses
import importlib.util

import little_command_line
import numpy as np
import pytest

from efficientdet import cli, presets
from efficientdet.benchmarks import drawn_weights
from efficientdet.errors import UserError
from efficientdet.formats import manifest as manifests
from efficientdet.model import weights
from efficientdet.structures import Category
from efficientdet.training import experiment


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")
def test_a_run_ends_with_an_export(tiny, tmp_path, capsys):
    """What happens after the last step."""
    arrays = drawn_weights.random_weights(tiny)
    bias = "class_head/predict/pointwise/bias"
    arrays[bias] = np.full_like(arrays[bias], -3.0)  # few boxes above the threshold: no crowd of nearly equal ones
    categories = [Category(id=number, name=str(number)) for number in range(3)]
    weights.save(tmp_path / "run" / "weights" / "best.safetensors", arrays, tiny, categories)
    experiment._export_run(tmp_path / "run", "openvino")
    folder, manifest = manifests.read(tmp_path / "run" / "exports" / "openvino")
    assert (manifest.target, manifest.precision, manifest.model) == ("openvino", "float32", tiny)
    assert f"{folder}: openvino, float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"export": "tensorrt"}, "`export` is tensorrt; choose from saved_model"),
        ({"export": "onnx", "seeds": (0, 1)}, "`export` and `seeds` cannot be combined"),
    ],
)
def test_a_run_that_could_not_end_with_its_export_does_not_begin(tmp_path, options, message):
    config = dataclasses.replace(presets.find_preset("demo"), run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=message):
        experiment.train(config, **options)
    assert not (tmp_path / "run").exists()


def test_the_options_of_the_command_are_the_function_s_arguments(tmp_path, capsys):
    found = little_command_line.training_arguments(["demo", "--export", "onnx", "--seeds", "0..2,7"])
    assert (found["export"], found["seeds"]) == ("onnx", (0, 1, 2, 7))
    found = little_command_line.training_arguments(["demo"])
    assert (found["export"], found["seeds"]) == (None, None)
    words = ["train", "demo", "--run-dir", str(tmp_path / "run"), "--export", "onnx", "--seeds", "0..1"]
    assert cli.main(words) == 1
    assert "`export` and `seeds` cannot be combined" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"), [(["--export", "tensorrt"], "tensorrt"), (["--seeds", "4..0"], "must be ascending")]
)
def test_a_format_or_seeds_that_cannot_be_are_wrong_usage(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "demo", *words])
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
