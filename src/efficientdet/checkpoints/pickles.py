"""Reads PyTorch checkpoint files without PyTorch and without executing arbitrary code from a pickle.

A pickle is a program. Here it can call only our own functions, which rebuild tensors and a few harmless containers;
anything else is refused by name. Its operations are checked before it runs, because a single operation can make
Python's unpickler allocate any amount of memory. Tensors are described first and read later, from storages that must
lie inside the file, so no tensor can need more memory than the size of its file.

Supports both PyTorch formats: the zip archive (since 1.6) and the older sequence of pickles, which timm's and effdet's
files of 2020 use.
"""

import contextlib
import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet.checkpoints.tensors import Tensor
from efficientdet.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = pickle.dumps(_MAGIC, protocol=2)[:12]
"""First bytes of the older format."""

# The pickle of a D7x training checkpoint with averages and momenta has 0.7 MB and 210,000 operations. The largest
# object that a single operation can create is an empty set, 216 bytes.
_PICKLE_BYTES = 8 * 2**20
_MOST_OPERATIONS = 1_000_000
_MOST_ENTRIES = 200_000
_NOTES = ("PUT", "BINPUT", "LONG_BINPUT")  # operations that memoize a value under a number
_TYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_SIZES = {name: 2 if name == "bfloat16" else np.dtype(name).itemsize for name in _TYPES.values()}

# Objects that timm stores next to the weights and we don't need: they become empty objects.
_INERT = {
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
    "torch.device",
    "torch.Size",
}


class _Refused(pickle.UnpicklingError):
    """A pickle does something that weights don't need."""


class _Callable:
    """A name that a pickle may call; nothing can be set on it."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]):
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused(f"sets the attribute `{name}`")

    def __setstate__(self, state: Any) -> None:
        raise _Refused("changes a function")


class _Dict(dict):
    """An OrderedDict that drops attributes (PyTorch's `_metadata`)."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Inert:
    """A placeholder for objects that we don't need."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage:
    """A storage in the file; its position is known only after the whole file was scanned."""

    __slots__ = ("count", "key", "type")

    def __init__(self, key: str, type: str, count: int):
        self.key, self.type, self.count = key, type, count

    def __setstate__(self, state: Any) -> None:
        raise _Refused("changes a storage")


class _Rebuilt:
    """A tensor as the pickle describes it."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any):
        if not isinstance(storage, _Storage):
            raise _Refused("builds a tensor without a storage")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise _Refused("builds a tensor with an invalid shape")
        last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        count = int(np.prod(shape, dtype=object))
        if count > storage.count or (count and last >= storage.count):
            raise _Refused("builds a tensor beyond its storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("changes a tensor")


class _Unpickler(pickle.Unpickler):
    """Runs a pickle that can call only the harmless functions in this module."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the replacement for a name that a pickle may call."""
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return _Callable(_Dict)
        if full == "torch._utils._rebuild_tensor_v2":
            return _Callable(lambda storage, offset, shape, strides, *_: _Rebuilt(storage, offset, shape, strides))
        if full == "torch._utils._rebuild_parameter":
            return _Callable(lambda tensor, *_: tensor)
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if full in _INERT:
            return _Callable(lambda *_: _Inert())
        raise _Refused(f"asks to run `{full}`")

    def persistent_load(self, pid: Any) -> Any:
        """Records a storage: ("storage", type, key, device, numbers[, view])."""
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[1] in _SIZES):
            raise _Refused("refers to a storage of an unknown kind")
        if len(pid) == 6 and pid[5] is not None:
            raise _Refused("uses a view of a storage")
        if type(pid[4]) is not int or pid[4] < 0:
            raise _Refused("refers to a storage of an invalid size")
        return _Storage(str(pid[2]), pid[1], pid[4])


def read_pickled(path: Path) -> Any:
    """Reads a .pth file: the saved object, with a `Tensor` for each tensor and dicts preserved.

    Raises:
        UserError: the file is damaged, or its pickle needs more than tensors.
    """
    with _one_line(path):
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turns any exception caused by a damaged file into a one-line error."""
    try:
        yield
    except _Refused as error:
        raise UserError(
            f"`{path}` {error}, which is not allowed; nothing was executed. Expected a PyTorch file of tensors."
        ) from error
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, EOFError, KeyError, IndexError,
        ValueError, TypeError, AttributeError, NotImplementedError, OverflowError, RecursionError, MemoryError,
        UnicodeDecodeError, OSError,
    ) as error:  # fmt: skip
        reason = str(error) or type(error).__name__
        raise UserError(f"`{path}` is not a complete PyTorch file: {reason}.") from error


def _load(file: io.BytesIO) -> Any:
    """Runs a pickle, if it is within limits; leaves the file at its end."""
    begin = file.tell()
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if count >= _MOST_OPERATIONS:
            raise ValueError("its pickle is too long")
        # The unpickler's memo is as long as its largest number; valid pickles number entries consecutively.
        if operation.name in _NOTES and argument is not None and argument > count:
            raise ValueError("its pickle is damaged")
    end = file.tell()
    file.seek(begin)
    saved = _Unpickler(file, encoding="utf-8").load()
    file.seek(end)
    return saved


def _read_zip(path: Path) -> Any:
    """Reads the archive: NAME/data.pkl and NAME/data/KEY for each storage, stored without compression."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("data.pkl") and name.count("/") <= 1]
        if len(pickles) != 1:
            raise ValueError("it contains no data.pkl")
        prefix = pickles[0].removesuffix("data.pkl")
        for entry in entries.values():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed, which PyTorch never does")
        if entries[pickles[0]].file_size > _PICKLE_BYTES:
            raise ValueError(f"its pickle has {entries[pickles[0]].file_size} bytes")
        byte_order = entries.get(f"{prefix}byteorder")
        if byte_order is not None and (byte_order.file_size != 6 or archive.read(byte_order) != b"little"):
            raise ValueError("its numbers are not little-endian")
        saved = _load(io.BytesIO(archive.read(pickles[0])))

    def reader(storage: _Storage) -> Callable[[], bytes]:
        entry = entries[f"{prefix}data/{storage.key}"]
        if entry.file_size != storage.count * _SIZES[storage.type]:
            raise ValueError(f"storage {storage.key} has {entry.file_size} bytes")

        def read() -> bytes:
            with zipfile.ZipFile(path) as archive:
                return archive.read(entry)

        return read

    return _describe(path, saved, reader)


def _read_legacy(path: Path) -> Any:
    """Reads the older format: pickles of magic number, version, system, saved object and keys; then the storages."""
    size = path.stat().st_size
    with path.open("rb") as file:
        pickles = io.BytesIO(file.read(_PICKLE_BYTES))
        if _load(pickles) != _MAGIC or _load(pickles) != 1001:
            raise ValueError("it has an invalid header")
        _load(pickles)
        saved = _load(pickles)
        keys = _load(pickles)
        file.seek(pickles.tell())
        of_key = _storages(saved)
        places: dict[str, tuple[int, int]] = {}
        for key in keys:
            storage = of_key[str(key)]
            (count,) = struct.unpack("<q", file.read(8))
            length = count * _SIZES[storage.type]
            if count != storage.count or file.tell() + length > size:
                raise ValueError(f"storage {key} is truncated")
            places[str(key)] = (file.tell(), length)
            file.seek(length, 1)

    def reader(storage: _Storage) -> Callable[[], bytes]:
        start, length = places[storage.key]

        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)

        return read

    return _describe(path, saved, reader)


