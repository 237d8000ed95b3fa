"""Shared parts of Pallas kernels: indices of a block, sums over rows, launching a kernel. Importing it imports JAX.

On a CPU the same kernels are interpreted, slowly, for tests.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

MOST_NUMBERS = 2**31 - 1
"""Most numbers in an array that a kernel reads, because indices are 32-bit."""
_COLUMNS = 128  # per program: 256 bytes of 16-bit numbers
_ROWS = 16  # read at a time by a program
_WARPS = 4
_PROGRAMS = 4096  # that share the rows: several for each multiprocessor of a large GPU
_LEAST_SIZE = 2**18  # for smaller arrays XLA's own sum is as fast


def places(block: Any, size: int) -> Any:
    """Returns the indices of the elements of a block: int32[size]."""
    return block * size + jnp.arange(size, dtype=jnp.int32)


def call(kernel: Callable[..., None], grid: tuple[int, ...], shape: Any, warps: int, *arrays: jax.Array) -> Any:
    """Runs a kernel on a GPU, or interprets it on a CPU, depending on what the program is compiled for."""
    ready = functools.partial(pl.pallas_call, kernel, out_shape=shape, grid=grid)
    params = triton.CompilerParams(num_warps=warps)
    return jax.lax.platform_dependent(*arrays, cpu=ready(interpret=True), default=ready(compiler_params=params))


def sum_rows(
    function: Callable[..., Sequence[Any]],
    count: int,
    arrays: Sequence[jax.Array],
    columns: Sequence[jax.Array],
    *,
    in_kernel: bool,
) -> jax.Array:
    """Sums functions of numbers over rows, reading every array once.

    Args:
        function: (float32 row of each array, float32 columns) -> `count` terms, element by element.
        count: number of sums.
        arrays: [N, D] each.
        columns: float32[D] each, further inputs of the function for each column.
        in_kernel: whether to use our kernel for large arrays; otherwise XLA.

    Returns:
        float32[count, D].
    """
    rows, depth = arrays[0].shape
    # This many rows side by side make whole blocks of columns, which need no mask.
    fold = _COLUMNS // math.gcd(_COLUMNS, depth)
    if not in_kernel or rows % fold or not _LEAST_SIZE <= rows * depth <= MOST_NUMBERS:
        terms = function([array.astype(jnp.float32) for array in arrays], list(columns))
        return jnp.stack([jnp.sum(term, axis=0) for term in terms])
    folded = [array.reshape(rows // fold, fold * depth) for array in arrays]
    sums = _sum_folded(function, count, folded, [jnp.tile(column, fold) for column in columns])
    return jnp.sum(sums.reshape(count, fold, depth), axis=1)


def _sum_folded(
    function: Callable[..., Sequence[Any]], count: int, arrays: Sequence[jax.Array], columns: Sequence[jax.Array]
) -> jax.Array:
    """Sums over rows in two steps: each program sums its share of the rows, XLA sums the shares: float32[count, W]."""
    rows, width = arrays[0].shape
    blocks = width // _COLUMNS
    shares = max(1, min(pl.cdiv(rows, _ROWS), _PROGRAMS // blocks))
    turns = pl.cdiv(rows, shares * _ROWS)

    def sum_rows_of_columns(*refs: Any) -> None:
        array_refs, column_refs, sums_ref = refs[: len(arrays)], refs[len(arrays) : -1], refs[-1]
        share, column = pl.program_id(0), places(pl.program_id(1), _COLUMNS)
        known = [triton.load(ref.at[column])[None] for ref in column_refs]

        def add(turn: Any, sums: tuple[Any, ...]) -> tuple[Any, ...]:
            row = places(share + turn * shares, _ROWS)
            mask = jnp.broadcast_to((row < rows)[:, None], (_ROWS, _COLUMNS))
            read = [
                triton.load(ref.at[row[:, None], column[None, :]], mask=mask, other=0.0).astype(jnp.float32)
                for ref in array_refs
            ]
            terms = function(read, known)
            return tuple(total + jnp.where(mask, term, 0.0) for total, term in zip(sums, terms, strict=True))

        zeros = jnp.zeros((_ROWS, _COLUMNS), jnp.float32)
        totals = jax.lax.fori_loop(0, turns, add, (zeros,) * count)
        for number, total in enumerate(totals):
            triton.store(sums_ref.at[number, share, column], jnp.sum(total, axis=0))

    shape = jax.ShapeDtypeStruct((count, shares, width), jnp.float32)
    return jnp.sum(call(sum_rows_of_columns, (shares, blocks), shape, _WARPS, *arrays, *columns), axis=1)
