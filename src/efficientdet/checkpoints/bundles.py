"""Reads TensorFlow checkpoints: variables by name (TensorFlow 1) or by position in an object graph (TensorFlow 2).

Only the files of variables are read, for a SavedModel too: its graph, which could do anything, is never loaded.

The index is a table of sorted keys in blocks (LevelDB's format) with one message per key. It is read and checked here
before TensorFlow sees it, because TensorFlow aborts the process on an invalid message and allocates memory for any
claimed shape. Here every tensor must lie inside its data file and have the size of its shape.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efficientdet.checkpoints.tensors import Tensor
from efficientdet.errors import UserError, first_line

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48  # bytes
_TRAILER = 5  # bytes after a block: its compression and its checksum
_MOST_BYTES = 100 * 2**20  # of the index; D7x with its optimizer needs 0.3 MB
_MOST_ENTRIES = 200_000
_LONGEST_KEY = 1000
_MOST_AXES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor in the data files."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    """The data file."""
    offset: int
    size: int
    """Bytes."""


def read_index(prefix: Path) -> dict[str, Entry]:
    """Reads the index of a checkpoint.

    Args:
        prefix: its path, without `.index`.

    Returns:
        Location of each tensor, by key.

    Raises:
        ValueError: the index is damaged, or does not match the data files.
        OSError: a file is missing.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import tensor_bundle_pb2

    path = prefix.with_name(f"{prefix.name}.index")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"its index has {path.stat().st_size} bytes")
    entries, sizes = {}, dict[Path, int]()
    try:
        table = _read_table(path.read_bytes())
        key, value = next(table, (b"nothing", b""))
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(value)
        if key or header.endianness != header.LITTLE or not 0 < header.num_shards < 100_000:
            raise ValueError("its index has an invalid header, or its numbers are not little-endian")
        for key, value in table:
            message = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            shard = f"{prefix.name}.data-{message.shard_id:05d}-of-{header.num_shards:05d}"
            entry = _read_entry(key.decode(), message, prefix.with_name(shard))
            if entry.path not in sizes:
                sizes[entry.path] = entry.path.stat().st_size
            if entry.offset + entry.size > sizes[entry.path]:
                raise ValueError(f"`{key.decode()}` extends beyond the end of {shard}")
            entries[key.decode()] = entry
    except (DecodeError, UnicodeDecodeError, IndexError) as error:
        raise ValueError("its index is damaged") from error
    return entries


def read_string(entry: Entry) -> bytes:
    """Reads a tensor of one string: its length, the checksum of the length, and the string.

    Raises:
        ValueError: the length does not match the tensor.
        OSError: the data file cannot be read.
    """
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        content = file.read(entry.size)
    length, begin = _varint(content, 0)
    if entry.shape or begin + 4 + length != len(content):
        raise ValueError("its string has the wrong length")
    return content[begin + 4 :]


def _read_entry(name: str, message: Any, path: Path) -> Entry:
    """Checks the index entry of a tensor."""
    import tensorflow as tf

    try:
        dtype = tf.dtypes.as_dtype(message.dtype)
    except TypeError as error:
        raise ValueError(f"`{name}` has an unknown type") from error
    shape = tuple(axis.size for axis in message.shape.dim)
    if message.shape.unknown_rank or len(shape) > _MOST_AXES or min((*shape, message.offset, message.size)) < 0:
        raise ValueError(f"`{name}` has an invalid shape")
    if message.slices:
        raise ValueError(f"`{name}` is partitioned, which is not supported")
    has_fixed_size = dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex
    if has_fixed_size and message.size != math.prod(shape) * dtype.size:
        raise ValueError(f"`{name}` has shape {shape} but {message.size} bytes")
    return Entry(dtype=dtype.name, shape=shape, path=path, offset=message.offset, size=message.size)


