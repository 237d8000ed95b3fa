"""What several processes check before they train together: the same program, the same settings, sums that are right."""

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
    """What was found of the processes of a run."""

    count: int
    """Processes."""
    devices: int
    """Of all of them."""
    milliseconds: float
    """For all to learn one number of each, median of ten."""
    clock_difference: float
    """Between the clocks that differ most, s; as far as the milliseconds above can tell."""

    def text(self) -> str:
        """Says it in one line."""
        return (
            f"{self.count} processes, {self.devices} devices: the same versions and settings, their sum is right, "
            f"{self.milliseconds:.1f} ms from all to all, clocks {self.clock_difference:.1f} s apart"
        )


def check_processes(config: ExperimentConfig | None = None) -> ProcessReport | None:
    """Checks what the processes of a run must have in common; every process must call it, before it trains.

    Args:
        config: of the run; none: only what needs no run.

    Returns:
        None: there is one process.

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
    """Sums 1, 2, ... n over the n devices of all processes, one number on each; every process must call it.

    Returns:
        The number of devices.

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
            f"The sum of 1 to {len(devices)} over as many devices is {found:g}, not {expected:g}; the devices or what "
            "connects them is faulty."
        )
    return len(devices)


def check_state(arrays: Iterable[np.ndarray]) -> str:
    """Compares, to the bit, what each process has of a state; every process must call it.

    Args:
        arrays: this process's copy.

    Returns:
        A line that says so; empty: there is one process.

    Raises:
        UserError: a process has other values.
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
            f"Process {', '.join(different)} and process 0 have different weights after the same steps; the devices or "
            "what connects them is faulty. Do not trust this run."
        )
    return f"all {len(everyone)} processes have the same weights, to the bit"


def _check_equal(own: Mapping[str, object], what: str) -> None:
    """Compares values by name with those of process 0."""
    # As JSON knows them: no difference between tuples and lists.
    everyone = [json.loads(text) for text in processes.gather_text(json.dumps(own))]
    for number, theirs in enumerate(everyone):
        for name, value in theirs.items():
            if value != everyone[0].get(name):
                first = everyone[0].get(name)
                raise UserError(f"Process {number} {what} `{name}` {value!r}, process 0 {first!r}; all need the same.")


def _times() -> tuple[float, float]:
    """Measures a round from all to all, ms, and how far the clocks are apart, s."""
    took = []
    clocks = np.zeros(1)
    for _ in range(_ROUNDS):
        began = time.monotonic()
        clocks = np.array([row["now"] for row in processes.gather({"now": np.array(time.time())})])
        took.append(1000 * (time.monotonic() - began))
    return float(np.median(took)), float(clocks.max() - clocks.min())
