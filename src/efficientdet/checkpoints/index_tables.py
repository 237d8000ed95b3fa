"""The index of a TensorFlow checkpoint: its tensors, their types and shapes, and where they lie in the data files.

A table of sorted keys in blocks (LevelDB's format) with a message a key. It is read and checked here before TensorFlow
sees it: at a message that cannot be, TensorFlow ends the whole process, and it takes memory for any shape that is
claimed. Here every tensor lies inside its data file, and is as large as its shape says.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48  # bytes
_TRAILER = 5  # bytes behind a block: how it is compressed, and its checksum
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
        Key -> where its tensor is.

    Raises:
        ValueError: the index is damaged, or does not fit the data files.
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
            raise ValueError("its index does not begin as one, or its numbers are not little-endian")
        for key, value in table:
            message = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            shard = f"{prefix.name}.data-{message.shard_id:05d}-of-{header.num_shards:05d}"
            entry = _read_entry(key.decode(), message, prefix.with_name(shard))
            if entry.path not in sizes:
                sizes[entry.path] = entry.path.stat().st_size
            if entry.offset + entry.size > sizes[entry.path]:
                raise ValueError(f"`{key.decode()}` lies beyond the end of {shard}")
            entries[key.decode()] = entry
    except (DecodeError, UnicodeDecodeError, IndexError) as error:
        raise ValueError("its index is damaged") from error
    return entries


def read_string(entry: Entry) -> bytes:
    """Reads a tensor of one string: its length, the checksum of that, and the string.

    Raises:
        ValueError: the string is as long as the tensor is not.
        OSError: the data file cannot be read.
    """
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        content = file.read(entry.size)
    length, begin = _varint(content, 0)
    if entry.shape or begin + 4 + length != len(content):
        raise ValueError("its string has another length")
    return content[begin + 4 :]


def _read_entry(name: str, message: Any, path: Path) -> Entry:
    """Checks what the index says of a tensor."""
    import tensorflow as tf

    try:
        dtype = tf.dtypes.as_dtype(message.dtype)
    except TypeError as error:
        raise ValueError(f"`{name}` has an unknown type") from error
    shape = tuple(axis.size for axis in message.shape.dim)
    if message.shape.unknown_rank or len(shape) > _MOST_AXES or min((*shape, message.offset, message.size)) < 0:
        raise ValueError(f"`{name}` has a strange shape")
    if message.slices:
        raise ValueError(f"`{name}` is cut into slices, which is not read here")
    has_fixed_size = dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex
    if has_fixed_size and message.size != math.prod(shape) * dtype.size:
        raise ValueError(f"`{name}` has the shape {shape} and {message.size} bytes")
    return Entry(dtype=dtype.name, shape=shape, path=path, offset=message.offset, size=message.size)


def _read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Goes through the keys and values of a table, whose keys and blocks must come in order."""
    content, footer = content[:-_FOOTER], content[-_FOOTER:]
    if int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise ValueError("its index is cut short or no table")
    _, place = _read_handle(footer, 0)  # of a block with nothing for us
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
                raise ValueError("the keys of its index are not in order, or too many")
            last = key
            yield key, value


def _read_handle(content: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Reads where a block is: offset and size; also returns the place behind."""
    offset, place = _varint(content, place)
    size, place = _varint(content, place)
    return (offset, size), place


def _read_block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Goes through a block; a key repeats the beginning of the one before it."""
    block = content[offset : offset + size]
    if len(content) < offset + size + _TRAILER or size < 4:
        raise ValueError("its index is cut short")
    if content[offset + size] != 0:
        raise ValueError("its index is compressed, which TensorFlow never does")
    end = size - 4 * (int.from_bytes(block[-4:], "little") + 1)  # behind are the places where keys are written whole
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
    """Reads a number of 7 bits a byte; also returns the place behind."""
    number = 0
    for shift in range(0, 64, 7):
        number |= (content[place] & 127) << shift
        place += 1
        if content[place - 1] < 128:
            return number, place
    raise ValueError("its index is damaged")
