"""What is measured on a GPU with JAX: the very commands, on a CPU with a small model and without TensorFlow."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from efficientdet.benchmarks import accelerator, inference
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.structures import Category

_ROOT = pathlib.Path(__file__).parents[2]
_RIVAL = """\
import json, sys
for line in sys.stdin:
    print(json.dumps({"rate": 0.5, "seconds": [2.0], "arguments": sys.argv[1:]}), flush=True)
"""
# Whatever imports TensorFlow fails, as where it is not installed.
_BLOCK = """\
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory, quick_jax):
    """Runs `make bench-gpu`: name -> what it wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "rival.py").write_text(_RIVAL)
    arrays = {weights.variable_name(variable): variable.numpy() for variable in EfficientDet(tiny).weights}
    weights.save(
        folder / "tiny.safetensors", arrays, tiny, [Category(id=number, name=str(number)) for number in (1, 2, 3)]
    )
    (folder / "path").mkdir()
    (folder / "path" / "sitecustomize.py").write_text(_BLOCK)
    words = {
        "GPU_PYTHON": f"env PYTHONPATH={_ROOT / 'src'}:{folder / 'path'} {sys.executable}",
        "PYTHON_WITH_EFFDET": f"{sys.executable} {folder / 'rival.py'}",
        "GPU_MODEL": "demo",
        "GPU_WEIGHTS": str(folder / "tiny.safetensors"),
        "GPU_DEPTHWISE": "convolution shifts",
        "GPU_PRECISIONS": "float32",
        "GPU_TRAIN_BATCHES": "1",
        "GPU_BATCHES": "2",
        "GPU_ROUNDS": "2",
        "GPU_TRAIN_OPTIONS": "--image-size 64 64 --steps 1 --warmup 1 --depthwise convolution",
        "GPU_INFERENCE_OPTIONS": "--turn-seconds 0.01",
        "RESULTS": str(folder),
    }
    made = subprocess.run(
        ["make", "bench-gpu", *(f"{name}={value}" for name, value in words.items())],
        cwd=_ROOT,
        env={**os.environ, **quick_jax, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    found = {name: json.loads((folder / f"{name}-gpu.json").read_text()) for name in ("train", "inference")}
    return {**found, "printed": made.stdout}


@pytest.mark.slow
def test_every_way_to_convolve_is_measured_in_turns(results):
    # Of the step one is measured: compiling both would take a minute more.
    assert [row["depthwise"] for row in results["train"]["rows"]] == ["convolution"]
    measured = {(row["part"], row["by"], row["batch_size"]) for row in results["inference"]["rows"]}
    parts = ("network", "network + suppression", "end to end")
    ours = {(part, by, size) for part in parts for by in ("keras", "keras, shifts") for size in (2,)}
    assert measured >= ours | {("network", "rival", 2)}


@pytest.mark.slow
def test_the_results_say_the_device_and_the_versions(results):
    for name in ("train", "inference"):
        assert results[name]["hardware"]["cpu"] in results[name]["what"]
        assert "jax" in results[name]["versions"]
        assert results[name]["what"].rpartition(" on ")[2] in " ".join(results["printed"].split())
    assert {row["backend"] for row in results["train"]["rows"]} == {"jax"}


@pytest.mark.slow
def test_the_rival_is_told_to_run_on_cuda(results):
    arguments = results["train"]["rival"]["arguments"]
    assert arguments[:4] == ["benchmarks/effdet_rival.py", "train", "--device", "cuda"]
    ratio = results["train"]["ratios"]["train_cpu_vs_effdet"]
    best = max(row["images_per_second"]["median"] for row in results["train"]["rows"])
    assert ratio["median"] == pytest.approx(best / 0.5, rel=1e-2)


def test_the_ratio_is_of_the_fastest_networks():
    def candidate(by, batch_size, part="network"):
        return inference._Candidate(part, by, "mixed_bfloat16", batch_size, lambda call: None)

    rates = {
        candidate("keras", 1): [10.0, 12.0],
        candidate("keras, pallas", 64): [40.0, 60.0],
        candidate("keras, pallas", 64, "network + suppression"): [900.0, 900.0],
        candidate("rival", 1): [5.0, 6.0],
        candidate("rival", 64): [20.0, 20.0],
    }
    named = {one.name: values for one, values in rates.items()}
    found = accelerator.ratios(list(rates), named, "rival")
    assert found == {"inference_gpu_vs_effdet": {"min": 2.0, "median": 2.5, "max": 3.0}}
    alone = [one for one in rates if one.by != "rival"]
    assert accelerator.ratios(alone, named, "rival") == {}


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        pytest.param(("convolution", "pallas"), "which needs JAX, not tensorflow", id="pallas on TensorFlow"),
        pytest.param((), "is empty", id="nothing"),
    ],
)
def test_what_cannot_be_computed_here_is_one_line(methods, words):
    with pytest.raises(UserError, match=words):
        accelerator.check_depthwise(methods)


def test_pallas_without_a_gpu_is_one_line():
    program = "from efficientdet import cli; raise SystemExit(cli.main())"
    words = ["benchmark", "inference", "--backend", "jax", "--runtimes", "keras", "--depthwise", "pallas"]
    asked = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 1
    assert "pallas, which needs a GPU" in asked.stderr
    assert "Traceback" not in asked.stderr
