"""Comparison with float64 of what the network adds up: in float32, and rounded once, whatever the type.

An answer may differ from float64 by the rounding to its own type, and by the sum's rounding errors in float32. n of
those add up to about sqrt(n) of one, relative to the sum of the terms' absolute values and not to the sum itself, whose
terms may cancel (Higham and Mary 2019, theorem 2.4, which has the factor 8 fail once in 10^13 sums).

Tests with it run on the backend of their process; `tests/test_instruction_sets.py` runs them on others.
"""

import math

import keras
import numpy as np

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Half of the last digit, relative."""
LEAST = {"float32": 0.0, "bfloat16": 0.0, "float16": 2.0**-25}
"""Half of the smallest number."""
SUM_FACTOR = 8.0


def rounded(values, dtype):
    """Rounds to a type: float64, so that references start from what the network sees."""
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(values, dtype), "float32")), np.float64)


def draw(rng, shape, dtype):
    return rounded(rng.normal(size=shape).astype(np.float32), dtype)


def differentiate(function, arrays, upstream, *, xla=False):
    """Compiles a function, and computes it and the gradients of its arguments: float64.

    Args:
        function: of arrays.
        arrays: of the backend.
        upstream: the gradient of its answer.
        xla: compiles by XLA with TensorFlow too.
    """
    if keras.backend.backend() == "jax":
        import jax

        def both(arrays, upstream):
            outputs, differentiate = jax.vjp(function, *arrays)
            return [outputs, *differentiate(upstream.astype(outputs.dtype))]

        found = jax.jit(both)(arrays, upstream)
    else:
        import tensorflow as tf

        @tf.function(autograph=False, jit_compile=xla)
        def both(arrays, upstream):
            with tf.GradientTape() as tape:
                tape.watch(arrays)
                outputs = function(*arrays)
            return [outputs, *tape.gradient(outputs, arrays, output_gradients=tf.cast(upstream, outputs.dtype))]

        found = both(arrays, upstream)
    return [rounded(array, "float32") for array in found]


def run(layer, x, upstream, dtype, values, *, xla=False, **options):
    """Calls a layer with values for its variables: outputs, and gradients of input and variables."""
    layer.build(x.shape)
    assert [tuple(variable.shape) for variable in layer.trainable_variables] == [value.shape for value in values]

    def call(x, *values):
        with keras.StatelessScope(state_mapping=list(zip(layer.trainable_variables, values, strict=True))):
            return layer(x, **options)

    arrays = [keras.ops.cast(x, dtype), *(keras.ops.cast(value, "float32") for value in values)]
    return differentiate(call, arrays, keras.ops.cast(upstream, dtype), xla=xla)


def compare(found, exact, terms, count, dtype, *, roundings=1, before=0):
    """Fails unless an array is the exact one but for rounding.

    Args:
        found: what was computed.
        exact: in float64.
        terms: sums of the absolute values of what was added up.
        count: how many terms each sum has.
        dtype: the type of the answer.
        roundings: to that type, one after another.
        before: of each term, before it was added.
    """
    assert found.shape == exact.shape
    one = ROUNDING[dtype]
    allowed = 1.01 * roundings * one * np.abs(exact) + LEAST[dtype]
    allowed += SUM_FACTOR * terms * (math.sqrt(count) * 2.0**-24 + before * one / math.sqrt(count))
    worst = np.unravel_index(np.argmax(np.abs(found - exact) - allowed), found.shape)
    assert np.abs(found - exact)[worst] <= allowed[worst], (found[worst], exact[worst], allowed[worst])
