"""The processes of a run on several machines: how they connect, agree, and end when one of them is gone.

JAX connects them (`jax.distributed`); `launch` knows who started them, `liveness` whether they live. Process 0 writes
the run directory, which all of them must see.
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
_GRACE_SECONDS = 40.0  # in which a failed collective operation is found to come from a process that is gone


@contextlib.contextmanager
def joined(folder: Path, seconds: float) -> Iterator[None]:
    """Connects this process with the others of its run, if it is one of several, and watches them during the block.

    Comes before anything asks for a device. When another process is gone, this one ends within a minute, with status
    75 and a line that names it; a collective operation would wait for ever.

    Args:
        folder: the run directory.
        seconds: how long to wait for the others.

    Raises:
        UserError: the backend is not JAX, a variable is wrong, or a process does not come.
    """
    own = launch.find_launch()
    if own is None or own.count == 1:
        yield
        return
    if backend.running() != "jax":
        raise UserError(
            f"This is one of {own.count} processes ({own.launcher}); the TensorFlow backend trains in one. "
            "Give `--backend jax`."
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
        # A collective operation fails when a process is gone; then that is what there is to say.
        if lost := signs.find_lost(_GRACE_SECONDS):
            _leave(signs, lost)
        signs.end(failure=f"{type(error).__name__}; its output says more.")
        raise
    signs.end()


def _leave(signs: liveness.Signs, lost: liveness.Lost) -> None:
    """Ends this process: there is nothing to wait for. JAX's own way to end would wait for the process that is gone."""
    say(lost.line)
    signs.quiet()
    sys.stdout.flush()
    os._exit(lost.status)


def say(text: str) -> None:
    """Says something to the person, whichever process this is."""
    prefix = f"process {index()}: " if count() > 1 else ""
    progress.console.print(f"{prefix}{text}", soft_wrap=True, markup=False)


def _connect(own: Launch, folder: Path, seconds: float) -> None:
    """Lets JAX connect the processes, once each has come."""
    import jax

    if jax.distributed.is_initialized():
        return
    # Its own handler for SIGTERM would come in the way of `interruption`.
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
    """Finds the address of process 0 where no variable names it: process 0 writes it into the run directory."""
    signs = folder / liveness.FOLDER
    path = signs / _PORT_FILE
    run = (signs / "0").read_text().split()[1]  # host and pid of process 0 tell its file from that of an earlier run
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
    raise UserError(f"`{path}` has no address of process 0 after {seconds:.0f} s; look at the output of process 0.")


def count() -> int:
    """Returns the number of processes of this run."""
    own = launch.find_launch()
    return 1 if own is None else own.count


def index() -> int:
    """Returns this process's number, from 0."""
    own = launch.find_launch()
    return 0 if own is None else own.index


def is_first() -> bool:
    """Tells whether this process writes the run directory."""
    return index() == 0


def gather(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Brings what each process has to all of them; every process must call it, with no step under way.

    On processors, JAX's operations may overtake each other; two collective ones at a time would meet the wrong partner.

    Args:
        arrays: of this process; names, shapes and types may differ from the others'.

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
    """Brings a text of each process to all of them; every process must call it."""
    rows = gather({"text": np.frombuffer(text.encode(), np.uint8)})
    return [row["text"].tobytes().decode() for row in rows]


def agree(value: int) -> int:
    """Returns process 0's value to all of them; every process must call it."""
    return int(gather({"value": np.array(value, np.int64)})[0]["value"])


def first_only(function: Callable[[], Any]) -> None:
    """Calls a function in process 0; what it raises for a person to mend, all processes raise.

    Every process must call it; all wait until it is done.
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
