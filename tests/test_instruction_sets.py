"""Tests of numerics hold on other processors than this one, as far as its newer instructions can be switched off.

Two ways: what libraries have for it (oneDNN in TensorFlow), and `older_processor.c`, which hides instructions from all
of them, since ONNX Runtime and XNNPACK have no switch of their own.
"""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import keras
import pytest

_TESTS = pathlib.Path(__file__).parent
_CONVOLUTIONS, _SUMS, _KERNELS = (f"kernels/test_{name}.py" for name in ("convolutions", "sums", "chains"))
_INT8 = "exporters/test_exports.py::test_int8_is_as_exact_on_this_processor_as_its_graph_is"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the switches are TensorFlow's"),
]


def _flags():
    """Lists what Linux says that the processor has."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


needs_newer = pytest.mark.skipif("avx512f" not in _flags(), reason="this processor has no newer instructions to hide")


def _run(tests, settings, *options):
    """Runs tests in a process of their own: what it wrote, with what oneDNN says of its work."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    environment = {**os.environ, "ONEDNN_VERBOSE": "1", **settings}
    environment.pop("PYTHONFAULTHANDLER", None)
    done = subprocess.run(
        [*command, *options, *tests], cwd=_TESTS, env=environment, capture_output=True, text=True, timeout=600
    )
    said = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("onednn_verbose"))
    assert done.returncode == 0, said + done.stderr
    assert re.search(r"\b[1-9]\d* passed", done.stdout), said
    return done.stdout


def _instructions(output):
    """Reads which instructions oneDNN uses."""
    found = set(re.findall(r"onednn_verbose,.*,cpu,isa:(.*)", output))
    assert len(found) == 1, found
    return found.pop().strip()


@needs_newer
def test_in_float32_without_newer_instructions_in_onednn():
    """TensorFlow asks oneDNN for 16 bits all the same, which then fails: those are in the tests below."""
    output = _run([_CONVOLUTIONS], {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "-k", "float32 and not small")
    assert _instructions(output) == "Intel AVX2"


def test_without_onednn():
    """As on processors without AVX-512, where TensorFlow computes 16 bits by loops of its own."""
    output = _run([_CONVOLUTIONS], {"TF_ENABLE_ONEDNN_OPTS": "0"}, "-k", "bfloat16 and not small")
    assert ",exec,cpu,convolution," not in output


@pytest.fixture(scope="module")
def older_processor(tmp_path_factory):
    """Compiles what hides instructions: settings for a process."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or platform.machine() != "x86_64" or not compiler:
        pytest.skip("needs Linux, an x86-64 processor and a C compiler")
    if "cpuid_fault" not in _flags():
        pytest.skip("this processor, or its virtual machine, cannot make CPUID fail")
    library = tmp_path_factory.mktemp("older") / "older_processor.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, _TESTS / "older_processor.c"], check=True, timeout=60
    )
    settings = {"LD_PRELOAD": str(library)}
    done = subprocess.run(["true"], env={**os.environ, **settings}, capture_output=True, text=True, timeout=60)
    if done.returncode or done.stderr:
        pytest.skip(done.stderr.strip() or "what hides instructions cannot be loaded")
    return settings


@needs_newer
def test_on_a_processor_with_avx2(older_processor):
    output = _run([_CONVOLUTIONS, _SUMS, _KERNELS, _INT8], older_processor, "-k", "not small")
    assert _instructions(output) == "Intel AVX2"


def test_on_jax():
    """XLA's own sums, in 16 bits: those in float32 are its own with TensorFlow too."""
    pytest.importorskip("jax")
    settings = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    _run([_CONVOLUTIONS, _SUMS], settings, "-k", "float16 and (small or shifts or blocks or means)")
