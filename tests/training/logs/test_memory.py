"""Memory of the process, and of a device that has its own."""

import subprocess
import sys

import numpy as np
import pytest

from efficientdet import backend
from efficientdet.training.distributed import engine
from efficientdet.training.logs import memory


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says it")
def test_memory_in_use_grows_by_what_is_filled():
    memory.trim()  # what other tests have freed is not given back in between
    before = memory.resident()
    held = np.ones(500_000_000, np.uint8)
    grown = memory.resident() - before
    assert 400 < grown < 600, "MB"
    del held


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says it")
def test_the_peak_is_that_of_the_process_itself_not_of_the_one_that_started_it():
    held = np.ones(500_000_000, np.uint8)
    assert memory.resident_peak() > 500
    code = "from efficientdet.training.logs import memory; print(memory.resident_peak())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < 300
    del held


def test_a_system_that_does_not_say_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "missing")
    assert memory.resident() is None


def _has_gpu():
    if backend.running() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def test_a_cpu_has_no_memory_of_its_own():
    if _has_gpu():
        pytest.skip("there is a GPU")
    assert memory.device_peak() is None


@pytest.mark.gpu
def test_the_peak_of_a_gpu_counts_what_was_there():
    if not _has_gpu():
        pytest.skip("no GPU")
    engine.to_device(np.ones(50_000_000, np.float32))
    assert memory.device_peak() >= 200
