"""Timing on the device itself, and the ratio computed there.

On a GPU, a batch and its predictions are not moved: the raw predictions of one image are 18 MB, and rivals are timed on
the network alone. End to end, from files to detections on the host, is a separate part.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from efficientdet import backend
from efficientdet.benchmarks import report, timing
from efficientdet.config import Depthwise
from efficientdet.errors import UserError

RATIO = "inference_gpu_vs_effdet"
ANSWER = "network + suppression"
_BATCHES = 2  # kept on the device


def check_depthwise(methods: Sequence[Depthwise], *, devices: int = 1) -> None:
    """Raises a UserError for a method that cannot run here.

    Args:
        methods: see `kernels.choice.choose`.
        devices: number of devices that share a batch.
    """
    if not methods:
        raise UserError("`--depthwise` is empty; choose from convolution, shifts, pallas.")
    if "pallas" not in methods:
        return
    if backend.running() != "jax":
        raise UserError(
            f"`--depthwise` includes pallas, which needs JAX, not {backend.running()}; use `--backend jax`."
        )
    if not report.accelerators():
        raise UserError("`--depthwise` includes pallas, which needs a GPU, but JAX finds none; remove it.")
    if devices > 1:
        raise UserError(f"`--depthwise` includes pallas, which runs on one device, not {devices}; use `--devices 1`.")


def calls(runtime: Any, inputs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Callable[[int], Any]]:
    """Creates the calls of Keras's runtime that start and end on the device; each waits until it is done.

    Args:
        runtime: KerasRuntime.
        inputs: letterboxed batches, as accepted by its `predict`.

    Returns:
        Part -> call, whose argument counts the calls: `network`; and with JAX or a GPU, where both are one compiled
        function, `network + suppression`.
    """
    placed = [runtime.place(*batch) for batch in inputs[:_BATCHES]]
    found: dict[str, Callable[[int], Any]] = {
        "network": lambda call: runtime.predict_placed(placed[call % len(placed)])
    }
    if backend.running() == "jax" or report.accelerators():
        found[ANSWER] = lambda call: runtime.detect_placed(placed[call % len(placed)])
    return found


def ratios(candidates: Sequence[Any], rates: timing.Rates, rival: str) -> dict[str, dict[str, float]]:
    """Compares our fastest network with the rival's fastest, each at its best batch size and precision.

    Args:
        candidates: objects with `part`, `by` and `name`.
        rates: images/s of each round, by name.
        rival: `by` of the rival.
    """
    networks = [candidate for candidate in candidates if candidate.part == "network"]
    ours, theirs = (
        max((rates[one.name] for one in networks if (one.by == rival) == is_theirs), key=np.median, default=None)
        for is_theirs in (False, True)
    )
    return {} if ours is None or theirs is None else {RATIO: timing.ratio(ours, theirs)}