def _read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table, whose keys and blocks must be in order."""
    content, footer = content[:-_FOOTER], content[-_FOOTER:]
    if int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise ValueError("its index is truncated or not a table")
    _, place = _read_handle(footer, 0)  # a block that we don't need
    (offset, size), _ = _read_handle(footer, place)
    last, done, seen = None, 0, 0
    for _, handle in _read_block(content, offset, size):
        (offset, size), _ = _read_handle(handle, 0)
        if offset < done:
            raise ValueError("the blocks of its index are not in order")
        done = offset + size
        for key, value in _read_block(content, offset, size):
            seen += 1
            if seen > _MOST_ENTRIES or (last is not None and key <= last):
                raise ValueError("the keys of its index are not in order, or there are too many")
            last = key
            yield key, value


def _read_handle(content: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Reads the offset and size of a block; also returns the position after them."""
    offset, place = _varint(content, place)
    size, place = _varint(content, place)
    return (offset, size), place


def _read_block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a block; each key is stored without the prefix it shares with the previous one."""
    block = content[offset : offset + size]
    if len(content) < offset + size + _TRAILER or size < 4:
        raise ValueError("its index is truncated")
    if content[offset + size] != 0:
        raise ValueError("its index is compressed, which TensorFlow never does")
    end = size - 4 * (int.from_bytes(block[-4:], "little") + 1)  # followed by the positions of full keys
    key, place = b"", 0
    while place < end:
        shared, place = _varint(block, place)
        fresh, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or shared + fresh > _LONGEST_KEY or place + fresh + length > end:
            raise ValueError("its index is damaged")
        key = key[:shared] + block[place : place + fresh]
        yield key, block[place + fresh : place + fresh + length]
        place += fresh + length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Reads a number with 7 bits per byte; also returns the position after it."""
    number = 0
    for shift in range(0, 64, 7):
        number |= (content[place] & 127) << shift
        place += 1
        if content[place - 1] < 128:
            return number, place
    raise ValueError("its index is damaged")


AVERAGE_SUFFIX = "/ExponentialMovingAverage"
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"

# Edges from a network to its variables; Keras has many others to the same objects.
_EDGES = re.compile(
    r"\d+|backbone|_stem|_conv_stem|_bn\d?|_blocks|_(expand|depthwise|project)_conv|_se|_se_reduce|_se_expand|"
    r"_head|_conv_head|_fc|"
    r"layer_with_weights-\d+|resample_layers|conv2d|bn|fpn_cells|cells|fnodes|vars|op_after_combine|conv_op|"
    r"(class|box)_net|conv_ops|bns|classes|boxes|kernel|bias|gamma|beta|moving_mean|moving_variance|"
    r"(depthwise|pointwise)_kernel"
)
_DEEPEST = 10
_MOST_PATHS = 200_000
_DETECTOR_EDGES = {"backbone", "fpn_cells", "class_net", "box_net"}


def find_prefix(path: Path) -> Path | None:
    """Finds the checkpoint at a path: a prefix, an index file, the folder of a checkpoint, or a SavedModel.

    Returns:
        The path without `.index`, or None if there is no TensorFlow checkpoint.
    """
    if path.suffix == ".index" and path.is_file():
        return path.with_suffix("")
    if path.name and path.with_name(f"{path.name}.index").is_file():
        return path
    if re.fullmatch(r".+\.data-\d{5}-of-\d{5}", path.name):
        return find_prefix(path.with_suffix(""))
    if path.is_dir():
        if (path / "variables" / "variables.index").is_file():
            return path / "variables" / "variables"
        found = sorted(path.glob("*.index"))
        if len(found) > 1 and (latest := _latest(path)) is not None:
            return latest
        if len(found) > 1:
            names = ", ".join(file.stem for file in found[:5])
            raise UserError(f"`{path}` has {len(found)} checkpoints ({names}); pass the path of one of them.")
        if found:
            return found[0].with_suffix("")
        inside = [child for child in sorted(path.iterdir()) if child.is_dir()]
        if len(inside) == 1:  # the top-level folder of an archive
            return find_prefix(inside[0])
    return None


def _latest(folder: Path) -> Path | None:
    """Reads from TensorFlow's `checkpoint` file which checkpoint of a folder is the latest."""
    try:
        text = (folder / "checkpoint").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    match = re.search(r'^model_checkpoint_path: "([^"/\\]+)"', text, re.MULTILINE)
    if match is None or not (folder / f"{match[1]}.index").is_file():
        return None
    return folder / match[1]


