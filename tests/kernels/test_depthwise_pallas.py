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

# Height and width, stride, kernel, channels, type. Odd and even sizes; channels that need a mask and such that do not;
# more rows than a program computes. Compiling what interprets a kernel takes seconds, so there are few.
_KERNELS = ["depthwise_forward", "depthwise_input_gradient", "depthwise_kernel_gradient"]
_CASES = {
    "3x3, stride 1": ((7, 8), 1, 3, 6, "float32"),
    "3x3, stride 2, bfloat16": ((9, 6), 2, 3, 16, "bfloat16"),
    "5x5, stride 2": ((6, 5), 2, 5, 6, "float32"),
}


def _compare(size, stride, extent, depth, dtype):
    """Computes answer and gradients both ways: the largest difference over the largest value, and the types."""
    import jax
    import jax.numpy as jnp

    from efficientdet.kernels import depthwise_pallas

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
    """Lowers a block of the backbone and its gradient for CUDA: how many kernels, and how many grouped convolutions."""
    import jax
    import keras

    from efficientdet.kernels import choice
    from efficientdet.model.architecture import Stage
    from efficientdet.model.efficientnet import Block

    stage = Stage(1, 5, 2, 6, 16)
    options = {"squeeze_excite": True, "activation": "swish", "survival": 1.0, "momentum": 0.99}
    with choice.used(choice.choose("pallas")):
        block = Block(stage, 2, 8, dtype="mixed_bfloat16", **options)
    block.build((2, 9, 8, 8))
    values = [
        [variable.value for variable in part] for part in (block.trainable_variables, block.non_trainable_variables)
    ]

    def gradients(trainable, x):
        def total(trainable, x):
            return keras.ops.sum(block.stateless_call(trainable, values[1], x, training=True)[0])

        return jax.grad(total, (0, 1))(trainable, x)

    x = np.zeros((2, 9, 8, 8), np.float32)
    text = jax.jit(gradients).trace(values[0], x).lower(lowering_platforms=("cuda",)).as_text()
    return {
        "kernels": [name for name in _KERNELS if f'name = "{name}"' in text],
        "grouped": sum(
            "stablehlo.convolution" in line and "feature_group_count = 1 " not in line for line in text.splitlines()
        ),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory, quick_jax):
    """Runs this file on JAX: case -> numbers."""
    path = tmp_path_factory.mktemp("pallas") / "found.json"
    environment = {**os.environ, **quick_jax, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, __file__, path], env=environment, check=True)
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", _CASES)
def test_answer_and_gradients_are_those_of_the_plain_convolution(found, case):
    # Measured: 3e-7 in float32. bfloat16 keeps 8 bits: half of the last one of a number near the largest.
    dtype = _CASES[case][-1]
    assert max(found[case]["differences"]) < (1e-5 if dtype == "float32" else 2**-8)
    assert found[case]["types"] == [dtype] * 3


@pytest.mark.slow
def test_a_block_lowers_for_cuda_without_a_gpu(found):
    assert found["lowered"] == {"kernels": _KERNELS, "grouped": 0}


if __name__ == "__main__":
    numbers = {name: _compare(*case) for name, case in _CASES.items()}
    pathlib.Path(sys.argv[1]).write_text(json.dumps({**numbers, "lowered": _count_kernels()}))
