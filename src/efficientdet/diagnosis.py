"""Checks what works on this machine: devices, versions, precision, sums over devices and processes, writable folder."""

import dataclasses
import functools
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import efficientdet
from efficientdet import backend
from efficientdet.errors import UserError
from efficientdet.result import Result
from efficientdet.storage import files
from efficientdet.training.distributed import processes, self_check
from efficientdet.training.logs import memory

_PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "numpy", "pillow", "safetensors", "faster-coco-eval")
# Allowed error of products of 256 normal numbers against float64, relative to the largest: factors have 24, 11, 8 and
# 11 bits, plus some room for the order of sums. This detects float32 that is really TF32.
_BOUNDS = {"float32": 1e-5, "tf32": 5e-3, "mixed_bfloat16": 3e-2, "mixed_float16": 5e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check."""

    what: str
    is_good: bool
    text: str
    """What was found, and what to do if it is not good."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis(Result):
    """Results of all checks."""

    findings: tuple[Finding, ...]

    @property
    def is_good(self) -> bool:
        """Whether all checks passed."""
        return all(finding.is_good for finding in self.findings)

    def status(self) -> int:
        """Returns 1 if a check failed, else 0."""
        return 0 if self.is_good else 1

    def to_dict(self) -> dict[str, Any]:
        """Converts the diagnosis to plain JSON values."""
        return {"is_good": self.is_good, **dataclasses.asdict(self)}

    def table(self) -> Any:
        """Returns a rich table for the terminal."""
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in self.findings:
            table.add_row("ok" if finding.is_good else "[red]WRONG[/]", finding.what, finding.text)
        return table


def doctor(*, run_dir: str = "", join_seconds: float = 300.0) -> Diagnosis:
    """Checks everything that training needs; if started as several processes, also the connection between them.

    Args:
        run_dir: run folder to check. Several processes need one that they can all see, such as `runs/doctor`.
        join_seconds: how long several processes wait for each other, s.

    Returns:
        Results of the checks; the command's exit status is 1 if one failed.

    Raises:
        UserError: one of several processes does not start, or differs from the first.
    """
    folder = Path(run_dir or "runs/doctor").expanduser()
    with processes.joined(folder, join_seconds):
        report = self_check.check_processes()
        findings = [
            Finding(what="program", is_good=True, text=_program()),
            Finding(what="packages", is_good=True, text=", ".join(map(" ".join, backend.versions(_PACKAGES).items()))),
            Finding(what="devices", is_good=True, text=_devices()),
            *(_examine(precision, functools.partial(_check_precision, precision)) for precision in _BOUNDS),
            _examine("XLA", _check_xla),
            _examine("records", _check_records),
            _examine("sum over devices", _check_devices),
        ]
        backend.use_precision("float32")
        if report is not None:
            findings.append(Finding(what="processes", is_good=True, text=report.text()))
        if run_dir:
            findings.append(_examine("run folder", lambda: _check_folder(folder)))
    return Diagnosis(findings=tuple(findings))


def _examine(what: str, check: Callable[[], str]) -> Finding:
    """Runs a check and turns any exception into a finding."""
    try:
        return Finding(what=what, is_good=True, text=check())
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Finding(what=what, is_good=False, text=lines[0][:300])


def _program() -> str:
    resident = memory.resident()
    used = "" if resident is None else f", {resident:.0f} MB in use"
    return (
        f"efficientdet-keras {efficientdet.__version__}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} CPU cores{used}"
    )


def _devices() -> str:
    """Lists the devices of the running backend; does not query another installed one."""
    if backend.running() == "jax":
        import jax

        names = [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.local_devices()]
    else:
        names = [f"gpu:{number} {kind}" for number, kind in enumerate(backend.gpu_names())] or ["cpu:0"]
    hint = backend.unused_gpu_build()
    return f"{backend.running()}: {', '.join(names)}" + (f". {hint}" if hint else "")


def _check_precision(precision: str) -> str:
    """Multiplies and convolves in a precision and compares with float64 on the host."""
    from keras import ops

    dtype = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}.get(precision, "float32")
    backend.use_precision(precision)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(256, 256)), rng.normal(size=(256, 256))

    def product(left: Any, right: Any) -> Any:
        image = ops.reshape(left, (1, 16, 16, 256))
        kernel = ops.reshape(right, (1, 1, 256, 256))
        return ops.matmul(left, right), ops.reshape(ops.conv(image, kernel), (256, 256))

    compiled = backend.compile_function(product)
    inputs = [ops.convert_to_tensor(array, dtype=dtype) for array in (a, b)]
    found = [ops.convert_to_numpy(ops.cast(each, "float32")) for each in compiled(*inputs)]
    began = time.monotonic()
    for _ in range(5):
        ops.convert_to_numpy(ops.cast(compiled(*inputs)[0], "float32"))
    milliseconds = 200 * (time.monotonic() - began)
    error = max(float(np.abs(each - a @ b).max() / np.abs(a @ b).max()) for each in found)
    if not error <= _BOUNDS[precision]:
        raise UserError(
            f"products are off by {error:.1e} relative to the largest, expected at most {_BOUNDS[precision]:.0e}; do "
            f"not train with `--training.precision {precision}` on this device"
        )
    return f"products within {error:.1e} of float64, {milliseconds:.1f} ms"


def _check_xla() -> str:
    """Compiles a small function with XLA and checks its result."""
    from keras import ops

    compiled = backend.compile_function(lambda values: ops.sum(ops.square(values)), xla="on")
    found = float(compiled(ops.convert_to_tensor(np.arange(4.0, dtype=np.float32))))
    if found != 14.0:
        raise UserError(f"0 + 1 + 4 + 9 is {found:g} with XLA; do not use `--training.xla on` here")
    return "compiles"


def _check_records() -> str:
    """Checks that records can be read, which needs TensorFlow on both backends."""
    if importlib.util.find_spec("tensorflow") is None:
        return "TensorFlow is not installed, so training works on generated images but not on records"
    import tensorflow as tf

    image = tf.io.encode_jpeg(np.full((8, 8, 3), 128, np.uint8))
    if tf.io.decode_jpeg(image).shape != (8, 8, 3):
        raise UserError("TensorFlow cannot read back the JPEG image it wrote; reinstall it")
    return "TensorFlow reads and decodes them"


def _check_devices() -> str:
    """Computes a sum over the devices whose result is known."""
    if backend.running() == "jax":
        return f"correct over {self_check.check_sum()} devices"
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    if len(gpus) < 2:
        return "one device"
    strategy = tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])

    def add() -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", tf.cast(context.replica_id_in_sync_group + 1, tf.float32))

    found = float(strategy.experimental_local_results(strategy.run(add))[0])
    expected = len(gpus) * (len(gpus) + 1) / 2
    if found != expected:
        raise UserError(
            f"the sum of 1 to {len(gpus)} over as many GPUs is {found:g}, expected {expected:g}; train on one GPU"
        )
    return f"correct over {len(gpus)} GPUs"


def _check_folder(folder: Path) -> str:
    """Checks that a run can write its folder."""
    files.check_writable(folder / "config.json")
    place = folder
    while not place.exists():
        place = place.parent
    return f"{folder} can be written, {shutil.disk_usage(place).free / 1e9:.1f} GB free"
