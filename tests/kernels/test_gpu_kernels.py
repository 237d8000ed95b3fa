"""What JAX computes on a GPU in its own way, interpreted or run on a CPU: the numbers are those of the plain form.

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

# Channels, activation, type. Rows of an image are no multiple of what a program reads; 24 and 40 channels are folded
# into whole blocks of columns; 23 cannot be, and are left to XLA.
_NORMALIZATIONS = {
    "swish": (24, "swish", "float32"),
    "no activation, bfloat16": (40, None, "bfloat16"),
    "relu6": (16, "relu6", "float32"),
    "an odd number of channels": (23, "swish", "float32"),
}
_SIZES = {"even": (32, 40), "odd": (33, 41), "one of each": (17, 34)}


def _difference(found, expected):
    """Returns the largest difference over the largest value."""
    import jax.numpy as jnp

    found, expected = found.astype("float32"), expected.astype("float32")
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())


def _normalize(rng, depth, activation, dtype):
    """Compares answer and gradients, and mean and variance, with those of the plain formula in float32."""
    import jax
    import jax.numpy as jnp

    from efficientdet.kernels import normalization, normalization_jax

    x, upstream = (jnp.asarray(rng.normal(size=(2, 18, 20, depth)) * 2 + 1, dtype) for _ in range(2))
    gamma, beta, near = (jnp.asarray(rng.normal(size=depth), "float32") for _ in range(3))

    def plain(x, gamma, beta):
        rows = normalization.normalize_by_batch(x.astype("float32"), gamma, beta, epsilon=1e-3, activation=activation)
        return rows[0]

    def compare(in_kernel):
        def ours(x, gamma, beta):
            return normalization_jax.normalize(x, gamma, beta, near, 1e-3, activation, in_kernel)[0]

        found, differentiate = jax.vjp(ours, x, gamma, beta)
        expected, differentiate_plain = jax.vjp(plain, x, gamma, beta)
        gradients = zip(differentiate(upstream), differentiate_plain(upstream.astype("float32")), strict=True)
        return [_difference(found, expected), *(_difference(a, b) for a, b in gradients)]

    _, mean, variance = normalization_jax.normalize(x, gamma, beta, near, 1e-3, activation, True)
    moments = x.astype("float32").mean((0, 1, 2)), x.astype("float32").var((0, 1, 2))
    return {
        "kernel": compare(True),
        "xla": compare(False),
        "moments": [_difference(mean, moments[0]), _difference(variance, moments[1])],
    }


def _suppress(rng):
    """Compares the picks of the kernel with those of the loop: in all ways, and with few left."""
    import jax.numpy as jnp

    from efficientdet.kernels import suppression_pallas
    from efficientdet.model import postprocess

    corners, sides = rng.uniform(0, 200, (2, 150, 2)), rng.uniform(5, 120, (2, 150, 2))
    boxes = jnp.asarray(np.concatenate([corners, corners + sides], -1), "float32")
    labels = jnp.asarray(rng.integers(0, 3, (2, 150)), "int32")
    scores = jnp.asarray(-np.sort(-rng.uniform(0, 1, (2, 150)), 1), "float32")
    scores = scores.at[:, 10:14].set(scores[:, 10:11])  # equal ones: the first is taken first
    found = {}
    for name, threshold in (("many", 0.001), ("few", 0.9)):
        limits = {"max_detections": 60, "sigma": 0.5, "score_threshold": threshold}
        picks, picked = suppression_pallas.pick(boxes, labels, scores, **limits)
        expected_picks, expected = postprocess.pick(boxes, labels, scores, **limits)
        is_found = expected > 0
        found[name] = {
            "count": int(is_found.sum()),
            "same": bool((jnp.where(is_found, picks, 0) == jnp.where(is_found, expected_picks, 0)).all()),
            "scores": float(jnp.abs(picked - expected).max()),
        }
    return found


def _choose(rng, dtype):
    """Compares the candidates with the best of all logits; those of 16 bits have many equal ones."""
    import jax
    import jax.numpy as jnp

    from efficientdet.model import postprocess

    logits = jnp.asarray(rng.normal(size=(2, 900, 7)), dtype).astype("float32")
    deltas = jnp.asarray(rng.normal(size=(2, 900, 4)), "float32")
    anchors = rng.uniform(0, 100, (900, 4)).astype(np.float32)
    values, positions = jax.lax.top_k(logits.reshape(2, -1), 200)
    raw = {"class_logits": logits, "box_deltas": deltas}
    boxes, labels, scores = postprocess.top_candidates(raw, anchors, 200, dtype)
    all_boxes, _, _ = postprocess.top_candidates(raw, anchors, 900)  # every anchor stays
    return [
        bool((labels == positions % 7).all()),
        bool((scores == jax.nn.sigmoid(values)).all()),
        bool((boxes == all_boxes[:, :200]).all()),
    ]


def _convolve_blocks(rng, size):
    """Compares the stem on blocks of pixels with the plain convolution, and the gradients of the kernel."""
    import jax
    import jax.numpy as jnp

    from efficientdet.kernels import convolutions

    x, kernel = jnp.asarray(rng.normal(size=(2, *size, 3)), "float32"), jnp.asarray(rng.normal(size=(3, 3, 3, 8)))

    def plain(kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dims, precision="highest")

    found, differentiate = jax.vjp(lambda kernel: convolutions.by_blocks(x, kernel), kernel)
    expected, differentiate_plain = jax.vjp(plain, kernel)
    gradients = differentiate(found)[0], differentiate_plain(expected)[0]
    return [_difference(found, expected), _difference(*gradients)]


def _lower():
    """Lowers the kernels for CUDA, where there is none: which are in the program."""
    import jax
    import jax.numpy as jnp

    from efficientdet.kernels import normalization_jax, suppression_pallas

    column = jnp.ones(24)

    def total(x, boxes, labels, scores):
        y = normalization_jax.normalize(x, column, column, column, 1e-3, "swish", True)[0]
        limits = {"max_detections": 100, "sigma": 0.5, "score_threshold": 0.001}
        return y.astype("float32").sum(), suppression_pallas.pick(boxes, labels, scores, **limits)

    arrays = jnp.zeros((2, 64, 64, 24), "bfloat16"), jnp.zeros((2, 5000, 4)), jnp.zeros((2, 5000), "int32")
    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    text = step.trace(*arrays, jnp.zeros((2, 5000))).lower(lowering_platforms=("cuda",)).as_text()
    return [name for name in ("sum_rows_of_columns", "soft_nms") if f'name = "{name}"' in text]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Runs this file on JAX: case -> numbers."""
    path = tmp_path_factory.mktemp("kernels") / "found.json"
    # Without XLA's optimisations JAX compiles in half of the time and computes the same.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    settings = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, __file__, path], env={**os.environ, **settings}, check=True)
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", _NORMALIZATIONS)
def test_batch_normalisation_and_its_gradients_are_those_of_the_formula(found, case):
    # Measured: 4e-7 in float32, 3e-3 in bfloat16, whose last bit is 2^-8 of a number.
    tolerance = 2e-6 if _NORMALIZATIONS[case][-1] == "float32" else 2**-8
    numbers = found[f"normalization {case}"]
    assert max(numbers["kernel"] + numbers["xla"]) < tolerance
    assert max(numbers["moments"]) < 2e-6


