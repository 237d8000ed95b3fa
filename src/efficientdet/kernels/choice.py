"""The kernels that a network computes with, chosen once when it is built.

A layer defines what it computes, with which variables. How it is computed depends on the functions that the layer takes
from here when it is created: `EfficientDet(config, kernels=...)` passes them to every layer inside.

| where                    | convolve           | convolve_depthwise   | normalize, rescale           |
|---|---|---|---|
| TensorFlow, CPU          | matrix products    | explicit padding     | one operation, or one kernel |
| TensorFlow, GPUs         | the backend's      | the backend's        | the formula                  |
| JAX, CPU                 | the backend's      | the backend's        | few passes                   |
| JAX, one GPU             | stem by blocks     | Pallas kernels       | few passes, sums in Pallas   |
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
    """How the operations of a network are computed; see the modules of the functions for their arguments.

    Attributes:
        convolve: like `convolutions.plain`.
        convolve_depthwise: like `convolutions.plain_depthwise`.
        normalize: by the statistics of the batch, like `normalization.normalize`.
        rescale: by given statistics while gamma and beta are trained, like `normalization.rescale`.
        exact: type in which factors for inference are computed before they are rounded to float32.
    """

    convolve: Callable[..., Any] = convolutions.plain
    convolve_depthwise: Callable[..., Any] = convolutions.plain_depthwise
    normalize: Callable[..., tuple[Any, Any, Any]] = normalization.normalize
    rescale: Callable[..., Any] = normalization.rescale
    exact: str = "float32"


def plain() -> Kernels:
    """Chooses kernels for the running backend without querying JAX's devices, which would start them."""
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
    """Chooses kernels for a graph that may run on another CPU: nothing depends on how this one computes sums."""
    return dataclasses.replace(plain(), convolve_depthwise=convolutions.depthwise_in_float32)


def synchronized() -> Kernels:
    """Chooses kernels for replicas of TensorFlow's strategy that share their batch statistics."""
    return dataclasses.replace(plain(), normalize=normalization.normalize_over_replicas)


def find_depthwise(method: Depthwise, devices: int = 1) -> Depthwise:
    """Returns the method that `auto` means here; see `choose`."""
    if method != "auto":
        return method
    is_gpu = backend.running() == "jax" and backend.gpus() > 0
    return "convolution" if not is_gpu else "pallas" if devices == 1 else "shifts"


def choose(depthwise: Depthwise = "auto", *, devices: int = 1) -> Kernels:
    """Chooses kernels for the devices of this machine.

    Args:
        depthwise: how depthwise convolutions are computed. shifts sums the shifted input times each number of the
            kernel, which XLA fuses into one loop: GPUs have slow kernels for depthwise convolutions, and slower ones
            for their gradients. pallas means our own kernels for one GPU, with JAX; then batch normalization also sums
            in our kernels, and the stem works on blocks of pixels. auto: with JAX, pallas on a GPU and shifts on
            several that share a batch; otherwise convolution.
        devices: number of devices that share a batch.

    Raises:
        UserError: the method is pallas, and the backend is not JAX.
    """
    method = find_depthwise(depthwise, devices)
    if method == "pallas" and (running := backend.running()) != "jax":
        raise UserError(f"`depthwise` is pallas, which needs JAX, but Keras uses `{running}`; use `--backend jax`.")
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
    """Returns the kernels for layers created now."""
    return _current.get() or plain()


@contextlib.contextmanager
def used(kernels: Kernels) -> Iterator[None]:
    """Makes layers created in this context compute with these kernels."""
    token = _current.set(kernels)
    try:
        yield
    finally:
        _current.reset(token)
