"""The depthwise convolution in Pallas: interpreted on a CPU it is the plain one, and it lowers for CUDA without a GPU.

Run as a program, this file compares on JAX and writes what it found; the tests, whose own backend may be TensorFlow,
read it.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from efficientdet.config import BackboneConfig, ModelConfig

# Height and width, stride, kernel, channels, type. Odd and even sizes; channels that need a mask and such that do not;
# more rows than a program computes.
_CASES = {
    "3x3, stride 1": ((7, 8), 1, 3, 6, "float32"),
    "3x3, stride 2": ((9, 6), 2, 3, 16, "float32"),
    "5x5, stride 1": ((5, 4), 1, 5, 16, "float32"),
    "5x5, stride 2": ((6, 5), 2, 5, 6, "float32"),
    "3x3, bfloat16": ((5, 6), 1, 3, 6, "bfloat16"),
}
_TINY = ModelConfig(
    image_size=(64, 64),
    num_classes=2,
    backbone=BackboneConfig(width=0.25, depth=0.25),
    feature_channels=8,
    num_cells=1,
    head_repeats=1,
    batch_norm_momentum=0.99,
)


def _compare(size, stride, extent, depth, dtype):
    """Computes answer and gradients both ways: the largest difference over the largest value, and the types."""
    import jax
    import jax.numpy as jnp

    from efficientdet.model import depthwise_pallas

    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    x, kernel = draw(2, *size, depth), draw(extent, extent, depth, 1)
    upstream = draw(2, *(-(-side // stride) for side in size), depth)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x.astype("float32"),
            kernel.astype("float32").reshape(extent, extent, 1, depth),
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=depth,
            precision="highest",
        )

    def ours(x, kernel):
        return depthwise_pallas.convolve(x, kernel, (stride, stride))

    @jax.jit
    def both(x, kernel, upstream):
        expected, differentiate = jax.vjp(plain, x, kernel)
        found, differentiate_ours = jax.vjp(ours, x, kernel)
        pairs = [(found, expected)]
        pairs += zip(differentiate_ours(upstream), differentiate(upstream.astype("float32")), strict=True)
        return pairs

    pairs = both(x, kernel, upstream)
    differences = [float(jnp.abs(a.astype("float32") - b.astype("float32")).max() / jnp.abs(b).max()) for a, b in pairs]
    return {"differences": differences, "types": [str(a.dtype) for a, _ in pairs]}


def _count_kernels():
    """Lowers inference and the gradient of a small network for CUDA: how many kernels, and how many convolutions."""
    import jax
    import keras

    from efficientdet.model import layers
    from efficientdet.model.efficientdet import EfficientDet

    model = EfficientDet(_TINY, precision="mixed_bfloat16")
    layers.choose_depthwise(model, "pallas")
    values = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
    images = np.zeros((1, *_TINY.image_size, 3), np.uint8)

    def answer(trainable, images):
        return model.stateless_call(trainable, values[1], {"images": images}, training=False)[0]

    def gradients(trainable, images):
        return jax.grad(lambda trainable: sum(keras.ops.sum(x) for x in answer(trainable, images).values()))(trainable)

    found = {}
    for name, function in {"answer": answer, "gradients": gradients}.items():
        text = jax.jit(function).trace(values[0], images).lower(lowering_platforms=("cuda",)).as_text()
        found[name] = {
            kernel: text.count(f'name = "{kernel}"')
            for kernel in ("depthwise_forward", "depthwise_input_gradient", "depthwise_kernel_gradient")
        }
        found[name]["grouped convolutions"] = sum(
            "stablehlo.convolution" in line and "feature_group_count = 1 " not in line for line in text.splitlines()
        )
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Runs this file on JAX: case -> numbers."""
    path = tmp_path_factory.mktemp("pallas") / "found.json"
    # Without XLA's optimisations JAX compiles in half of the time and computes the same.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    settings = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, __file__, path], env={**os.environ, **settings}, check=True)
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", _CASES)
def test_answer_and_gradients_are_those_of_the_plain_convolution(found, case):
    # Measured: 3e-7 in float32. bfloat16 keeps 8 bits: half of the last one of a number near the largest.
    dtype = _CASES[case][-1]
    assert max(found[case]["differences"]) < (1e-5 if dtype == "float32" else 2**-8)
    assert found[case]["types"] == [dtype] * 3


@pytest.mark.slow
def test_a_network_lowers_for_cuda_without_a_gpu(found):
    kernels = found["kernels"]
    assert kernels["answer"]["depthwise_forward"] > 0
    assert kernels["answer"]["depthwise_input_gradient"] == 0
    assert all(count > 0 for name, count in kernels["gradients"].items() if name.startswith("depthwise"))
    assert kernels["answer"]["grouped convolutions"] == kernels["gradients"]["grouped convolutions"] == 0


def test_another_backend_than_jax_is_one_line(tiny):
    from efficientdet.errors import UserError
    from efficientdet.model import layers
    from efficientdet.model.efficientdet import EfficientDet

    with pytest.raises(UserError, match="`depthwise` is pallas, which needs JAX, but Keras runs on `tensorflow`"):
        layers.choose_depthwise(EfficientDet(tiny), "pallas")


if __name__ == "__main__":
    numbers = {name: _compare(*case) for name, case in _CASES.items()}
    pathlib.Path(sys.argv[1]).write_text(json.dumps({**numbers, "kernels": _count_kernels()}))
