"""The circumstances stored in a result file besides its figures: hardware, versions, commit, command, date.

A file has `what` (one sentence), `rows`, and, if it compares, `ratios`: name -> {min, median, max} of our rate over
theirs. The tables in README and docs are generated from these files.
"""

import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from efficientdet import backend

_PACKAGES = (
    "efficientdet-keras",
    "keras",
    "tensorflow-cpu",
    "tensorflow",
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "numpy",
    "openvino",
    "ai-edge-litert",
    "pillow",
)
_CPU = Path("/proc/cpuinfo")
_ABSOLUTE = re.compile(r"(?<![^\s=])/(?:[^\s/]+/)+")  # machine-specific folders


def circumstances() -> dict[str, Any]:
    """Records what the figures depend on; the commit only if the package runs from its repository."""
    return {
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[1], 2),
            "devices": accelerators(),
        },
        "versions": {"python": platform.python_version(), **backend.versions(_PACKAGES)},
        "commit": _commit(),
        "command": _command(),
        "date": datetime.date.today().isoformat(),
    }


def device() -> str:
    """Names the hardware that the running backend computes on."""
    return ", ".join(accelerators()) or f"{os.cpu_count()} cores of {_cpu_name()}"


def _command() -> str:
    """Returns the command as a person would type it, without the folders of the program and of absolute paths."""
    program = Path(sys.argv[0]).name
    words = ["efficientdet" if program in ("efficientdet", "__main__.py") else f"python {sys.argv[0]}", *sys.argv[1:]]
    return _ABSOLUTE.sub("", " ".join(words))


def _commit() -> str | None:
    folder = Path(__file__).parent
    asked = subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return asked.stdout.strip() or None


def _cpu_name() -> str:
    """Reads the name of the CPU from Linux; the platform's name for it on other systems."""
    try:
        lines = _CPU.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def accelerators() -> list[str]:
    """Lists the names of the GPUs that the running backend sees; empty if no backend is running."""
    return backend.gpu_names() if "keras" in sys.modules else []
