"""The index of a TensorFlow checkpoint: read as TensorFlow reads it, refused where TensorFlow would end the process."""

import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2

from efficientdet.checkpoints import bundles, reading
from efficientdet.errors import UserError

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def test_an_index_is_read_as_tensorflow_reads_it(tmp_path, rng):
    """Enough names for several blocks, with beginnings in common; several types, and no numbers at all."""
    named = {f"net/{n}/kernel{'x' * (n % 7)}": rng.normal(size=(n % 5, 3)).astype(np.float32) for n in range(2000)}
    named |= {
        "step": np.int64(7),
        "half": np.ones((2, 3), np.float16),
        "text": np.array(b"hello"),
        "flag": np.array(True),
    }
    prefix = tmp_path / "model"
    tensors = [tf.constant(value) for value in named.values()]
    slices = [""] * len(named)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=list(named), shape_and_slices=slices, tensors=tensors)
    found = bundles.read_index(prefix)
    reader = tf.train.load_checkpoint(str(prefix))
    types = reader.get_variable_to_dtype_map()
    assert {key: list(entry.shape) for key, entry in found.items()} == reader.get_variable_to_shape_map()
    assert {key: entry.dtype for key, entry in found.items()} == {key: kind.name for key, kind in types.items()}
    assert bundles.read_string(found["text"]) == b"hello"
    for key in ("net/1004/kernelxxx", "half", "step"):
        entry = found[key]
        content = entry.path.read_bytes()[entry.offset : entry.offset + entry.size]
        np.testing.assert_array_equal(np.frombuffer(content, entry.dtype).reshape(entry.shape), named[key])


def _varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def _block(rows):
    body = b"".join(b"\0" + _varint(len(key)) + _varint(len(value)) + key + value for key, value in rows)
    return body + struct.pack("<II", 0, 1)


def _write(prefix, entries, *, endianness=0):
    """Writes an index of one block, without the checksums that TensorFlow would want, and 64 bytes of data.

    Args:
        prefix: of the checkpoint.
        entries: pairs of a key and a message or bytes.
        endianness: of the numbers, says the index.
    """
    header = tensor_bundle_pb2.BundleHeaderProto(num_shards=1, endianness=endianness)
    rows = [(b"", header), *entries]
    data = _block([(key, row if isinstance(row, bytes) else row.SerializeToString()) for key, row in rows])
    index = _block([(b"~", _varint(0) + _varint(len(data)))])
    footer = _varint(0) + _varint(0) + _varint(len(data) + 5) + _varint(len(index))
    magic = struct.pack("<Q", 0xDB4775248B80FB57)
    content = data + bytes(5) + index + bytes(5) + footer.ljust(40, b"\0") + magic
    pathlib.Path(f"{prefix}.index").write_bytes(content)
    pathlib.Path(f"{prefix}.data-00000-of-00001").write_bytes(b"\x7f" + bytes(63))


def _entry(shape, size=64, *, dtype=1, offset=0, shard=0, slices=0):
    message = tensor_bundle_pb2.BundleEntryProto(dtype=dtype, offset=offset, size=size, shard_id=shard)
    for side in shape:
        message.shape.dim.add(size=side)
    for _ in range(slices):
        message.slices.add().extent.add(start=0)
    return message


def test_the_tests_own_index_is_one(tmp_path):
    _write(tmp_path / "model", [(b"a", _entry((4, 4))), (b"b", _entry((2,), 8, offset=56))])
    found = bundles.read_index(tmp_path / "model")
    assert [(key, entry.shape, entry.offset) for key, entry in found.items()] == [("a", (4, 4), 0), ("b", (2,), 56)]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param(
            [(b"a", _entry((2**40,), 2**42))], "`a` extends beyond the end of model.data-0", id="beyond the data"
        ),
        pytest.param([(b"a", _entry((16,), offset=1))], "`a` extends beyond the end", id="a byte beyond the data"),
        pytest.param([(b"a", _entry((2**30, 2**10)))], r"shape \(1073741824, 1024\) but 64 bytes", id="no such data"),
        pytest.param([(b"a", _entry((-4, -4)))], "`a` has an invalid shape", id="negative sides"),
        pytest.param([(b"a", _entry((1,) * 99, 4))], "`a` has an invalid shape", id="99 axes"),
        pytest.param([(b"a", _entry((16,), offset=-64))], "`a` has an invalid shape", id="before the data"),
        pytest.param([(b"a", _entry((16,), dtype=273))], "`a` has an unknown type", id="unknown type"),
        pytest.param([(b"a", _entry((16,), shard=7))], "No such file or directory", id="a data file that is missing"),
        pytest.param([(b"a", _entry((16,), slices=1))], "is partitioned, which is not supported", id="slices"),
        pytest.param([(b"a", b"\xff\xff\xff")], "its index is damaged", id="no message"),
        pytest.param([(b"\xff\xfe", _entry((16,)))], "its index is damaged", id="a name that is not text"),
        pytest.param([(b"x" * 1001, _entry((16,)))], "its index is damaged", id="a name without end"),
        pytest.param([(b"b", _entry((16,))), (b"a", _entry((16,)))], "not in order", id="names out of order"),
        pytest.param([(b"a", _entry((16,))), (b"a", _entry((16,)))], "not in order", id="a name twice"),
        # A string says how long it is, here 127 bytes of 64, and TensorFlow takes the memory for it.
        pytest.param([(_GRAPH.encode(), _entry((), dtype=7))], "its string has the wrong length", id="a long graph"),
        pytest.param([(_GRAPH.encode(), _entry((2**40,), dtype=7))], "the wrong length", id="many graphs"),
    ],
)
def test_what_cannot_be_is_one_line(entries, expected, tmp_path):
    _write(tmp_path / "model", entries)
    with pytest.raises(UserError, match=expected) as error:
        reading.open_checkpoint(tmp_path / "model")
    assert str(tmp_path / "model") in str(error.value)


def test_numbers_the_other_way_round_are_refused(tmp_path):
    _write(tmp_path / "model", [(b"a", _entry((16,)))], endianness=1)
    with pytest.raises(UserError, match="not little-endian"):
        bundles.read_variables(tmp_path / "model")


def test_any_damaged_byte_is_an_error_or_changes_nothing_that_matters(tmp_path):
    """TensorFlow compares checksums; but they can be right, and the rest made to harm."""
    _write(tmp_path / "model", [(b"a", _entry((4, 4))), (b"b", _entry((2,), 8, offset=56))])
    path = tmp_path / "model.index"
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        for value in {0, 127, 255, whole[place] ^ 1} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                found = bundles.read_index(tmp_path / "model")
            except (ValueError, OSError):
                refused += 1
            else:
                assert all(entry.offset + entry.size <= 64 for entry in found.values())
    assert refused > len(whole)
