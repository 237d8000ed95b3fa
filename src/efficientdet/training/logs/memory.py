"""Memory use of a run: of the process and of the devices it trains on."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from efficientdet import backend

_STATUS = Path("/proc/self/statm")  # Linux: pages of the process; the second number counts the resident ones
_SUMMARY = Path("/proc/self/status")  # Linux: names and values
_MB = 1e6


def resident() -> float | None:
    """Returns the resident memory of this process, MB of 10^6 bytes; None if the system does not report it."""
    try:
        pages = int(_STATUS.read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def resident_peak() -> float | None:
    """Returns the peak resident memory of this process, MB of 10^6 bytes; None if the system does not report it."""
    # On Linux, `getrusage` starts from the memory of the parent process.
    with contextlib.suppress(OSError):
        for line in _SUMMARY.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / _MB, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MB, 1)


def device_peak() -> float | None:
    """Returns the peak memory of the fullest device of this process, MB of 10^6 bytes; None on a CPU.

    The backend reserves more than that; nvidia-smi shows the reserved memory.
    """
    if backend.running() == "jax":
        import jax

        found = [device.memory_stats() for device in jax.local_devices()]
        peaks = [stats["peak_bytes_in_use"] for stats in found if stats and "peak_bytes_in_use" in stats]
    else:
        import tensorflow as tf

        names = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")]
        peaks = [tf.config.experimental.get_memory_info(name)["peak"] for name in names]
    return max(peaks) / _MB if peaks else None


def trim() -> None:
    """Returns freed memory to the system if the C library can (glibc).

    By default glibc keeps pages between blocks that are still in use: training a small model on a CPU grew by 17 MB
    over ten evaluations although nothing leaked.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
