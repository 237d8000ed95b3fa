"""Selects Keras's backend and compiles functions with it.

Keras fixes its backend at its first import, so `choose` runs before that. Devices are not probed: asking JAX for its
devices starts XLA, after which `jax.distributed.initialize` raises.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any

from efficientdet.errors import UserError

NAMES = ("tensorflow", "jax")
_GPU_DEVICES = ("nvidiactl", "nvidia0", "nvmap", "dxg", "kfd")  # NVIDIA, NVIDIA's embedded boards, WSL, AMD


def choose(wanted: str | None = None) -> str:
    """Sets Keras's backend and imports Keras: `wanted`, else KERAS_BACKEND, else keras.json, else TensorFlow, else JAX.

    Returns:
        Name of the backend.

    Raises:
        UserError: the backend is unknown or not installed, or Keras already uses another one.
    """
    name = prefer(wanted)
    with start_up_lines_hidden():
        importlib.import_module("keras")
    return name


def prefer(wanted: str | None = None) -> str:
    """Like `choose`, but without importing Keras, which takes seconds and isn't needed to run an export."""
    name = wanted or os.environ.get("KERAS_BACKEND") or _configured() or _installed()
    if name not in NAMES:
        raise UserError(f"`backend` is `{name}`; choose from {', '.join(NAMES)}.")
    if importlib.util.find_spec(name) is None:
        extra = "jax-gpu" if name == "jax" else name
        raise UserError(
            f"`backend` is `{name}`, which is not installed; run `pip install 'efficientdet-keras[{extra}]'`."
        )
    if "keras" in sys.modules and (running := sys.modules["keras"].backend.backend()) != name:
        raise UserError(f"`backend` is `{name}`, but Keras already uses `{running}` in this process.")
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return name


@contextlib.contextmanager
def start_up_lines_hidden() -> Iterator[None]:
    """Hides what TensorFlow prints while it is imported (which CPU instructions it found).

    TF_CPP_MIN_LOG_LEVEL does not affect lines printed before its logging is set up (TensorFlow 2.21). If an import
    fails, everything is shown.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        original = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(original, 2)
            captured.seek(0)
            sys.stderr.write(captured.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


def _configured() -> str | None:
    """Reads the backend from keras.json, as Keras does."""
    home = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
    try:
        name = json.loads((home / "keras.json").read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        return None
    # Keras writes this file at its first import; a backend that is not installed or not supported is ignored.
    return name if name in NAMES and importlib.util.find_spec(name) else None


def _installed() -> str:
    for name in NAMES:
        if importlib.util.find_spec(name) is not None:
            return name
    raise UserError("Neither TensorFlow nor JAX is installed; run `pip install 'efficientdet-keras[tensorflow]'`.")


def unused_gpu_build() -> str | None:
    """Returns a hint if only the other backend is installed with GPU support; does not query devices."""
    builds = {"jax": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "tensorflow": ("nvidia.cudnn",)}
    has_gpu = {name: any(_is_installed(module) for module in modules) for name, modules in builds.items()}
    other = "jax" if running() == "tensorflow" else "tensorflow"
    # JAX's plugin installs cuDNN too, which then says nothing about TensorFlow.
    if other == "jax" and has_gpu["jax"]:
        return "JAX is installed with GPU support but not used; pass `--backend jax` to use it."
    if other == "tensorflow" and has_gpu["tensorflow"] and not has_gpu["jax"]:
        return "TensorFlow may be installed with GPU support but is not used; pass `--backend tensorflow` to use it."
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def require_tensorflow(purpose: str) -> None:
    """Raises a UserError if TensorFlow is not installed, which `purpose` needs on every backend."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{purpose} needs TensorFlow; run `pip install 'efficientdet-keras[tensorflow]'`.")


def running() -> str:
    """Returns the name of the backend that Keras uses."""
    import keras

    return keras.backend.backend()


def use_precision(precision: str) -> str:
    """Sets how float32 numbers are multiplied in the whole process.

    On GPUs both backends would otherwise use TF32, which keeps 10 mantissa bits, even for float32.

    Args:
        precision: float32, tf32, mixed_float16 or mixed_bfloat16.

    Returns:
        Name of the Keras dtype policy.
    """
    is_exact = precision == "float32"
    if running() == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest" if is_exact else "tensorfloat32")
    else:
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(not is_exact)
    return "float32" if precision == "tf32" else precision


def use_determinism() -> None:
    """Makes all operations in the process bit-reproducible on the same machine; slower.

    This cannot be undone. JAX reads the setting when it starts its first device, so call this before; on a CPU JAX is
    always deterministic.
    """
    if running() == "jax":
        flag = "--xla_gpu_deterministic_ops=true"
        if flag not in (flags := os.environ.get("XLA_FLAGS", "")):
            os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def gpus() -> int:
    """Counts the GPUs that the backend sees; with JAX, those of all processes. Starts the backend if necessary."""
    if running() == "jax":
        import jax

        return len(jax.devices()) if jax.default_backend() == "gpu" else 0
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def gpu_names() -> list[str]:
    """Lists the names of this process's GPUs that the running backend sees."""
    if running() == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(device).get("device_name", device.name) for device in found]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of the installed ones among the packages."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def may_have_gpu() -> bool:
    """Returns whether there may be a GPU, judging by device files in /dev; asking TensorFlow would take seconds.

    Always True on systems other than Linux.
    """
    return sys.platform != "linux" or any(pathlib.Path("/dev", name).exists() for name in _GPU_DEVICES)


def is_tensorflow_on_cpu() -> bool:
    """Returns whether Keras uses TensorFlow and TensorFlow has no GPU."""
    return running() == "tensorflow" and not gpus()


def wait_for(arrays: Any) -> None:
    """Waits until nested arrays of the running backend are computed, without moving them."""
    if running() == "jax":
        import jax

        jax.block_until_ready(arrays)
        return
    import tensorflow as tf

    tf.test.experimental.sync_devices()


def compile_function(function: Callable[..., Any], *, xla: str = "auto", donate: bool = False) -> Callable[..., Any]:
    """Compiles a pure function of nested arrays.

    Args:
        function: takes and returns dicts, lists and arrays of the running backend.
        xla: auto, on or off; TensorFlow only. auto means on with a GPU: on a CPU, XLA's convolutions are several times
            slower than TensorFlow's own.
        donate: whether the memory of the first argument may be reused for the result (JAX).
    """
    if running() == "jax":
        import jax

        return jax.jit(function, donate_argnums=(0,) if donate else ())
    import tensorflow as tf

    jit = xla == "on" or (xla == "auto" and gpus() > 0)
    return tf.function(function, jit_compile=jit, autograph=False, reduce_retracing=False)
