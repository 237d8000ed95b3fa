"""`float32` and `tf32` are two arithmetics: what each backend asks of every product, and what a GPU makes of it.

Run as a program, this file writes what the backend in KERAS_BACKEND asks for; the test runs it once a backend.
"""

import collections
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from efficientdet import backend

_PRODUCTS = r"\b(convolution|dot)(?:_general)?\("
# JAX's words for what TensorFlow 2.21 leaves out because it is the default; on GPUs both allow TF32, and only HIGHEST
# forbids it.
_ALLOW_TF32 = {"HIGH,HIGH", "DEFAULT,DEFAULT"}


def _asked_for(precision):
    """Counts, in a network's gradient as it goes to XLA, the products of each kind by the precision they ask for."""
    import keras

    from efficientdet.training.distributed import engine

    assert backend.use_precision(precision) == "float32"
    # One of each layer with a product; the squeeze of squeeze-and-excitation is a convolution too.
    layers = [
        keras.layers.Conv2D(4, 3, padding="same"),
        keras.layers.DepthwiseConv2D(3, padding="same"),
        keras.layers.SeparableConv2D(6, 3, padding="same"),
        keras.layers.Dense(5),
    ]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])

    def gradients(weights, images):
        def loss(weights):
            answer, _ = model.stateless_call(weights, [], images)
            return keras.ops.sum(answer**2), 0

        return engine.value_and_gradients(loss, weights)[2]

    weights = [variable.value for variable in model.trainable_variables]
    images = engine.to_device(np.ones((2, 8, 8, 3), np.float32))
    if backend.running() == "jax":
        import jax

        text = jax.jit(gradients).lower(weights, images).as_text(dialect="hlo")
    else:
        import tensorflow as tf

        text = tf.function(gradients, jit_compile=True).experimental_get_compiler_ir(weights, images)(stage="hlo")
    found = collections.Counter()
    for line in text.splitlines():
        if product := re.search(_PRODUCTS, line):
            asked = re.search(r"operand_precision=\{([^}]*)\}", line)
            found[f"{product[1]} {asked[1].upper() if asked else 'DEFAULT,DEFAULT'}"] += 1
    return dict(found)


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def asked(request):
    """Precision -> kind of product and what it asks for -> how many."""
    settings = {"KERAS_BACKEND": request.param, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_float32_forbids_tf32_in_every_product_of_forward_and_backward_pass(asked):
    assert {name.split()[1] for name in asked["float32"]} == {"HIGHEST,HIGHEST"}
    # Four convolutions and a dense layer, each with the gradients of its kernel and, but for the first, of its input.
    assert asked["float32"]["convolution HIGHEST,HIGHEST"] >= 4 + 4 + 3
    assert asked["float32"]["dot HIGHEST,HIGHEST"] == 3


def test_tf32_allows_it_in_each_of_them(asked):
    assert {name.split()[1] for name in asked["tf32"]} <= _ALLOW_TF32
    assert sum(asked["tf32"].values()) == sum(asked["float32"].values())


def _has_tf32():
    """Tells whether the backend's first GPU has TF32: NVIDIA's, from compute capability 8.0 on."""
    if backend.running() == "jax":
        import jax

        device = jax.devices()[0]
        return device.platform == "gpu" and float(getattr(device, "compute_capability", 0)) >= 8
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return bool(gpus) and tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0,)) >= (8, 0)


def _products(xla):
    """Multiplies seeded matrices, and convolves seeded images: arrays of the running backend."""
    import keras

    from efficientdet.training.distributed import engine

    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(1024, 1024)).astype(np.float32) for _ in range(2))
    images = rng.normal(size=(4, 32, 32, 64)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 64, 64)).astype(np.float32)

    # A new function each time: a compiled one keeps the precision it was compiled with.
    def compute(values):
        matrix = keras.ops.matmul(values["left"], values["right"])
        return {"matmul": matrix, "conv": keras.ops.conv(values["images"], values["kernel"], padding="valid")}

    values = {"left": left, "right": right, "images": images, "kernel": kernel}
    found = engine.to_host(backend.compile_function(compute, xla=xla)(engine.to_device(values)))
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (3, 3), axis=(1, 2))
    exact = {
        "matmul": left.astype(np.float64) @ right,
        "conv": np.einsum("bhwcyx,yxcd->bhwd", windows, kernel.astype(np.float64), optimize=True),
    }
    return {name: float(np.abs(found[name] - exact[name]).max() / exact[name].std()) for name in exact}


# 24 bits of mantissa against 11: each rounding is 8192 times larger, and sums of about a thousand terms grow both
# errors by about the same.
_BETWEEN = 1e-4


@pytest.mark.parametrize("xla", ["on", "off"])
def test_float32_is_float32_on_any_device(xla):
    backend.use_precision("float32")
    errors = _products(xla)
    assert max(errors.values()) < _BETWEEN, errors


@pytest.mark.gpu
@pytest.mark.parametrize("xla", ["on", "off"])
def test_tf32_is_coarser_on_a_gpu_that_has_it(xla):
    if not _has_tf32():
        pytest.skip("needs an NVIDIA GPU with TF32 (Ampere or later)")
    backend.use_precision("tf32")
    try:
        errors = _products(xla)
    finally:
        backend.use_precision("float32")
    assert min(errors.values()) > _BETWEEN, errors


if __name__ == "__main__":
    backend.choose()
    print(json.dumps({precision: _asked_for(precision) for precision in ("float32", "tf32")}))
