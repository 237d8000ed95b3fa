"""A depthwise convolution in Pallas, compiled by Triton, for JAX on a GPU: forward pass and both gradients.

    y[b, r, c, d] = sum over i, j of x[b, s r + i - p, s c + j - q, d] k[i, j, d]

with TensorFlow's SAME padding p, q. Numbers are read in their own type, multiplied and summed in float32, and rounded
once. Each program computes a few rows of some columns and channels, so that each row that is read is used for all
outputs it contributes to. The gradient of the kernel is summed in two steps: each program sums its share of all pixels,
XLA sums the shares; there are no atomic additions, so the results are reproducible.

Importing this module imports JAX.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from efficientdet.kernels import pallas

_ROWS = 4  # output rows per program
_MOST_CHANNELS = 64  # per program
_LEAST_CHANNELS = 16  # 32 bytes of 16-bit numbers, which a GPU reads at once
_MOST_WARPS = 4
_NUMBERS = {3: 8, 5: 4}  # kernel size -> numbers of a row per thread; with more it runs out of registers
_PROGRAMS = 2048  # that share the pixels of the kernel's gradient: several per multiprocessor of a large GPU


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Computes a depthwise convolution with SAME padding.

    Args:
        x: [B, h, w, D], float32, bfloat16 or float16.
        kernel: [k, k, D, 1].
        strides: vertical and horizontal stride.

    Returns:
        [B, h / stride, w / stride, D], sizes rounded up, with the type of x.
    """
    return _correlate(x, kernel[..., 0], _Geometry.of(x, kernel, strides))


def _forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> tuple[jax.Array, Any]:
    return convolve(x, kernel, strides), (x, kernel)


