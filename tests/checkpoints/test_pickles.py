"""PyTorch files whose storages are not what their pickle says: nothing beside a storage's own bytes is ever read."""

import pickle
import struct
import zipfile

import pytest

from efficientdet.checkpoints import pickles
from efficientdet.errors import UserError

_MANY = 10**6


def _text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def _tuple(*parts):
    return b"(" + b"".join(parts) + b"t"


def _number(number):
    return b"J" + struct.pack("<i", number)


def _tensor(claimed):
    """A vector of as many numbers as the storage `0` is claimed to have."""
    place = _tuple(_text("storage"), b"ctorch\nFloatStorage\n", _text("0"), _text("cpu"), _number(claimed)) + b"Q"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + _tuple(place, _number(0), _tuple(_number(claimed)), _tuple(_number(1)))
        + b"R"
    )


def _pickle(**claimed):
    """Named tensors, all in the storage `0`."""
    return b"\x80\x02}(" + b"".join(_text(name) + _tensor(count) for name, count in claimed.items()) + b"u."


def test_a_storage_that_two_tensors_claim_with_different_sizes_is_not_read_beyond_its_end(tmp_path):
    start = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    storage = pickle.dumps(["0"], protocol=2) + struct.pack("<qf", 1, 7.0)
    path = tmp_path / "legacy.pth"
    path.write_bytes(start + _pickle(small=1, large=_MANY) + storage)
    saved = pickles.read_pickled(path)
    assert saved["small"].read().tolist() == [7.0]
    with pytest.raises(UserError, match=r"legacy.pth` is not a complete PyTorch file: storage 0 has 4 bytes"):
        saved["large"].read()


def test_an_entry_that_is_shorter_than_the_archive_says_is_not_read_beyond_its_end(tmp_path):
    path = tmp_path / "short.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle(large=_MANY))
        archive.writestr("archive/data/0", struct.pack("<f", 7.0))
    content = bytearray(path.read_bytes())
    size_in_directory = content.rfind(b"PK\x01\x02") + 24
    content[size_in_directory : size_in_directory + 4] = struct.pack("<I", 4 * _MANY)
    path.write_bytes(content)
    saved = pickles.read_pickled(path)
    with pytest.raises(UserError, match=r"short.pth` is not a complete PyTorch file: storage 0 has 4 bytes"):
        saved["large"].read()
