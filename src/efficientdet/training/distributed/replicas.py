"""One step on several devices: each computes a part of the batch, and sums run over all devices.

There are three forms of the same step; tests check that each equals one device on the whole batch:

- one device: nothing to sum.
- JAX, any devices and processes: the batch is sharded over the devices, the state is replicated. With batch
  normalization over the whole batch, the compiler turns every sum over the batch into one over devices. With statistics
  per replica, each device runs the step on its own (`shard_map`), and sums are explicit.
- TensorFlow, the GPUs of one machine: `MirroredStrategy`, explicit sums, without XLA because its collectives don't work
  inside it (keras#20763).
"""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops, tree

from efficientdet import backend
from efficientdet.config import Depthwise, ModelConfig, TrainingConfig
from efficientdet.errors import UserError
from efficientdet.kernels import choice
from efficientdet.training.distributed import engine, packing, processes


class Replicas(abc.ABC):
    """The devices of a run."""

    count: int
    """Number of devices of all processes."""
    packing = packing.Packing()
    """How the state is stored on them."""

    def kernels(self, depthwise: Depthwise = "auto") -> choice.Kernels:
        """Chooses the kernels of a network trained on these devices."""
        return choice.choose(depthwise, devices=self.count)

    def keep_state_of(self, model: Any) -> None:
        """Chooses how to store the state of a network whose frozen parts are known: separate arrays by default."""
        self.packing = packing.Packing()

    @abc.abstractmethod
    def sum(self, values: Any) -> Any:
        """Sums nested float32 arrays over the replicas, inside the step."""

    @abc.abstractmethod
    def mean(self, values: list[Any]) -> list[Any]:
        """Averages float arrays over the replicas, inside the step; other arrays are equal everywhere."""

    def split(self, rows: Any, num_parts: int) -> Any:
        """Splits the rows of a step into parts, inside the step: [B, ...] -> [num_parts, B / num_parts, ...]."""
        return tree.map_structure(lambda array: _cut(array, num_parts), rows)

    def fold(self, function: Callable[[Any, Any], Any], first: Any, parts: Any, count: int) -> Any:
        """Folds over parts one by one, inside the step: carry <- function(carry, part)."""
        return engine.fold(function, first, parts, count)

    @abc.abstractmethod
    def place_state(self, state: Any) -> Any:
        """Copies NumPy arrays to every device."""

    @abc.abstractmethod
    def place_batch(self, batch: Any) -> Any:
        """Distributes this process's rows of a batch over its devices."""

    def read_state(self, state: Any) -> Any:
        """Returns the state, or part of it, from one device of this process, with one array per variable."""
        return self.packing.unpack(self.first(state))

    @abc.abstractmethod
    def first(self, values: Any) -> Any:
        """Returns nested arrays from one device of this process."""

    def compile(self, step: Callable[..., Any], *, xla: str) -> Callable[..., Any]:
        """Compiles the step (state, batch) -> (state, logs).

        If a batch has `is_asked_to_end`, bool[B], set by each process, the logs have `asked_to_end`, the number of True
        values: the sums of a step are the one point where all processes agree.
        """

        def counting(state: Any, batch: Any) -> tuple[Any, Any]:
            state, logs = step(state, batch)
            if "is_asked_to_end" in batch:
                asked = self.sum(ops.sum(ops.cast(batch["is_asked_to_end"], "float32")))
                logs = {**logs, "asked_to_end": asked}
            return state, logs

        return self._compile(counting, xla=xla)

    @abc.abstractmethod
    def _compile(self, step: Callable[..., Any], *, xla: str) -> Callable[..., Any]:
        """Compiles a step for these devices."""


def make_replicas(training: TrainingConfig) -> Replicas:
    """Chooses the devices of a run.

    Args:
        training: `devices`, `batch_size`, `accumulate_steps`, `batch_norm`.

    Raises:
        UserError: there are fewer devices than requested, or the batch size is not divisible by their number.
    """
    devices = _devices(training.devices)
    total = len(devices)
    if training.batch_size % max(total, processes.count()):
        raise UserError(
            f"`training.batch_size` is {training.batch_size}, which is not divisible by {total} devices; use a "
            f"multiple of {total}, or fewer devices (`--training.devices`)."
        )
    if training.batch_size // total % training.accumulate_steps:
        raise UserError(
            f"`training.accumulate_steps` is {training.accumulate_steps}; it must evenly divide the "
            f"{training.batch_size // total} images per device of each batch."
        )
    if total == 1:
        return OneDevice()
    if backend.running() == "jax":
        return JaxReplicas(devices, is_local=training.batch_norm == "per_replica")
    return MirroredReplicas(devices, is_local=training.batch_norm == "per_replica")


