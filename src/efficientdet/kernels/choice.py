"""Which kernels a network computes with: chosen once, when it is built.

A layer says what it computes, with which variables. How is up to the functions that it took from here when it was
made: `EfficientDet(config, kernels=...)` hands them to every layer inside.

| where                    | convolve           | convolve_depthwise   | normalize, rescale           |
|---|---|---|---|
| TensorFlow, processors   | matrix products    | padding spelt out    | one operation, or one kernel |
| TensorFlow, GPUs         | the backend's      | the backend's        | the formula                  |
| JAX, processors          | the backend's      | the backend's        | few passes                   |
| JAX, one GPU             | stem by blocks     | kernels in Pallas    | few passes, sums in Pallas   |
| JAX, several GPUs        | the backend's      | shifts               | few passes                   |
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from efficientdet import backend
from efficientdet.config import Depthwise
from efficientdet.errors import UserError
from efficientdet.kernels import convolutions, normalization


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernels:
    """How the operations of a network are computed; each function's module has its arguments.

    Attributes:
        convolve: as `convolutions.plain`.
        convolve_depthwise: as `convolutions.plain_depthwise`.
        normalize: by the statistics of the batch, as `normalization.normalize`.
        rescale: by given statistics while gamma and beta learn, as `normalization.rescale`.
        exact: type in which the factors of inference are computed, before they are rounded to float32.
    """

    convolve: Callable[..., Any] = convolutions.plain
    convolve_depthwise: Callable[..., Any] = convolutions.plain_depthwise
    normalize: Callable[..., tuple[Any, Any, Any]] = normalization.normalize
    rescale: Callable[..., Any] = normalization.rescale
    exact: str = "float32"


def plain() -> Kernels:
    """Chooses for the running backend without a look at JAX's devices, which would start them."""
    if backend.running() == "jax":
        return Kernels(normalize=normalization.in_few_passes)
    if not backend.is_tensorflow_on_cpu():
        return Kernels(convolve=convolutions.with_tensorflow, exact="float64")
    return Kernels(
        convolve=convolutions.on_processors,
        convolve_depthwise=convolutions.depthwise_on_processors,
        normalize=normalization.normalize_on_processors,
        rescale=normalization.rescale_on_processors,
        exact="float64",
    )


def portable() -> Kernels:
    """Chooses for a graph that may run on another processor: nothing depends on what this one adds up exactly."""
    return dataclasses.replace(plain(), convolve_depthwise=convolutions.depthwise_in_float32)


def synchronized() -> Kernels:
    """Chooses for replicas of TensorFlow's strategy that share their batch statistics."""
    return dataclasses.replace(plain(), normalize=normalization.normalize_over_replicas)


def find_depthwise(method: Depthwise, devices: int = 1) -> Depthwise:
    """Says what `auto` is here; see `choose`."""
    if method != "auto":
        return method
    is_gpu = backend.running() == "jax" and backend.gpus() > 0
    return "convolution" if not is_gpu else "pallas" if devices == 1 else "shifts"


def choose(depthwise: Depthwise = "auto", *, devices: int = 1) -> Kernels:
    """Chooses for the devices that are here.

    Args:
        depthwise: how depthwise convolutions are computed. shifts adds up the shifted input times each number of the
            kernel, which XLA makes into one loop: GPUs have slow kernels for depthwise convolutions, and slower ones
            for their gradients. pallas is kernels of our own for one GPU, with JAX; batch normalisation sums in
            kernels of ours then too, and the stem works on blocks of pixels. auto: with JAX on a GPU pallas, on
            several that share a batch shifts; otherwise convolution.
        devices: that share a batch.

    Raises:
        UserError: the method is pallas, and the backend is not JAX.
    """
    method = find_depthwise(depthwise, devices)
    if method == "pallas" and (running := backend.running()) != "jax":
        raise UserError(f"`depthwise` is pallas, which needs JAX, but Keras runs on `{running}`; give `--backend jax`.")
    if method == "pallas":
        return Kernels(
            convolve=convolutions.with_stem_by_blocks,
            convolve_depthwise=convolutions.depthwise_in_pallas,
            normalize=functools.partial(normalization.in_few_passes, in_kernel=True),
        )
    if method == "shifts":
        return dataclasses.replace(plain(), convolve_depthwise=convolutions.shift_and_add)
    return plain()


_current: contextvars.ContextVar[Kernels | None] = contextvars.ContextVar("kernels", default=None)


def current() -> Kernels:
    """Returns what a layer that is made now computes with."""
    return _current.get() or plain()


@contextlib.contextmanager
def used(kernels: Kernels) -> Iterator[None]:
    """Lets layers that are made inside compute with these."""
    token = _current.set(kernels)
    try:
        yield
    finally:
        _current.reset(token)