def _storages(saved: Any) -> dict[str, _Storage]:
    """Finds all storages of the saved object."""
    found: dict[str, _Storage] = {}
    _walk(saved, lambda rebuilt, _: found.setdefault(rebuilt.storage.key, rebuilt.storage))
    return found


def _describe(path: Path, saved: Any, reader: Callable[[_Storage], Callable[[], bytes]]) -> Any:
    """Replaces each tensor with a `Tensor`."""

    def tensor(rebuilt: _Rebuilt, name: str) -> Tensor:
        read_storage = reader(rebuilt.storage)

        def read() -> np.ndarray:
            with _one_line(path):
                return _values(rebuilt, read_storage())

        return Tensor(key=name, shape=rebuilt.shape, dtype=rebuilt.storage.type, read=read)

    return _walk(saved, tensor)


def _walk(saved: Any, on_tensor: Callable[[_Rebuilt, str], Any]) -> Any:
    """Copies nested dicts with string or integer keys; values other than tensors and plain values become None."""
    seen = 0

    def walk(value: Any, name: str) -> Any:
        nonlocal seen
        seen += 1
        if seen > _MOST_ENTRIES:  # a dict may contain another one many times, and so on
            raise ValueError("it has too many entries")
        if isinstance(value, _Rebuilt):
            return on_tensor(value, name)
        if isinstance(value, dict):
            pairs = [(str(key), inner) for key, inner in value.items() if isinstance(key, str | int)]
            return {key: walk(inner, f"{name}.{key}" if name else key) for key, inner in pairs}
        return value if isinstance(value, str | int | float | bool) else None

    return walk(saved, "")


def _values(rebuilt: _Rebuilt, data: bytes) -> np.ndarray:
    """Builds the array of a tensor from its storage's bytes."""
    storage = rebuilt.storage
    # Strides are applied without bounds checks. They were checked against the storage size that the pickle claims, but
    # the storage may be smaller, or an entry of the archive shorter than its directory says.
    if len(data) != storage.count * _SIZES[storage.type]:
        raise ValueError(f"storage {storage.key} has {len(data)} bytes")
    if storage.type == "bfloat16":
        numbers = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(data, np.dtype(storage.type).newbyteorder("<"))
    strides = [stride * numbers.itemsize for stride in rebuilt.strides]
    view = np.lib.stride_tricks.as_strided(numbers[rebuilt.offset :], rebuilt.shape, strides, writeable=False)
    return np.array(view)