def lone_values(model: ModelConfig, training: TrainingConfig, count: int) -> str | None:
    """Warns if batch statistics come from a single value, whose variance is 0, and so are useless at inference.

    Args:
        model: `image_size`, `max_level`.
        training: `batch_size`, `accumulate_steps`, `batch_norm`.
        count: number of devices.
    """
    images = training.batch_size // training.accumulate_steps
    images //= count if training.batch_norm == "per_replica" else 1
    if images > 1 or max(model.image_size) > 2**model.max_level:
        return None
    height, width = model.image_size
    return (
        f"at {height} x {width} px the coarsest level has a single cell, and its batch statistics come from a single "
        "image, so evaluation cannot use them; train on more images at a time or on larger images"
    )


def _devices(wanted: int) -> list[Any]:
    """Lists the devices to use: JAX: those of all processes; TensorFlow: GPUs, or one CPU unless more are requested."""
    if backend.running() == "jax":
        import jax

        found = list(jax.devices())
        if processes.count() > 1:
            if wanted not in (0, len(found)):
                raise UserError(
                    f"`training.devices` is {wanted}, but several processes always use all of their devices "
                    f"({len(found)}); leave it unset."
                )
            return found
    else:
        import tensorflow as tf

        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if wanted == 0 and found[0].device_type == "CPU":
            return found[:1]
    if wanted > len(found):
        raise UserError(f"`training.devices` is {wanted}, but {backend.running()} finds only {len(found)} here.")
    return found[: wanted or len(found)]


