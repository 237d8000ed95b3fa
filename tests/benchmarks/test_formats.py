"""The benchmark of exports: each is made, verified and timed beside Keras."""

import importlib.util
import json

import numpy as np
import pytest

from efficientdet.benchmarks import formats
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.structures import Category

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def weights_file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    arrays = {weights.variable_name(variable): variable.numpy() for variable in EfficientDet(tiny).weights}
    arrays["class_head/predict/pointwise/bias"] = np.full(27, -1.0, np.float32)
    weights.save(path, arrays, tiny, [Category(id=number + 1, name=str(number)) for number in range(3)])
    return path


def test_a_row_for_keras_and_each_export(weights_file, tmp_path):
    output = tmp_path / "result.json"
    result = formats.benchmark_exports(
        str(weights_file),
        formats=("openvino",),
        precisions=("float16", "int8"),
        rounds=2,
        turn_seconds=0.01,
        output=output,
    )
    rows = [(row["format"], row["precision"], row["answer"]) for row in result.rows]
    # Without records AP is not measured, and int8 not written.
    assert rows == [("weights", "float32", "Keras"), ("openvino", "float16", "raw")]
    for row in result.rows:
        assert row["ap"] is None
        assert row["megabytes"] > 0
        assert row["images_per_second"]["min"] <= row["images_per_second"]["median"]
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
    assert result.table().row_count == 2
    assert {"what", "rows", "hardware", "versions", "commit", "command", "date"} <= set(json.loads(output.read_text()))


def test_no_round_is_one_line(weights_file):
    with pytest.raises(UserError, match="`rounds` is 0"):
        formats.benchmark_exports(str(weights_file), rounds=0)