def _backward(strides: tuple[int, int], kept: Any, upstream: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients of the input and of the kernel."""
    x, kernel = kept
    geometry = _Geometry.of(x, kernel, strides)
    of_input = _spread(upstream, kernel[..., 0], geometry, x.dtype)
    of_kernel = _collect(x, upstream, geometry)
    return of_input, of_kernel[..., None].astype(kernel.dtype)


convolve.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Geometry:
    """Shapes, and how they are divided among programs."""

    batch: int
    sizes: tuple[int, int]
    """Height and width of x, px."""
    outputs: tuple[int, int]
    before: tuple[int, int]
    """Padding at the top and on the left, px."""
    strides: tuple[int, int]
    extents: tuple[int, int]
    """Height and width of the kernel."""
    depth: int

    @classmethod
    def of(cls, x: Any, kernel: Any, strides: tuple[int, int]) -> "_Geometry":
        """Computes the geometry from arrays."""
        batch, *sizes, depth = x.shape
        extents = kernel.shape[:2]
        outputs = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        missing = [
            max((output - 1) * stride + extent - size, 0)
            for output, stride, extent, size in zip(outputs, strides, extents, sizes, strict=True)
        ]
        return cls(
            batch=batch,
            sizes=(sizes[0], sizes[1]),
            outputs=(outputs[0], outputs[1]),
            before=(missing[0] // 2, missing[1] // 2),
            strides=strides,
            extents=(extents[0], extents[1]),
            depth=depth,
        )

    def tile(self, width: int) -> tuple[int, int, int]:
        """Divides a row of pixels: columns and channels per program, both powers of two, and its warps."""
        numbers = _NUMBERS.get(max(self.extents), min(_NUMBERS.values()))
        dividing = self.depth & -self.depth  # the largest power of two that divides it
        channels = dividing if dividing >= _LEAST_CHANNELS else pl.next_power_of_2(self.depth)
        channels = min(channels, _MOST_CHANNELS)
        columns = min(pl.next_power_of_2(width), 32 * _MOST_WARPS * numbers // channels)
        return columns, channels, max(1, min(_MOST_WARPS, columns * channels // (32 * numbers)))


@functools.partial(jax.jit, static_argnums=2)
def _correlate(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """Computes the output y."""
    strides, extents, before = geometry.strides, geometry.extents, geometry.before
    height, width = geometry.outputs
    columns, channels, warps = geometry.tile(width)

    def depthwise_forward(x_ref: Any, kernel_ref: Any, y_ref: Any) -> None:
        image, first = pl.program_id(0), pl.program_id(1) * _ROWS
        column, channel = pallas.places(pl.program_id(2), columns), pallas.places(pl.program_id(3), channels)
        seen = [_Strip(x_ref, column * strides[1] + right - before[1], channel) for right in range(extents[1])]
        weights = _load_weights(kernel_ref, channel)
        sums = [jnp.zeros((columns, channels), jnp.float32)] * _ROWS
        for row, right in _window(geometry):
            values = seen[right].load(image, first * strides[0] + row - before[0])
            for number, down in _outputs_of(row, geometry):
                sums[number] += values * weights[down, right]
        written = _Strip(y_ref, column, channel)
        for number in range(_ROWS):
            written.store(image, first + number, sums[number])

    grid = (geometry.batch, pl.cdiv(height, _ROWS), pl.cdiv(width, columns), pl.cdiv(geometry.depth, channels))
    shape = jax.ShapeDtypeStruct((geometry.batch, height, width, geometry.depth), x.dtype)
    return pallas.call(depthwise_forward, grid, shape, warps, x, kernel)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _spread(upstream: jax.Array, kernel: jax.Array, geometry: _Geometry, dtype: Any) -> jax.Array:
    """Computes the gradient of x: each upstream value goes to the pixels that its output was computed from.

    With stride s, the pixels s n + a - p for each a below s form a separate convolution with the kernel elements
    a, a + s, ..: pixel n of phase a receives upstream pixel n - t through kernel element a + s t.
    """
    strides, extents, before = geometry.strides, geometry.extents, geometry.before
    height, width = (
        (size - 1 + padding) // stride + 1
        for size, padding, stride in zip(geometry.sizes, before, strides, strict=True)
    )
    columns, channels, warps = geometry.tile(width)
    rows = max(1, _ROWS // (strides[0] * strides[1]))
    taps = [-(-extent // stride) for extent, stride in zip(extents, strides, strict=True)]

    def depthwise_input_gradient(upstream_ref: Any, kernel_ref: Any, gradient_ref: Any) -> None:
        image, first = pl.program_id(0), pl.program_id(1) * rows
        column, channel = pallas.places(pl.program_id(2), columns), pallas.places(pl.program_id(3), channels)
        seen = [_Strip(upstream_ref, column - back, channel) for back in range(taps[1])]
        weights = _load_weights(kernel_ref, channel)
        zeros = jnp.zeros((columns, channels), jnp.float32)
        sums = dict.fromkeys(itertools.product(range(rows), range(strides[0]), range(strides[1])), zeros)
        for row, back in itertools.product(range(1 - taps[0], rows), range(taps[1])):
            values = seen[back].load(image, first + row)
            for number, below, right in sums:
                tap = below + strides[0] * (number - row), right + strides[1] * back
                if number >= row and tap in weights:
                    sums[number, below, right] += values * weights[tap]
        written = [
            _Strip(gradient_ref, strides[1] * column + right - before[1], channel) for right in range(strides[1])
        ]
        for (number, below, right), total in sums.items():
            written[right].store(image, strides[0] * (first + number) + below - before[0], total)

    grid = (geometry.batch, pl.cdiv(height, rows), pl.cdiv(width, columns), pl.cdiv(geometry.depth, channels))
    shape = jax.ShapeDtypeStruct((geometry.batch, *geometry.sizes, geometry.depth), dtype)
    return pallas.call(depthwise_input_gradient, grid, shape, warps, upstream, kernel)


@functools.partial(jax.jit, static_argnums=2)
def _collect(x: jax.Array, upstream: jax.Array, geometry: _Geometry) -> jax.Array:
    """Computes the gradient of the kernel, float32[k, k, D]."""
    strides, extents, before = geometry.strides, geometry.extents, geometry.before
    height, width = geometry.outputs
    columns, channels, warps = geometry.tile(width)
    blocks = (pl.cdiv(height, _ROWS), pl.cdiv(width, columns), pl.cdiv(geometry.depth, channels))
    parts = geometry.batch * blocks[0] * blocks[1]
    shares = min(parts, pl.cdiv(_PROGRAMS, blocks[2]))
    taps = list(itertools.product(range(extents[0]), range(extents[1])))

    def depthwise_kernel_gradient(x_ref: Any, upstream_ref: Any, shares_ref: Any) -> None:
        share, channel = pl.program_id(0), pallas.places(pl.program_id(1), channels)

        def add(turn: Any, sums: tuple[Any, ...]) -> tuple[Any, ...]:
            image, part = _divide(share + turn * shares, blocks[0] * blocks[1])
            block, part = _divide(part, blocks[1])
            # The last turn of some shares is beyond the batch; then all of its rows are set beyond the image.
            first = jnp.where(image < geometry.batch, block, blocks[0]) * _ROWS
            column = pallas.places(part, columns)
            seen = [_Strip(x_ref, column * strides[1] + right - before[1], channel) for right in range(extents[1])]
            strip = _Strip(upstream_ref, column, channel)
            rows = [strip.load(image, first + number) for number in range(_ROWS)]
            found = dict(zip(taps, sums, strict=True))
            for row, right in _window(geometry):
                values = seen[right].load(image, first * strides[0] + row - before[0])
                for number, down in _outputs_of(row, geometry):
                    found[down, right] += values * rows[number]
            return tuple(found.values())

        zeros = jnp.zeros((columns, channels), jnp.float32)
        sums = jax.lax.fori_loop(0, pl.cdiv(parts, shares), add, (zeros,) * len(taps))
        for (down, right), total in zip(taps, sums, strict=True):
            at = shares_ref.at[share, down, right, channel]
            triton.store(at, jnp.sum(total, axis=0), mask=channel < geometry.depth)

    shape = jax.ShapeDtypeStruct((shares, *extents, geometry.depth), jnp.float32)
    return jnp.sum(pallas.call(depthwise_kernel_gradient, (shares, blocks[2]), shape, warps, x, upstream), axis=0)


def _window(geometry: _Geometry) -> Iterator[tuple[int, int]]:
    """Lists the rows of x that the output rows of a program need, each with the horizontal kernel offsets."""
    rows = (_ROWS - 1) * geometry.strides[0] + geometry.extents[0]
    return itertools.product(range(rows), range(geometry.extents[1]))


def _outputs_of(row: int, geometry: _Geometry) -> list[tuple[int, int]]:
    """Lists the output rows that a row of x contributes to, each with the kernel row that connects them."""
    pairs = [(number, row - number * geometry.strides[0]) for number in range(_ROWS)]
    return [(number, down) for number, down in pairs if 0 <= down < geometry.extents[0]]


def _divide(number: Any, by: int) -> tuple[Any, Any]:
    """Divides non-negative numbers: quotient and remainder."""
    return jax.lax.div(number, by), jax.lax.rem(number, by)


class _Strip:
    """Some columns and channels of an array [B, h, w, D]; positions outside are read as 0 and not written."""

    def __init__(self, ref: Any, column: Any, channel: Any):
        """Takes the indices, int32[columns] and int32[channels]."""
        _, self._height, width, depth = ref.shape
        mask = ((column >= 0) & (column < width))[:, None]
        if depth % channel.size:
            mask = mask & (channel < depth)[None, :]
        self._ref, self._column, self._channel = ref, column[:, None], channel[None, :]
        self._mask = jnp.broadcast_to(mask, (column.size, channel.size))

    def load(self, image: Any, row: Any) -> Any:
        """Reads float32[columns, channels]."""
        at, mask = self._at(image, row)
        return triton.load(at, mask=mask, other=0.0).astype(jnp.float32)

    def store(self, image: Any, row: Any, values: Any) -> None:
        """Writes [columns, channels], rounded."""
        at, mask = self._at(image, row)
        triton.store(at, values.astype(self._ref.dtype), mask=mask)

    def _at(self, image: Any, row: Any) -> tuple[Any, Any]:
        is_row = (row >= 0) & (row < self._height)
        return self._ref.at[image, row, self._column, self._channel], self._mask & is_row


def _load_weights(ref: Any, channel: Any) -> dict[tuple[int, int], Any]:
    """Reads the kernel for some channels: position in the kernel -> float32[1, channels]."""
    mask = channel < ref.shape[2]
    places = itertools.product(range(ref.shape[0]), range(ref.shape[1]))
    return {at: triton.load(ref.at[*at, channel], mask=mask, other=0.0).astype(jnp.float32)[None] for at in places}
