"""The benchmark of inference: every part has its turn, a rival too, and the file says what figures depend on."""

import importlib.util
import json
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from efficientdet.benchmarks import inference
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.structures import Category

_RIVAL = """
import json, sys
print("getting ready", sys.argv[1:], flush=True)
for line in sys.stdin:
    print(json.dumps({"rate": 0.001, "seconds": [1000.0], "threads": 1}), flush=True)
"""


@pytest.fixture(scope="module")
def weights_file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    arrays = {weights.variable_name(variable): variable.numpy() for variable in EfficientDet(tiny).weights}
    weights.save(path, arrays, tiny, [Category(id=number + 1, name=str(number)) for number in range(3)])
    return path


def test_each_part_has_its_turn_and_a_rival_too(weights_file, rng, tmp_path):
    runtimes = ("keras", "openvino") if importlib.util.find_spec("openvino") else ("keras",)
    (tmp_path / "images").mkdir()
    for number in range(2):
        image = rng.integers(0, 256, (90, 70 + number, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.jpg")
    result = inference.benchmark_inference(
        str(weights_file),
        images=tmp_path / "images",
        batch_sizes=(1, 2),
        precisions=("float32",),
        runtimes=runtimes,
        rounds=2,
        turn_seconds=0.01,
        rival=f"{sys.executable} -c {shlex.quote(_RIVAL)}",
        output=tmp_path / "result.json",
    )
    measured = {(row["part"], row["by"], row["batch_size"]) for row in result.rows}
    parts = {("decode", "Pillow", 1), ("letterbox", "NumPy", 1), ("postprocess", "host", 1)}
    expected = {(part, by, size) for part in ("network", "end to end") for by in runtimes for size in (1, 2)}
    assert measured >= expected | parts | {("network", "rival", 1), ("network", "rival", 2)}
    for row in result.rows:
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
    assert result.ratios["inference_cpu_fp32_vs_effdet"]["min"] > 1
    assert "inference_cpu_bf16_vs_effdet" not in result.ratios
    # The whole way is seldom faster than the network, which is a part of it; at these sizes single turns may be.
    assert 0 < result.ratios["end_to_end_vs_network"]["median"] < 2
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["ratios"] == result.ratios
    assert {"what", "rows", "hardware", "versions", "commit", "command", "date"} <= set(written)
    assert result.table().row_count == len(result.rows)


def test_percentiles_are_of_single_calls_without_those_of_the_first_round():
    calls = []
    candidate = inference._Candidate("network", "ours", "float32", 2, calls.append)
    rates = inference._measure([candidate], rounds=3, turn_seconds=1e-9)
    assert calls == [0] * 4
    assert len(candidate.seconds) == len(rates[candidate.name]) == 3
    assert rates[candidate.name] == pytest.approx([2 / seconds for seconds in candidate.seconds])


@pytest.mark.parametrize(
    ("knobs", "words"),
    [({"rounds": 0}, "`rounds` is 0"), ({"batch_sizes": (0,)}, "`batch_sizes` is"), ({"batch_sizes": ()}, "`batch_")],
)
def test_impossible_wishes_are_one_line(knobs, words):
    with pytest.raises(UserError, match=words):
        inference.benchmark_inference("d0", **knobs)


def test_a_folder_without_images_is_one_line(tmp_path):
    with pytest.raises(UserError, match="which contains no images"):
        inference.benchmark_inference("d0", images=tmp_path)
    with pytest.raises(UserError, match="which is not a folder"):
        inference.benchmark_inference("d0", images=tmp_path / "missing")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO says what a processor has")
def test_a_precision_that_would_be_emulated_is_left_out(monkeypatch, weights_file):
    from efficientdet.formats import openvino_runtime

    monkeypatch.setattr(openvino_runtime, "has_arithmetic", lambda precision: precision == "float32")
    assert inference._with_arithmetic(("float32", "mixed_bfloat16")) == ("float32",)
    with pytest.raises(UserError, match="`precisions` is mixed_bfloat16, for which this CPU has no instructions"):
        inference.benchmark_inference(str(weights_file), precisions=("mixed_bfloat16",), runtimes=("openvino",))
