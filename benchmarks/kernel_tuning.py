"""How fast our kernels are on a GPU, by the shape of their blocks: on EfficientDet-D0's feature maps at 512 px.

    python benchmarks/kernel_tuning.py depthwise --batch-size 64 --output tuning.json
    python benchmarks/kernel_tuning.py sums --output tuning.json

Every setting of `kernels/depthwise_pallas.py` (forward and both gradients) or of `kernels/pallas.py` (the sums of batch
normalisation, forward and back) is tried on each feature map, beside the time that reading and writing takes at least.
Needs JAX and a GPU.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import gpu_profile

from efficientdet import backend

BANDWIDTH = 4.3e12  # bytes/s that a copy on an H200 moves, read and written
# side px, channels, side of the kernel, stride, how often in the network
SHAPES = [
    (256, 32, 3, 1, 1),
    (256, 96, 3, 2, 1),
    (128, 144, 3, 1, 1),
    (128, 144, 5, 2, 1),
    (64, 240, 5, 1, 1),
    (64, 240, 3, 2, 1),
    (32, 480, 3, 1, 2),
    (32, 480, 5, 1, 1),
    (32, 672, 5, 1, 2),
    (16, 1152, 5, 1, 3),
    (64, 64, 3, 1, 9),
    (32, 64, 3, 1, 12),
]
SETTINGS = {
    "depthwise": [
        {"_ROWS": rows, "_MOST_CHANNELS": channels, "_NUMBERS": {3: many, 5: few}, "_MOST_WARPS": warps}
        for rows, channels, (many, few), warps in [
            (4, 64, (8, 4), 4),
            (8, 64, (4, 2), 4),
            (8, 32, (4, 2), 2),
            (8, 32, (4, 2), 4),
            (16, 32, (4, 2), 2),
            (8, 32, (2, 1), 4),
        ]
    ],
    "sums": [
        {"_ROWS": rows, "_COLUMNS": columns, "_WARPS": warps, "_PROGRAMS": programs}
        for rows, columns, warps, programs in [
            (32, 64, 4, 2048),
            (32, 64, 2, 4096),
            (64, 64, 8, 2048),
            (64, 64, 4, 2048),
            (32, 128, 8, 2048),
            (16, 128, 4, 4096),
            (32, 64, 4, 8192),
            (64, 64, 4, 8192),
        ]
    ],
}


def main() -> None:
    """Reads the command line, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", choices=list(SETTINGS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--shapes", type=int, nargs="*", help="numbers of the feature maps; all if not given")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    backend.choose("jax")
    numbers = options.shapes or list(range(len(SHAPES)))
    measure = {"depthwise": measure_depthwise, "sums": measure_sums}[options.kernels]
    rows = list(itertools.chain.from_iterable(measure(SHAPES[number], options.batch_size) for number in numbers))
    for setting in SETTINGS[options.kernels]:
        total = sum(row["milliseconds"] * row["times"] for row in rows if setting.items() <= row.items())
        print(f"total {total:.3f} ms: {json.dumps(setting)}")
    options.output.write_text(json.dumps(rows, indent=1) + "\n")


def measure_depthwise(shape: tuple[int, ...], batch_size: int) -> list[dict[str, Any]]:
    """Compiles all settings of the convolution for a feature map, then times them beside XLA's own."""
    import jax
    import jax.numpy as jnp

    from efficientdet.kernels import depthwise_pallas as kernels

    side, depth, extent, stride, times = shape
    x = jax.random.normal(jax.random.key(0), (batch_size, side, side, depth), jnp.bfloat16)
    y = jax.random.normal(jax.random.key(1), (batch_size, side // stride, side // stride, depth), jnp.bfloat16)
    weights = jax.random.normal(jax.random.key(2), (extent, extent, depth, 1), jnp.bfloat16)
    geometry = kernels._Geometry.of(x, weights, (stride, stride))
    parts = {
        "forward": (lambda x, w: kernels._correlate.__wrapped__(x, w[..., 0], geometry), (x, weights)),
        "of_input": (lambda y, w: kernels._spread.__wrapped__(y, w[..., 0], geometry, y.dtype), (y, weights)),
        "of_kernel": (lambda x, y: kernels._collect.__wrapped__(x, y, geometry), (x, y)),
    }
    facts = {"shape": shape, "times": times, "ideal": (x.size + y.size) * 2 / BANDWIDTH * 1e3}
    return _measure("depthwise", kernels, parts, facts)


def measure_sums(shape: tuple[int, ...], batch_size: int) -> list[dict[str, Any]]:
    """Compiles all settings of the sums for the feature map behind a depthwise convolution, then times them."""
    import jax
    import jax.numpy as jnp

    from efficientdet.kernels import normalization_jax, pallas

    side, depth, _, stride, times = shape
    rows = batch_size * (side // stride) ** 2
    x, y = (jax.random.normal(jax.random.key(key), (rows, depth), jnp.bfloat16) for key in (0, 1))
    column = jnp.ones(depth)
    back = functools.partial(normalization_jax._gradients, "swish")

    def gradients(x: Any, y: Any) -> Any:
        return pallas.sum_rows(back, 2, [x, y], [column] * 4, in_kernel=True)

    def moments(x: Any) -> Any:
        return pallas.sum_rows(normalization_jax._moments, 2, [x], [column], in_kernel=True)

    facts = {"shape": shape, "times": times, "ideal": x.size * 2 / BANDWIDTH * 1e3}
    return _measure("sums", pallas, {"moments": (moments, (x,)), "gradients": (gradients, (x, y))}, facts)


def _measure(
    name: str, module: Any, parts: dict[str, tuple[Any, tuple[Any, ...]]], facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """Compiles every part in every setting, then times all of them."""
    import jax

    ready = []
    for setting in SETTINGS[name]:
        for constant, value in setting.items():
            setattr(module, constant, value)
        for part, (function, arrays) in parts.items():
            # A function of its own each time: JAX would take what it traced with the setting before.
            traced = jax.jit(lambda *arrays, function=function: function(*arrays))
            ready.append((setting, part, traced.lower(*arrays).compile(), arrays))
    with gpu_profile.alone():
        found = [
            {**facts, "part": part, **setting, "milliseconds": _time(function, arrays)}
            for setting, part, function, arrays in ready
        ]
    for part in parts:
        told = " ".join(f"{row['milliseconds']:.3f}" for row in found if row["part"] == part)
        print(f"{facts['shape']} {part:9} ideal {facts['ideal']:.3f}: {told}", flush=True)
    return found


def _time(function: Any, arrays: tuple[Any, ...]) -> float:
    """Times a compiled function: the median of five turns of ten calls, ms a call."""
    import jax

    jax.block_until_ready(function(*arrays))
    turns = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready([function(*arrays) for _ in range(10)])
        turns.append((time.perf_counter() - began) * 100)
    return statistics.median(turns)


if __name__ == "__main__":
    main()
