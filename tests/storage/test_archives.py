"""Archives of strangers: what is plain comes out whole, what is hostile or damaged leaves nothing behind."""

import gzip
import io
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest

from efficientdet.errors import UserError
from efficientdet.storage import archives

MB = 10**6
FILES = {"top/a.txt": b"first", "top/deep/b.bin": np.random.default_rng(0).bytes(3 * MB), "other/c.txt": b""}


def _zip(path, files, kind=0):
    """Writes a .zip; `kind` is the type of file (such as S_IFLNK) of its last entry."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, (name, content) in enumerate(files.items()):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (kind if index == len(files) - 1 else 0) << 16
            archive.writestr(entry, content)
    return path


def _tar(path, files, kind=tarfile.REGTYPE):
    """Writes a .tar.gz; `kind` is the type of its last entry."""
    with tarfile.open(path, "w:gz") as archive:
        for index, (name, content) in enumerate(files.items()):
            entry = tarfile.TarInfo(name)
            if kind != tarfile.REGTYPE and index == len(files) - 1:
                entry.type, entry.linkname = kind, content.decode()
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


WRITERS = {"zip": _zip, "tar.gz": _tar}
each_kind = pytest.mark.parametrize("kind", WRITERS)


def _write(kind, folder, files):
    return WRITERS[kind](folder / f"x.{kind}", files)


def _read(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _refuse(archive, **options):
    """Unpacks what must not be unpacked, sees that nothing is left, and returns what a person reads."""
    parent = archive.parent
    before = _read(parent)
    with pytest.raises(UserError) as caught:
        archives.unpack(archive, parent / "out", **{"max_bytes": 10 * MB} | options)
    assert _read(parent) == before
    assert [path.name for path in parent.iterdir() if path.is_dir() or path.is_symlink()] == []
    assert "\n" not in str(caught.value)
    assert f"`{archive}`" in str(caught.value)
    return str(caught.value)


@each_kind
def test_files_come_out_as_they_went_in(tmp_path, kind):
    archive = _write(kind, tmp_path, FILES)
    folder = archives.unpack(archive, tmp_path / "new" / "out", max_bytes=10 * MB)
    assert _read(folder) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@each_kind
def test_a_folder_of_the_archive_becomes_the_folder(tmp_path, kind):
    archive = _write(kind, tmp_path, FILES)
    archives.unpack(archive, tmp_path / "out", max_bytes=10 * MB, root="top", require=["deep/b.bin"])
    assert sorted(_read(tmp_path / "out")) == ["a.txt", "deep/b.bin"]


@each_kind
def test_an_archive_without_what_it_must_have_is_refused(tmp_path, kind):
    archive = _write(kind, tmp_path, FILES)
    assert "(folder `top`) does not contain `c.txt`" in _refuse(archive, root="top", require=["a.txt", "c.txt"])
    assert "(folder `to`) contains no files" in _refuse(archive, root="to")


@each_kind
def test_a_folder_that_is_there_is_left_alone(tmp_path, kind):
    (tmp_path / "out").mkdir()
    archive = _write(kind, tmp_path, FILES)
    archives.unpack(archive, tmp_path / "out", max_bytes=10 * MB)
    archive.write_bytes(b"no archive at all")
    archives.unpack(archive, tmp_path / "out", max_bytes=10 * MB)
    assert _read(tmp_path / "out") == FILES


@each_kind
@pytest.mark.parametrize(
    "name", ["/etc/evil", "../evil", "a/../../evil", "a/..", "C:/evil", "..\\evil", "a/b:stream", "a\nb", "//host/evil"]
)
def test_a_name_that_leads_out_is_refused(tmp_path, kind, name):
    archive = _write(kind, tmp_path, {"good.txt": b"good", name: b"evil"})
    assert "is not a safe name" in _refuse(archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_link_or_device_in_a_zip_is_refused(tmp_path, kind):
    archive = _zip(tmp_path / "x.zip", {"good.txt": b"good", "evil": b"../../etc"}, kind)
    assert "'evil', which is a link or a device, not a regular file" in _refuse(archive)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"],
    ids=["symbolic link", "hard link", "character device", "block device", "pipe", "unknown"],
)
@pytest.mark.parametrize("target", [b"good.txt", b"/etc/passwd"])
def test_a_link_or_device_in_a_tar_is_refused(tmp_path, kind, target):
    archive = _tar(tmp_path / "x.tar.gz", {"good.txt": b"good", "evil": target}, kind)
    assert "'evil', which is a link or a device, not a regular file" in _refuse(archive)


@each_kind
def test_a_bomb_is_refused(tmp_path, kind):
    archive = _write(kind, tmp_path, {"a": b"", "zeros": bytes(50 * MB)})
    assert archive.stat().st_size < MB
    assert "more than 10.0 MB" in _refuse(archive)
    assert "more than 10.0 MB" in _refuse(archive, root="elsewhere")
    assert "more than 1 files" in _refuse(archive, max_bytes=MB * 100, max_files=1)


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path):
    archive = _zip(tmp_path / "x.zip", {"zeros": bytes(50 * MB)})
    true, lie = (50 * MB).to_bytes(4, "little"), (100).to_bytes(4, "little")
    content = archive.read_bytes()
    assert content.count(true) == 2
    archive.write_bytes(content.replace(true, lie))
    assert "is damaged or truncated (Bad CRC-32" in _refuse(archive)


def test_a_header_without_end_is_refused(tmp_path):
    # tarfile takes an extended header into memory before anybody can ask how long it is.
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 9 * MB
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(gzip.compress(header.tobuf() + bytes(9 * MB)))
    assert "has an endless header" in _refuse(archive)


@pytest.mark.parametrize(
    "header",
    [{"GNU.sparse.map": "a,b"}, {"GNU.sparse.size": "x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}],
    ids=["no numbers", "no size", "half a map"],
)
def test_a_header_whose_numbers_are_none_is_damage(tmp_path, header):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("a")
        entry.size, entry.pax_headers = 3, header
        archive.addfile(entry, io.BytesIO(b"abc"))
    assert "is damaged or truncated" in _refuse(tmp_path / "x.tar.gz")


def test_padding_without_end_is_refused(tmp_path):
    archive = _tar(tmp_path / "x.tar.gz", {"a": b"1"})
    archive.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes()) + bytes(9 * MB)))
    assert "endless" in _refuse(archive)


def test_a_negative_size_is_damage(tmp_path):
    entry = tarfile.TarInfo("a")
    entry.size = -512
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    assert "is damaged or truncated" in _refuse(archive)


@each_kind
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9, 0.99999, "all but the last byte"])
def test_an_archive_that_is_cut_short_is_damage(tmp_path, kind, share):
    archive = _write(kind, tmp_path, FILES)
    content = archive.read_bytes()
    archive.write_bytes(content[:-1] if isinstance(share, str) else content[: int(len(content) * share)])
    assert "is damaged or truncated" in _refuse(archive)


@each_kind
def test_a_changed_byte_is_damage(tmp_path, kind):
    archive = _write(kind, tmp_path, FILES)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    assert "is damaged or truncated" in _refuse(archive)


@each_kind
def test_a_file_that_stands_twice_is_refused(tmp_path, kind):
    archive = _write(kind, tmp_path, {"a": b"1", "./a": b"2"})
    assert "File exists" in _refuse(archive)
    archive = _write(kind, tmp_path, {"a": b"1", "a/b": b"2"})
    assert "cannot be unpacked" in _refuse(archive)


def test_what_cannot_be_opened_is_said(tmp_path):
    archive = _zip(tmp_path / "x.zip", {"a": b"1"})
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    assert "password-protected" in _refuse(archive)
    content[6] &= 0xFE
    content[content.index(b"PK\1\2") + 8] &= 0xFE
    content[8] = content[content.index(b"PK\1\2") + 10] = 77  # a compression that nobody knows
    archive.write_bytes(content)
    assert "is damaged" in _refuse(archive)
    other = archive.rename(tmp_path / "x.rar")
    assert "is not a supported archive" in _refuse(other)
    assert "No such file" in _refuse(archive)


@each_kind
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_interruption_leaves_nothing_that_looks_complete(tmp_path, kind, name):
    archive = _write(kind, tmp_path, FILES)
    # The process is stopped when every file is written and none is in its place.
    program = (
        "import os, pathlib, signal, sys, time; from efficientdet.storage import archives; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); os.sync = lambda: time.sleep(60); "
        "archives.unpack(*map(pathlib.Path, sys.argv[1:]), max_bytes=10**7)"
    )
    words = [sys.executable, "-c", program, str(archive), str(tmp_path / "out")]
    last = tmp_path / "out.part" / "other" / "c.txt"
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 30
        while not last.exists() and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
    assert not (tmp_path / "out").exists()
    assert last.exists() == (name == "SIGKILL")
    archives.unpack(archive, tmp_path / "out", max_bytes=10 * MB)
    assert _read(tmp_path / "out") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", archive.name]