@pytest.mark.slow
def test_the_kernel_picks_what_the_loop_picks(found):
    many, few = found["suppression"]["many"], found["suppression"]["few"]
    assert many["count"] == 120
    assert 0 < few["count"] < 60
    for numbers in (many, few):
        assert numbers["same"]
        assert numbers["scores"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_candidates_are_the_best_of_all_logits_in_their_order(found, dtype):
    assert found[f"candidates {dtype}"] == [True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("size", _SIZES)
def test_the_stem_on_blocks_of_pixels_is_the_plain_convolution(found, size):
    assert max(found[f"stem {size}"]) < 1e-6


@pytest.mark.slow
def test_the_kernels_lower_for_cuda_without_a_gpu(found):
    assert found["lowered"] == ["sum_rows_of_columns", "soft_nms"]


def main():
    """Compares everything and writes what came."""
    from efficientdet.kernels import pallas

    pallas._LEAST_SIZE = 0  # small arrays go through the kernel too
    rng = np.random.default_rng(0)
    numbers = {f"normalization {name}": _normalize(rng, *case) for name, case in _NORMALIZATIONS.items()}
    numbers["suppression"] = _suppress(rng)
    numbers |= {f"candidates {dtype}": _choose(rng, dtype) for dtype in ("float32", "bfloat16", "float16")}
    numbers |= {f"stem {name}": _convolve_blocks(rng, size) for name, size in _SIZES.items()}
    numbers["lowered"] = _lower()
    pathlib.Path(sys.argv[1]).write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()
