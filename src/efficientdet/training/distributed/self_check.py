"""Checks of several processes before they train together: same versions, same settings, correct sums."""

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Iterable, Mapping

import numpy as np

from efficientdet import backend, knobs
from efficientdet.config import ExperimentConfig
from efficientdet.errors import UserError
from efficientdet.training.distributed import processes

_ROUNDS = 10
_PACKAGES = ("efficientdet-keras", "keras", "jax", "jaxlib", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessReport:
    """Result of checking the processes of a run."""

    count: int
    """Number of processes."""
    devices: int
    """Number of devices of all processes."""
    milliseconds: float
    """Time to gather one number from each process in all of them, median of ten."""
    clock_difference: float
    """Difference between the two clocks furthest apart, s; no more precise than the milliseconds above."""

    def text(self) -> str:
        """Summarizes the report in one line."""
        return (
            f"{self.count} processes, {self.devices} devices: same versions and settings, correct test sum, "
            f"{self.milliseconds:.1f} ms per all-gather, clocks {self.clock_difference:.1f} s apart"
        )


def check_processes(config: ExperimentConfig | None = None) -> ProcessReport | None:
    """Checks what the processes of a run must have in common; every process must call it before training.

    Args:
        config: config of the run; None skips the comparison of settings.

    Returns:
        None if there is only one process.

    Raises:
        UserError: versions or settings differ, or a sum over the devices is wrong.
    """
    if processes.count() == 1:
        return None
    absent = dict.fromkeys(_PACKAGES, "not installed")
    _check_equal({**absent, **backend.versions(_PACKAGES), "python": platform.python_version()}, "runs")
    if config is not None:
        _check_equal(knobs.flatten(knobs.to_dict(config)), "was started with")
    milliseconds, clock_difference = _times()
    return ProcessReport(
        count=processes.count(),
        devices=check_sum(),
        milliseconds=milliseconds,
        clock_difference=clock_difference,
    )


def check_sum() -> int:
    """Sums 1, 2, ... n over the n devices of all processes, one number per device; every process must call it.

    Returns:
        Number of devices.

    Raises:
        UserError: the sum is wrong.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    numbers = np.array([1 + devices.index(device) for device in jax.local_devices()], np.float32)
    parts = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("batch")), numbers)
    whole = NamedSharding(mesh, PartitionSpec())
    found = float(np.asarray(jax.jit(lambda values: values.sum(), out_shardings=whole)(parts).addressable_data(0)))
    expected = len(devices) * (len(devices) + 1) / 2
    if found != expected:
        raise UserError(
            f"The sum of 1 to {len(devices)} over as many devices is {found:g}, expected {expected:g}; a device or the "
            "interconnect is faulty."
        )
    return len(devices)


def check_state(arrays: Iterable[np.ndarray]) -> str:
    """Checks that all processes have bit-identical copies of a state; every process must call it.

    Args:
        arrays: copy of this process.

    Returns:
        A line that confirms it; empty if there is only one process.

    Raises:
        UserError: a process has different values.
    """
    if processes.count() == 1:
        return ""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    everyone = processes.gather_text(digest.hexdigest())
    different = [str(number) for number, theirs in enumerate(everyone) if theirs != everyone[0]]
    if different:
        raise UserError(
            f"Process {', '.join(different)} and process 0 have different weights after the same steps; a device or "
            "the interconnect is faulty. Do not trust this run."
        )
    return f"all {len(everyone)} processes have bit-identical weights"


def _check_equal(own: Mapping[str, object], what: str) -> None:
    """Compares values by name with those of process 0."""
    # JSON makes no difference between tuples and lists.
    everyone = [json.loads(text) for text in processes.gather_text(json.dumps(own))]
    for number, theirs in enumerate(everyone):
        for name, value in theirs.items():
            if value != everyone[0].get(name):
                first = everyone[0].get(name)
                raise UserError(
                    f"Process {number} {what} `{name}` {value!r}, but process 0 {what} {first!r}; all processes must "
                    "use the same value."
                )


def _times() -> tuple[float, float]:
    """Measures the time of an all-gather, ms, and how far apart the clocks are, s."""
    took = []
    clocks = np.zeros(1)
    for _ in range(_ROUNDS):
        began = time.monotonic()
        clocks = np.array([row["now"] for row in processes.gather({"now": np.array(time.time())})])
        took.append(1000 * (time.monotonic() - began))
    return float(np.median(took)), float(clocks.max() - clocks.min())
