"""The processes of a run on several machines: how they connect, agree, and stop when one of them dies.

JAX connects them (`jax.distributed`); `launch` knows how they were started, `liveness` whether they are alive. Process
0 writes the run folder, which all of them must be able to see.
"""

import contextlib
import io
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import backend, progress
from efficientdet.errors import UserError, first_line
from efficientdet.training.distributed import launch, liveness
from efficientdet.training.distributed.launch import Launch

_PORT_FILE = "address"
_GRACE_SECONDS = 40.0  # time to find out that a collective operation failed because a process died


@contextlib.contextmanager
def joined(folder: Path, seconds: float) -> Iterator[None]:
    """Connects this process with the others of its run, if there are any, and watches them during the block.

    Call it before anything requests a device. When another process dies, this one exits within a minute with status 75
    and a line that names the other; a collective operation would wait forever.

    Args:
        folder: run folder.
        seconds: how long to wait for the others.

    Raises:
        UserError: the backend is not JAX, a variable is invalid, or a process does not start.
    """
    own = launch.find_launch()
    if own is None or own.count == 1:
        yield
        return
    if backend.running() != "jax":
        raise UserError(
            f"This is one of {own.count} processes ({own.launcher}), but the TensorFlow backend trains in a single "
            "process; use `--backend jax`."
        )
    signs = liveness.Signs(folder, own.index, own.count)
    try:
        signs.wait_for_all(seconds)
        _connect(own, folder, seconds)
        signs.watch(lambda lost: _leave(signs, lost))
        yield
    except (KeyboardInterrupt, SystemExit):
        signs.end(is_stopped=True)
        raise
    except UserError as error:
        signs.end(failure=str(error))
        raise
    except Exception as error:
        # A collective operation fails when a process dies; then report that instead.
        if lost := signs.find_lost(_GRACE_SECONDS):
            _leave(signs, lost)
        signs.end(failure=f"{type(error).__name__}; see its output.")
        raise
    signs.end()


def _leave(signs: liveness.Signs, lost: liveness.Lost) -> None:
    """Exits at once; JAX's own shutdown would wait for the process that died."""
    say(lost.line)
    signs.quiet()
    sys.stdout.flush()
    os._exit(lost.status)


def say(text: str) -> None:
    """Prints a line from any process, with the number of the process."""
    prefix = f"process {index()}: " if count() > 1 else ""
    progress.console.print(f"{prefix}{text}", soft_wrap=True, markup=False)


def _connect(own: Launch, folder: Path, seconds: float) -> None:
    """Lets JAX connect the processes once all have started."""
    import jax

    if jax.distributed.is_initialized():
        return
    # JAX's own SIGTERM handler would conflict with `interruption`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=own.address or _address_of_the_first(own, folder, seconds),
            num_processes=own.count,
            process_id=own.index,
            local_device_ids=None if own.local_index is None else [own.local_index],
            cluster_detection_method="deactivate",
            initialization_timeout=int(seconds),
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The processes of this run ({own.launcher}) did not connect: {first_line(error)}.") from error


def _address_of_the_first(own: Launch, folder: Path, seconds: float) -> str:
    """Finds the address of process 0 if no variable names it: process 0 writes it to the run folder."""
    signs = folder / liveness.FOLDER
    path = signs / _PORT_FILE
    run = (signs / "0").read_text().split()[1]  # host and pid of process 0 distinguish this run from an earlier one
    if own.index == 0:
        with socket.socket() as bound:
            bound.bind(("", 0))
            path.write_text(f"{run} {socket.gethostname()}:{bound.getsockname()[1]}")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            whose, address = path.read_text().split()
            if whose == run:
                return address
        time.sleep(0.1)
    raise UserError(
        f"`{path}` still has no address for process 0 after {seconds:.0f} s; check the output of process 0."
    )


def count() -> int:
    """Returns the number of processes of this run."""
    own = launch.find_launch()
    return 1 if own is None else own.count


def index() -> int:
    """Returns this process's number, from 0."""
    own = launch.find_launch()
    return 0 if own is None else own.index


def is_first() -> bool:
    """Returns whether this is process 0, which writes the run folder."""
    return index() == 0


def gather(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Gathers the arrays of all processes in each of them; every process must call it while no step is running.

    On CPUs, JAX may reorder operations; two concurrent collective operations could be matched with each other.

    Args:
        arrays: arrays of this process; names, shapes and types may differ from the others'.

    Returns:
        The arrays of process 0, 1, ...
    """
    if count() == 1:
        return [dict(arrays)]
    from jax.experimental import multihost_utils

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    content = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([content.size], np.int32))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    found = []
    for row, size in zip(rows, sizes, strict=True):
        with np.load(io.BytesIO(row[:size].tobytes()), allow_pickle=False) as file:
            found.append({name: file[name] for name in file.files})
    return found


def gather_text(text: str) -> list[str]:
    """Gathers a text from all processes in each of them; every process must call it."""
    rows = gather({"text": np.frombuffer(text.encode(), np.uint8)})
    return [row["text"].tobytes().decode() for row in rows]


def agree(value: int) -> int:
    """Returns the value of process 0 in all processes; every process must call it."""
    return int(gather({"value": np.array(value, np.int64)})[0]["value"])


def first_only(function: Callable[[], Any]) -> None:
    """Calls a function in process 0; if it raises a UserError, all processes raise it.

    Every process must call this; all wait until it is done.
    """
    text = ""
    if is_first():
        try:
            function()
        except UserError as error:
            if count() == 1:
                raise
            text = str(error)
    if problem := gather_text(text)[0]:
        raise UserError(problem)