def read_variables(prefix: Path) -> dict[str, Tensor]:
    """Describes all tensors of a checkpoint, by their keys in the file.

    Raises:
        UserError: it is damaged.
    """
    import tensorflow as tf

    try:
        entries = read_index(prefix)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"`{prefix}` is not a complete TensorFlow checkpoint: {reason}.") from error
    reader = functools.cache(lambda: tf.train.load_checkpoint(str(prefix)))
    return {
        key: Tensor(
            key=key, shape=entry.shape, dtype=entry.dtype, read=functools.partial(_read, reader, prefix, key, entry)
        )
        for key, entry in entries.items()
    }


def _read(reader: Callable[[], Any], prefix: Path, key: str, entry: Entry) -> Any:
    """Reads a tensor. TensorFlow verifies its checksum, but allocates any claimed size for a string."""
    import tensorflow as tf

    try:
        return read_string(entry) if entry.dtype == "string" else reader().get_tensor(key)
    except (tf.errors.OpError, OSError, ValueError, RuntimeError, LookupError) as error:
        raise UserError(f"`{prefix}` is damaged at `{key}`: {first_line(error)}.") from error


class ObjectGraph:
    """The object graph of a TensorFlow 2 checkpoint."""

    def __init__(self, prefix: Path, tensors: dict[str, Tensor]):
        """Reads the graph, which is stored as a tensor of the checkpoint."""
        from google.protobuf.message import DecodeError
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        try:
            graph.ParseFromString(tensors[_GRAPH_KEY].read())
        except (DecodeError, TypeError) as error:
            raise UserError(f"`{prefix}` has a damaged object graph; the checkpoint cannot be read.") from error
        self._nodes = graph.nodes
        self._children = [{c.local_name: c.node_id for c in node.children} for node in graph.nodes]
        if any(not 0 <= number < len(self._nodes) for children in self._children for number in children.values()):
            raise UserError(f"`{prefix}` has a damaged object graph; the checkpoint cannot be read.")
        self._tensors = tensors
        # Slot variables belong to an optimizer and are listed there.
        self._averages = {
            slot.original_variable_node_id: slot.slot_variable_node_id
            for node in graph.nodes
            for slot in node.slot_variables
            if slot.slot_name == "average" and 0 <= slot.slot_variable_node_id < len(self._nodes)
        }

    def network(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Finds the network in the graph and lists its tensors by path.

        Returns:
            The tensors, and the averages that an optimizer keeps of them.
        """
        root = next((n for n, children in enumerate(self._children) if children.keys() >= _DETECTOR_EDGES), None)
        if root is None:
            root = next((n for n, children in enumerate(self._children) if "layer_with_weights-0" in children), 0)
        tensors, averages = {}, {}
        for path, number in self._paths(root):
            if (tensor := self._tensor(number)) is not None:
                tensors[path] = tensor
            if (average := self._tensor(self._averages.get(number, -1))) is not None:
                averages[path] = average
        return tensors, averages

    def _paths(self, root: int) -> Iterator[tuple[str, int]]:
        """Yields every node below `root` along known edges, with its path."""
        pending, seen = [("", root, 0)], 0
        while pending and seen < _MOST_PATHS:
            path, number, depth = pending.pop()
            seen += 1
            yield path, number
            if depth < _DEEPEST:
                pending += [
                    (f"{path}/{name}" if path else name, child, depth + 1)
                    for name, child in self._children[number].items()
                    if _EDGES.fullmatch(name)
                ]

    def _tensor(self, number: int) -> Tensor | None:
        """Returns the value of a node, or None if the file has none."""
        if number < 0:
            return None
        for attribute in self._nodes[number].attributes:
            if attribute.name == "VARIABLE_VALUE":
                return self._tensors.get(attribute.checkpoint_key)
        return None


def is_object_based(tensors: dict[str, Tensor]) -> bool:
    """Returns whether a checkpoint was written by TensorFlow 2."""
    return _GRAPH_KEY in tensors
