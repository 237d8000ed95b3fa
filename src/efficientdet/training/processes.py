"""The processes of a run on several machines: how they find each other, agree, and notice that one is gone.

JAX connects them (`jax.distributed`). They are found from SLURM (`srun`), Open MPI (`mpirun`), or Keras's three
environment variables: KERAS_DISTRIBUTION_JOB_ADDRESSES (host:port of process 0), KERAS_DISTRIBUTION_NUM_PROCESSES and
KERAS_DISTRIBUTION_PROCESS_ID. Process 0 writes the run directory, which all of them must see.
"""

import contextlib
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import backend
from efficientdet.errors import UserError

_KERAS = ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID")
_START_SECONDS = 300
_SILENT_SECONDS = 20.0
_BEAT_SECONDS = 2.0
LOST_STATUS = 75
"""Exit status of a process whose run lost another one; the same command resumes (EX_TEMPFAIL, sysexits.h)."""


def join() -> None:
    """Connects this process with the others of its run, if it was started as one of several. Once; before any device.

    Raises:
        UserError: the backend is not JAX, a variable is missing, or a process does not come.
    """
    how = _launcher()
    if how is None:
        return
    if backend.running() != "jax":
        raise UserError(
            f"This is one of several processes ({how}); the TensorFlow backend trains in one. Give `--backend jax`."
        )
    import jax

    if jax.distributed.is_initialized():
        return
    options: dict[str, object] = {"initialization_timeout": _START_SECONDS}
    if how == "environment":
        options |= _keras_options()
    else:
        options["cluster_detection_method"] = "slurm" if how == "SLURM" else "ompi"
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"The processes of this run ({how}) did not find each other: {reason}.") from error


def _launcher() -> str | None:
    """Names what started this process as one of several; none: it is alone."""
    if any(name in os.environ for name in _KERAS):
        return "environment"
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        return "SLURM"
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    return None


def _keras_options() -> dict[str, object]:
    """Reads Keras's three variables."""
    missing = [name for name in _KERAS if name not in os.environ]
    if missing:
        raise UserError(f"`{missing[0]}` is not set; several processes need {', '.join(_KERAS)}.")
    address, count, index = (os.environ[name] for name in _KERAS)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise UserError(f"`{_KERAS[2]}` is {index} and `{_KERAS[1]}` is {count}; expected a number below another.")
    return {
        "coordinator_address": address.split(",")[0],
        "num_processes": int(count),
        "process_id": int(index),
    }


def count() -> int:
    """Returns the number of processes of this run."""
    if _launcher() is None:
        return 1
    import jax

    return int(jax.process_count())


def index() -> int:
    """Returns this process's number, from 0."""
    if _launcher() is None:
        return 0
    import jax

    return int(jax.process_index())


def is_first() -> bool:
    """Tells whether this process writes the run directory."""
    return index() == 0


def gather(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Brings what each process has to all of them; every process must call it.

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
    encoded = np.frombuffer(text.encode(), np.uint8)
    found = gather({"error": encoded})[0]["error"]
    if found.size:
        raise UserError(found.tobytes().decode())


@contextlib.contextmanager
def watched(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Ends this process, with a line that names it, soon after another one of the run is gone.

    A collective operation waits for all processes, in vain if one is dead. So each writes a sign of life into the run
    directory every two seconds, and one whose sign has not changed for twenty is taken for gone.

    Args:
        folder: the run directory.
        say: shows a line.
    """
    if count() == 1:
        yield
        return
    signs = folder / ".processes"
    signs.mkdir(exist_ok=True)
    ended = threading.Event()
    own = signs / str(index())
    _sign(own, 0)
    thread = threading.Thread(target=_watch, args=(signs, own, ended, say), daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        ended.wait(0)
        _explain(signs, error, say)
        raise
    finally:
        ended.set()
        thread.join()
        own.write_text("done")


def _sign(path: Path, beat: int) -> None:
    """Writes a sign of life."""
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(f"{beat} {socket.gethostname()} {os.getpid()}")
    aside.replace(path)


def _watch(signs: Path, own: Path, ended: threading.Event, say: Callable[[str], None]) -> None:
    """Writes signs and looks at the others' until the run ends."""
    seen: dict[str, tuple[str, float]] = {}
    beat = 0
    while not ended.wait(_BEAT_SECONDS):
        beat += 1
        _sign(own, beat)
        for number in range(count()):
            name = str(number)
            text = _read(signs / name)
            if text == "done" or name == own.name:
                seen.pop(name, None)
                continue
            if name not in seen or seen[name][0] != text:
                seen[name] = (text, time.monotonic())
            elif time.monotonic() - seen[name][1] > _SILENT_SECONDS and not ended.is_set():
                say(_lost(number, text))
                sys.stdout.flush()
                os._exit(LOST_STATUS)


def _explain(signs: Path, error: BaseException, say: Callable[[str], None]) -> None:
    """Waits, after a failed collective operation, until it is clear whether a process is gone; then says which."""
    if isinstance(error, UserError | KeyboardInterrupt | SystemExit):
        return
    time.sleep(_SILENT_SECONDS + 3 * _BEAT_SECONDS)  # the thread ends this process if one is gone


def _lost(number: int, text: str) -> str:
    parts = text.split()
    where = f" ({parts[1]}, pid {parts[2]})" if len(parts) == 3 else ""
    return (
        f"process {number}{where} has given no sign of life for {_SILENT_SECONDS:.0f} s; this process ends. "
        "The last checkpoint is good: start all processes again with the same command."
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
