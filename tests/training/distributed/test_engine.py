"""Arrays on the device and on the host."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import numpy as np
from efficientdet import backend
backend.choose()
from efficientdet.training.distributed import engine
state = engine.to_device([np.ones(100_000, np.float32)])
kept = engine.to_host(state)
step = backend.compile_function(lambda state, amount: [state[0] + amount], donate=True)
for _ in range(3):
    state = step(state, engine.to_device(np.float32(1)))
assert engine.to_host(state)[0].min() == 4
assert kept[0].min() == kept[0].max() == 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_what_is_on_the_host_stays_when_the_next_steps_overwrite_what_they_were_given(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
