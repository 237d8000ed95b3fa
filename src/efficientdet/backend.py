"""Which of Keras's backends runs, and how it compiles a function.

Keras fixes its backend at its first import, so `choose` runs before it. Devices are not probed: asking JAX for its
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
_GPU_DEVICES = ("nvidiactl", "nvidia0", "nvmap", "dxg", "kfd")  # NVIDIA, its embedded boards, Windows's Linux, AMD


def choose(wanted: str | None = None) -> str:
    """Fixes Keras's backend and imports it: `wanted`, else KERAS_BACKEND, else keras.json, else TensorFlow, else JAX.

    Returns:
        The backend's name.

    Raises:
        UserError: the backend is unknown, not installed, or Keras already runs on another.
    """
    name = prefer(wanted)
    with start_up_lines_hidden():
        importlib.import_module("keras")
    return name


def prefer(wanted: str | None = None) -> str:
    """Does as `choose`, but leaves the import, which takes seconds, to whoever needs Keras; an export does not."""
    name = wanted or os.environ.get("KERAS_BACKEND") or _configured() or _installed()
    if name not in NAMES:
        raise UserError(f"`backend` is `{name}`; there are {' and '.join(NAMES)}.")
    if importlib.util.find_spec(name) is None:
        extra = "jax-gpu" if name == "jax" else name
        raise UserError(f"`backend` is `{name}`, which is not installed; `pip install 'efficientdet-keras[{extra}]'`.")
    if "keras" in sys.modules and (running := sys.modules["keras"].backend.backend()) != name:
        raise UserError(f"`backend` is `{name}`, but Keras already runs on `{running}` in this process.")
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return name


@contextlib.contextmanager
def start_up_lines_hidden() -> Iterator[None]:
    """Keeps what TensorFlow writes while it is imported (which CPU instructions it found) from hiding our lines.

    TF_CPP_MIN_LOG_LEVEL does not reach the lines before its logging is set up (TensorFlow 2.21). An import that fails
    shows everything.
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
    """Reads the backend from keras.json, as Keras itself would."""
    home = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
    try:
        name = json.loads((home / "keras.json").read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        return None
    # Keras writes this file itself at its first import; a backend that is not there or not ours does not count.
    return name if name in NAMES and importlib.util.find_spec(name) else None


def _installed() -> str:
    for name in NAMES:
        if importlib.util.find_spec(name) is not None:
            return name
    raise UserError("Neither TensorFlow nor JAX is installed; `pip install 'efficientdet-keras[tensorflow]'`.")


def unused_gpu_build() -> str | None:
    """Says so if only the backend that does not run is installed with GPU support; devices are not asked."""
    builds = {"jax": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "tensorflow": ("nvidia.cudnn",)}
    has_gpu = {name: any(_is_installed(module) for module in modules) for name, modules in builds.items()}
    other = "jax" if running() == "tensorflow" else "tensorflow"
    # JAX's plugin brings cuDNN too, which then says nothing about TensorFlow.
    if other == "jax" and has_gpu["jax"]:
        return "JAX is installed with GPU support and not used; `--backend jax` trains on it."
    if other == "tensorflow" and has_gpu["tensorflow"] and not has_gpu["jax"]:
        return "TensorFlow may be installed with GPU support and is not used; `--backend tensorflow` trains on it."
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def require_tensorflow(purpose: str) -> None:
    """Raises a UserError if TensorFlow is not installed, which `purpose` needs on every backend."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{purpose} needs TensorFlow; `pip install 'efficientdet-keras[tensorflow]'`.")


def running() -> str:
    """Returns the name of the backend that Keras runs on."""
    import keras

    return keras.backend.backend()


def use_precision(precision: str) -> str:
    """Sets how float32 numbers are multiplied, for the whole process.

    On GPUs both backends would otherwise use TF32, which keeps 10 bits of the mantissa, for float32 too.

    Args:
        precision: float32, tf32, mixed_float16 or mixed_bfloat16.

    Returns:
        Name of Keras's dtype policy.
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
    """Makes every operation give the same bits again on the same machine, for the whole process; slower.

    There is no way back. JAX reads its setting when it starts its first device, so this comes before; on a CPU it is
    deterministic by itself.
    """
    if running() == "jax":
        flag = "--xla_gpu_deterministic_ops=true"
        if flag not in (flags := os.environ.get("XLA_FLAGS", "")):
            os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
        return
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def gpus() -> int:
    """Counts the GPUs that the running backend sees; JAX's of all processes. Starts it, if nothing has yet."""
    if running() == "jax":
        import jax

        return len(jax.devices()) if jax.default_backend() == "gpu" else 0
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def gpu_names() -> list[str]:
    """Names the GPUs of this process that the running backend sees."""
    if running() == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(device).get("device_name", device.name) for device in found]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Reads the versions of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def may_have_gpu() -> bool:
    """Says whether a GPU may be there, by what drivers leave in /dev; TensorFlow, which knows, takes seconds to load.

    Where that says nothing, as on systems other than Linux, there may be one.
    """
    return sys.platform != "linux" or any(pathlib.Path("/dev", name).exists() for name in _GPU_DEVICES)


def is_tensorflow_on_cpu() -> bool:
    """Says whether Keras runs on TensorFlow, and TensorFlow on processors alone."""
    return running() == "tensorflow" and not gpus()


def wait_for(arrays: Any) -> None:
    """Waits until nested arrays of the running backend are computed; they stay where they are."""
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
        xla: auto, on or off; TensorFlow only. auto is on with a GPU: XLA's convolutions on a CPU are several
            times slower than TensorFlow's own.
        donate: the first argument's memory may be reused for the result (JAX).
    """
    if running() == "jax":
        import jax

        return jax.jit(function, donate_argnums=(0,) if donate else ())
    import tensorflow as tf

    jit = xla == "on" or (xla == "auto" and gpus() > 0)
    return tf.function(function, jit_compile=jit, autograph=False, reduce_retracing=False)