def _cut(array: Any, num_parts: int) -> Any:
    return ops.reshape(array, (num_parts, array.shape[0] // num_parts, *array.shape[1:]))


class OneDevice(Replicas):
    """A single device."""

    count = 1

    def __init__(self, kept: packing.Packing | None = None):
        """Takes the packing of the state; None keeps arrays separate."""
        self.packing = kept or packing.Packing()

    def keep_state_of(self, model: Any) -> None:
        """Joins arrays if each one adds overhead: with TensorFlow on a CPU."""
        if backend.is_tensorflow_on_cpu():
            self.packing = packing.joined(model)

    def sum(self, values: Any) -> Any:
        """Returns the values; there is nothing to sum."""
        return values

    def mean(self, values: list[Any]) -> list[Any]:
        """Returns the values; there is nothing to average."""
        return values

    def place_state(self, state: Any) -> Any:
        """Moves arrays to the device."""
        return engine.to_device(self.packing.pack(state))

    def place_batch(self, batch: Any) -> Any:
        """Moves arrays to the device."""
        return engine.to_device(batch)

    def first(self, values: Any) -> Any:
        """Returns the arrays unchanged."""
        return values

    def _compile(self, step: Callable[..., Any], *, xla: str) -> Callable[..., Any]:
        return backend.compile_function(step, xla=xla, donate=True)


class JaxReplicas(Replicas):
    """JAX devices of one or several processes (the mesh of `keras.distribution.DataParallel`)."""

    def __init__(self, devices: list[Any], *, is_local: bool):
        """Creates the mesh; `is_local`: batch statistics per replica."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        self.count = len(devices)
        self._is_local = is_local
        # Keras names this axis `batch` too, but its own mesh rejects a subset of the devices.
        self._mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
        self._whole = NamedSharding(self._mesh, PartitionSpec())
        self._parts = NamedSharding(self._mesh, PartitionSpec("batch"))

    def sum(self, values: Any) -> Any:
        """Sums explicitly if each replica runs on its own."""
        import jax

        return jax.lax.psum(values, "batch") if self._is_local else values

    def mean(self, values: list[Any]) -> list[Any]:
        """Averages floats explicitly if each replica runs on its own."""
        import jax

        if not self._is_local:
            return values
        return [jax.lax.pmean(value, "batch") if "float" in str(value.dtype) else value for value in values]

    def split(self, rows: Any, num_parts: int) -> Any:
        """Takes rows of every device for each part, so that no row moves between devices."""
        if self._is_local:
            return super().split(rows, num_parts)
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        sharding = NamedSharding(self._mesh, PartitionSpec(None, "batch"))

        def cut(array: Any) -> Any:
            size = array.shape[0] // num_parts
            by_device = ops.reshape(array, (self.count, num_parts, size // self.count, *array.shape[1:]))
            part = ops.reshape(ops.swapaxes(by_device, 0, 1), (num_parts, size, *array.shape[1:]))
            return jax.lax.with_sharding_constraint(part, sharding)

        return jax.tree.map(cut, rows)

    def place_state(self, state: Any) -> Any:
        """Puts the whole state on every device."""
        import jax

        return jax.tree.map(lambda value: jax.make_array_from_process_local_data(self._whole, np.asarray(value)), state)

    def place_batch(self, batch: Any) -> Any:
        """Distributes this process's rows over its devices."""
        import jax

        return jax.tree.map(lambda value: jax.make_array_from_process_local_data(self._parts, value), batch)

    def first(self, values: Any) -> Any:
        """Returns the copy on the first device of this process."""
        import jax

        return jax.tree.map(lambda value: value.addressable_data(0), values)

    def _compile(self, step: Callable[..., Any], *, xla: str) -> Callable[..., Any]:
        """Compiles for all devices; JAX always uses XLA."""
        import jax
        from jax.sharding import PartitionSpec

        if self._is_local:
            whole, parts = PartitionSpec(), PartitionSpec("batch")
            step = jax.shard_map(
                step, mesh=self._mesh, in_specs=(whole, parts), out_specs=(whole, whole), check_vma=False
            )
        return jax.jit(step, donate_argnums=(0,), out_shardings=self._whole)


class MirroredReplicas(Replicas):
    """TensorFlow's devices of one machine."""

    def __init__(self, devices: list[Any], *, is_local: bool):
        """Creates the strategy; `is_local`: batch statistics per replica."""
        import tensorflow as tf

        self.count = len(devices)
        self._is_local = is_local
        self._strategy = tf.distribute.MirroredStrategy([device.name for device in devices])

    def kernels(self, depthwise: Depthwise = "auto") -> choice.Kernels:
        """Chooses a normalization over all replicas, unless each has its own statistics."""
        return super().kernels(depthwise) if self._is_local else choice.synchronized()

    def sum(self, values: Any) -> Any:
        """Sums over the replicas."""
        return self._reduce("SUM", values)

    def mean(self, values: list[Any]) -> list[Any]:
        """Averages floats over the replicas."""
        floats = [value for value in values if value.dtype.is_floating]
        averaged = iter(self._reduce("MEAN", floats))
        return [next(averaged) if value.dtype.is_floating else value for value in values]

    def _reduce(self, how: str, values: Any) -> Any:
        import tensorflow as tf

        return tf.distribute.get_replica_context().all_reduce(how, values)

    def fold(self, function: Callable[[Any, Any], Any], first: Any, parts: Any, count: int) -> Any:
        """Folds over parts; with batch statistics over all devices the loop is unrolled.

        TensorFlow cannot sum over devices inside a loop. Each part waits for the previous one, so only one part needs
        memory at a time.
        """
        if self._is_local:
            return super().fold(function, first, parts, count)
        import tensorflow as tf

        carry = first
        for number in range(count):
            with tf.control_dependencies(tf.nest.flatten(carry)):
                part = tf.nest.map_structure(lambda array, number=number: tf.identity(array[number]), parts)
            carry = function(carry, part)
        return carry

    def place_state(self, state: Any) -> Any:
        """Returns tensors; the strategy passes the same ones to each replica."""
        return engine.to_device(state)

    def place_batch(self, batch: Any) -> Any:
        """Distributes the rows over the replicas."""
        import tensorflow as tf

        def part(context: Any) -> Any:
            share = len(next(iter(batch.values()))) // self.count
            start = context.replica_id_in_sync_group * share
            return {name: tf.convert_to_tensor(value[start : start + share]) for name, value in batch.items()}

        return self._strategy.experimental_distribute_values_from_function(part)

    def first(self, values: Any) -> Any:
        """Returns the values of the first replica."""
        import tensorflow as tf

        return tf.nest.map_structure(lambda value: self._strategy.experimental_local_results(value)[0], values)

    def _compile(self, step: Callable[..., Any], *, xla: str) -> Callable[..., Any]:
        """Compiles without XLA."""
        import tensorflow as tf

        if xla == "on":
            raise UserError(
                "`training.xla` is on, but TensorFlow cannot sum over several devices inside XLA; turn it off."
            )
        return tf.function(
            lambda state, batch: self._strategy.run(step, (state, batch)), autograph=False, reduce_retracing=False
        )
