"""One step on several devices: each computes a part of the batch, sums go over all of them.

Three forms of the same step, equal by test to one device on the whole batch:

- one device: nothing to sum.
- JAX, any devices and processes: the batch lies in parts on the devices, the state on each of them whole. With batch
  normalisation over the whole batch the compiler makes every sum over the batch one over devices. With statistics per
  replica the step runs on each device for itself (`shard_map`), and what it sums is summed explicitly.
- TensorFlow, the GPUs of one machine: `MirroredStrategy`, explicit sums; no XLA around them, which its collectives do
  not survive (keras#20763).
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
    """Devices, of all processes."""
    packing = packing.Packing()
    """How the state is kept on them."""

    def kernels(self, depthwise: Depthwise = "auto") -> choice.Kernels:
        """Chooses what a network that is trained on them computes with."""
        return choice.choose(depthwise, devices=self.count)

    def keep_state_of(self, model: Any) -> None:
        """Decides how the state of a network, whose frozen parts are known, is kept: as it is, unless that is slow."""
        self.packing = packing.Packing()

    @abc.abstractmethod
    def sum(self, values: Any) -> Any:
        """Sums nested float32 arrays over the replicas, inside the step."""

    @abc.abstractmethod
    def mean(self, values: list[Any]) -> list[Any]:
        """Averages float arrays over the replicas, inside the step; others are equal everywhere."""

    def split(self, rows: Any, num_parts: int) -> Any:
        """Cuts the rows that a step sees into parts, inside it: [B, ...] -> [num_parts, B / num_parts, ...]."""
        return tree.map_structure(lambda array: _cut(array, num_parts), rows)

    def fold(self, function: Callable[[Any, Any], Any], first: Any, parts: Any, count: int) -> Any:
        """Goes through parts one after the other, inside the step: carry <- function(carry, part)."""
        return engine.fold(function, first, parts, count)

    @abc.abstractmethod
    def place_state(self, state: Any) -> Any:
        """Brings NumPy arrays to every device, whole."""

    @abc.abstractmethod
    def place_batch(self, batch: Any) -> Any:
        """Brings this process's rows of a batch to its devices, in parts."""

    def read_state(self, state: Any) -> Any:
        """Returns the state, or some of it, as one device of this process has it, with an array for each variable."""
        return self.packing.unpack(self.first(state))

    @abc.abstractmethod
    def first(self, values: Any) -> Any:
        """Returns nested arrays as one device of this process has them."""

    def compile(self, step: Callable[..., Any], *, xla: str) -> Callable[..., Any]:
        """Compiles the step (state, batch) -> (state, logs).

        Where a batch has `is_asked_to_end`: bool[B], each process's own, the logs have `asked_to_end`, their number:
        the sums of a step are the one moment at which all processes agree.
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
        """Compiles a step."""


def make_replicas(training: TrainingConfig) -> Replicas:
    """Chooses the devices of a run.

    Args:
        training: `devices`, `batch_size`, `accumulate_steps`, `batch_norm`.

    Raises:
        UserError: there are fewer devices than wanted, or the batch cannot be divided among them.
    """
    devices = _devices(training.devices)
    total = len(devices)
    if training.batch_size % max(total, processes.count()):
        raise UserError(
            f"`training.batch_size` is {training.batch_size}, which cannot be divided among {total} devices; give a "
            "multiple, or fewer with `training.devices`."
        )
    if training.batch_size // total % training.accumulate_steps:
        raise UserError(
            f"`training.accumulate_steps` is {training.accumulate_steps}, which does not divide the "
            f"{training.batch_size // total} images of a batch that each device has."
        )
    if total == 1:
        return OneDevice()
    if backend.running() == "jax":
        return JaxReplicas(devices, is_local=training.batch_norm == "per_replica")
    return MirroredReplicas(devices, is_local=training.batch_norm == "per_replica")


def lone_values(model: ModelConfig, training: TrainingConfig, count: int) -> str | None:
    """Says so if batch statistics come from a single value, whose variance is 0: then inference is another network.

    Args:
        model: `image_size`, `max_level`.
        training: `batch_size`, `accumulate_steps`, `batch_norm`.
        count: devices.
    """
    images = training.batch_size // training.accumulate_steps
    images //= count if training.batch_norm == "per_replica" else 1
    if images > 1 or max(model.image_size) > 2**model.max_level:
        return None
    height, width = model.image_size
    return (
        f"the coarsest level has one cell at {height} x {width} px, and its batch statistics are of one image: they "
        "are of no use in evaluation; train on more images at a time, or on larger ones"
    )


def _devices(wanted: int) -> list[Any]:
    """Lists the devices to use: of all processes on JAX; GPUs if there are any, else one CPU unless more are wanted."""
    if backend.running() == "jax":
        import jax

        found = list(jax.devices())
        if processes.count() > 1:
            if wanted not in (0, len(found)):
                raise UserError(f"`training.devices` is {wanted}; several processes use all of theirs ({len(found)}).")
            return found
    else:
        import tensorflow as tf

        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if wanted == 0 and found[0].device_type == "CPU":
            return found[:1]
    if wanted > len(found):
        raise UserError(f"`training.devices` is {wanted}; {backend.running()} has {len(found)} here.")
    return found[: wanted or len(found)]


def _cut(array: Any, num_parts: int) -> Any:
    return ops.reshape(array, (num_parts, array.shape[0] // num_parts, *array.shape[1:]))


class OneDevice(Replicas):
    """A single device."""

    count = 1

    def __init__(self, kept: packing.Packing | None = None):
        """Takes how the state is kept; none: as it is."""
        self.packing = kept or packing.Packing()

    def keep_state_of(self, model: Any) -> None:
        """Joins arrays where there is a cost to each: with TensorFlow on a processor."""
        if backend.is_tensorflow_on_cpu():
            self.packing = packing.joined(model)

    def sum(self, values: Any) -> Any:
        """Has nothing to sum."""
        return values

    def mean(self, values: list[Any]) -> list[Any]:
        """Has nothing to average."""
        return values

    def place_state(self, state: Any) -> Any:
        """Brings arrays to the device."""
        return engine.to_device(self.packing.pack(state))

    def place_batch(self, batch: Any) -> Any:
        """Brings arrays to the device."""
        return engine.to_device(batch)

    def first(self, values: Any) -> Any:
        """Returns them as they are."""
        return values

    def _compile(self, step: Callable[..., Any], *, xla: str) -> Callable[..., Any]:
        """Compiles."""
        return backend.compile_function(step, xla=xla, donate=True)


class JaxReplicas(Replicas):
    """JAX's devices, of one process or many (`keras.distribution.DataParallel`'s mesh)."""

    def __init__(self, devices: list[Any], *, is_local: bool):
        """Lays the mesh; `is_local`: batch statistics per replica."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        self.count = len(devices)
        self._is_local = is_local
        # Keras names this axis `batch` too; its own mesh would refuse a part of the devices.
        self._mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
        self._whole = NamedSharding(self._mesh, PartitionSpec())
        self._parts = NamedSharding(self._mesh, PartitionSpec("batch"))

    def sum(self, values: Any) -> Any:
        """Sums explicitly where each replica is for itself."""
        import jax

        return jax.lax.psum(values, "batch") if self._is_local else values

    def mean(self, values: list[Any]) -> list[Any]:
        """Averages floats explicitly where each replica is for itself."""
        import jax

        if not self._is_local:
            return values
        return [jax.lax.pmean(value, "batch") if "float" in str(value.dtype) else value for value in values]

    def split(self, rows: Any, num_parts: int) -> Any:
        """Makes each part of rows of every device, so that no row moves."""
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
        """Cuts this process's rows among its devices."""
        import jax

        return jax.tree.map(lambda value: jax.make_array_from_process_local_data(self._parts, value), batch)

    def first(self, values: Any) -> Any:
        """Returns the copy of the first device of this process."""
        import jax

        return jax.tree.map(lambda value: value.addressable_data(0), values)

    def _compile(self, step: Callable[..., Any], *, xla: str) -> Callable[..., Any]:
        """Compiles for all devices; XLA is JAX's only way."""
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
        """Makes the strategy; `is_local`: batch statistics per replica."""
        import tensorflow as tf

        self.count = len(devices)
        self._is_local = is_local
        self._strategy = tf.distribute.MirroredStrategy([device.name for device in devices])

    def kernels(self, depthwise: Depthwise = "auto") -> choice.Kernels:
        """Chooses a normalisation that goes over the replicas, unless each is for itself."""
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
        """Goes through parts; with batch statistics over the devices they are compiled one by one.

        TensorFlow has no sums over devices inside a loop. Each part waits for the one before, so that memory is that of
        one.
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
        """Returns tensors; the strategy gives each replica the same."""
        return engine.to_device(state)

    def place_batch(self, batch: Any) -> Any:
        """Cuts the rows among the replicas."""
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
            raise UserError("`training.xla` is on; TensorFlow's sums over several devices do not work inside XLA.")
        return tf.function(
            lambda state, batch: self._strategy.run(step, (state, batch)), autograph=False, reduce_retracing=False
        )
