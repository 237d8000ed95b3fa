"""How this process was launched as one of several, and which one it is: SLURM, Open MPI, or three variables.

`srun` and `mpirun` set their own variables. To launch by hand, set Keras's three: KERAS_DISTRIBUTION_JOB_ADDRESSES
(host:port of process 0), KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID. Nothing here initializes a
device.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

from efficientdet.errors import UserError

_KERAS = ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """One of several processes."""

    launcher: str
    """Name of the launcher, for messages."""
    index: int
    """Number of this process, from 0."""
    count: int
    """Number of processes."""
    address: str = ""
    """host:port where process 0 waits for the others; if empty, process 0 chooses it."""
    local_index: int | None = None
    """Number of this process on its machine, and so the GPU it uses; None: it uses all visible GPUs."""


def find_launch(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Reads how this process was started.

    Args:
        environment: environment variables; None: those of this process.

    Returns:
        None if it is the only process.

    Raises:
        UserError: a variable is missing or invalid.
    """
    variables = os.environ if environment is None else environment
    if any(name in variables for name in _KERAS):
        return _by_hand(variables)
    if "SLURM_PROCID" in variables and _number(variables, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _slurm(variables)
    if _number(variables, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        is_alone = _number(variables, "OMPI_COMM_WORLD_LOCAL_SIZE", 1) == 1
        local = None if is_alone else _number(variables, "OMPI_COMM_WORLD_LOCAL_RANK")
        return Launch(
            launcher="Open MPI",
            index=_number(variables, "OMPI_COMM_WORLD_RANK"),
            count=_number(variables, "OMPI_COMM_WORLD_SIZE"),
            local_index=_own_gpu(variables, local),
        )
    return None


def _by_hand(variables: Mapping[str, str]) -> Launch:
    missing = [name for name in _KERAS if name not in variables]
    if missing:
        raise UserError(f"`{missing[0]}` is not set; to run several processes, set {', '.join(_KERAS)}.")
    address, count, index = (variables[name] for name in _KERAS)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise UserError(f"`{_KERAS[2]}` is {index} and `{_KERAS[1]}` is {count}; the first must be below the second.")
    first = address.split(",")[0].strip()
    if not re.fullmatch(r".+:\d{1,5}", first):
        raise UserError(f"`{_KERAS[0]}` is {address!r}; expected host:port of process 0.")
    return Launch(launcher="environment", index=int(index), count=int(count), address=first)


def _slurm(variables: Mapping[str, str]) -> Launch:
    nodes, job = variables.get("SLURM_STEP_NODELIST", ""), _number(variables, "SLURM_JOB_ID", 0)
    # The first node of node07 or node[01-04,07],login1; a port that another job on the machine is unlikely to use.
    match = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    host = "" if match is None else f"{match[1]}{match[2] or ''}"
    is_alone = _tasks_here(variables) == 1
    return Launch(
        launcher="SLURM",
        index=_number(variables, "SLURM_PROCID"),
        count=_number(variables, "SLURM_STEP_NUM_TASKS"),
        address=f"{host}:{61440 + job % 4096}" if host else "",
        local_index=_own_gpu(variables, None if is_alone else _number(variables, "SLURM_LOCALID")),
    )


def _tasks_here(variables: Mapping[str, str]) -> int:
    """Counts the tasks of this step on this machine: `SLURM_STEP_TASKS_PER_NODE` is 8, or 8(x3),4."""
    counts: list[int] = []
    for part in variables.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()):
            counts += [int(match[1])] * int(match[2] or 1)
    node = _number(variables, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else 0


def _own_gpu(variables: Mapping[str, str], local_index: int | None) -> int | None:
    """Returns the GPU that a process uses; None (all) if the launcher already shows each process only its own GPU."""
    visible = variables.get("CUDA_VISIBLE_DEVICES", "")
    return None if visible and "," not in visible else local_index


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = variables.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise UserError(f"The environment variable `{name}`, set by the launcher, is {text!r}; expected a number.")
    return int(text)
