"""`train --export`: a run that ends with an export, or does not begin."""

import importlib.util

import pytest

from efficientdet import cli
from efficientdet.runtimes import manifest as manifests


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")
@pytest.mark.usefixtures("uncompiled")
def test_a_run_ends_with_an_export(tmp_path, capsys):
    words = (
        "train demo --data.train synthetic --data.synthetic-examples 8 --data.validation none --model.image-size 32 32 "
        "--model.backbone.width 0.25 --model.backbone.depth 0.25 --model.num-cells 1 --model.head-repeats 1 "
        f"--model.feature-channels 8 --training.batch-size 8 --training.epochs 1 --run-dir {tmp_path / 'run'}"
    ).split()
    assert cli.main([*words, "--export", "openvino"]) == 0
    folder, manifest = manifests.read(tmp_path / "run" / "exports" / "openvino")
    assert (manifest.target, manifest.precision, manifest.model.image_size) == ("openvino", "float32", (32, 32))
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
