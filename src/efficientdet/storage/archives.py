"""Unpacks untrusted .zip and .tar.gz archives safely, and completely or not at all.

An archive is assumed to be hostile. Only regular files inside the folder are unpacked: no links, devices, absolute
names or `..`. A small archive may expand without end (a bomb), so both reading and writing are bounded. Everything is
written to `<folder>.part`, which is renamed at the end; the next call removes what a killed process left of it.
"""

import contextlib
import dataclasses
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from efficientdet import progress
from efficientdet.errors import UserError
from efficientdet.storage import files

_CHUNK = 2**20  # bytes
# Names and padding between two files of a .tar.
_MAX_HEADER = 2**20  # bytes
# tarfile raises ValueError for an invalid number in an extended header.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, ValueError)
# Characters that are not safe in a file name: drives and streams (:), separators (\), control characters.
_NO_NAME = re.compile(r"[\x00-\x1f\x7f:\\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Limits:
    """Limits on what may be unpacked from an archive."""

    archive: Path
    max_bytes: int
    max_files: int

    def check(self, num_bytes: int, num_files: int) -> None:
        """Raises a UserError if a limit is exceeded."""
        if num_bytes > self.max_bytes:
            raise UserError(
                f"`{self.archive}` unpacks to more than {files.size_text(self.max_bytes)}; it is damaged, malicious, "
                "or not the expected archive."
            )
        if num_files > self.max_files:
            raise UserError(
                f"`{self.archive}` contains more than {self.max_files:,} files; it is not the expected archive."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Member:
    """A regular file in an archive."""

    name: str
    open: Callable[[], IO[bytes]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """An archive that is being read.

    Attributes:
        members: its regular files; each must be read before the next one.
        advance: call it with the number of bytes written.
    """

    members: Iterator[_Member]
    advance: Callable[[int], None]


def unpack(
    archive: Path,
    folder: Path,
    *,
    max_bytes: int,
    max_files: int = 1_000_000,
    root: str = "",
    require: Collection[str] = (),
    label: str | None = None,
) -> Path:
    """Unpacks an archive into a folder, unless the folder already exists and is not empty.

    Args:
        archive: a file with the suffix .zip, .tar.gz or .tgz.
        folder: target folder; appears only when it is complete.
        max_bytes: maximum total size of the unpacked files.
        max_files: maximum number of files and folders in the archive.
        root: folder in the archive that becomes `folder`; the rest is skipped. Empty means everything.
        require: names, relative to `root`, that the archive must have.
        label: label of the progress bar; None means the name of the archive.

    Returns:
        `folder`.

    Raises:
        UserError: the archive is damaged, unsafe, too large, or lacks a file; or the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    limits = _Limits(archive=archive, max_bytes=max_bytes, max_files=max_files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.one_at_a_time(folder):
            if files.is_filled(folder):
                return folder
            with _staged(folder) as part:
                _check_names(archive, _write_all(limits, part, root, label or archive.name), root, require)
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"`{archive}` is damaged or truncated ({error}); delete it and download it again.") from error
    except OSError as error:
        raise UserError(f"`{archive}` cannot be unpacked into {folder}: {error.strerror or error}.") from error
    return folder


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yields a folder that becomes `folder` if the block succeeds, and is removed otherwise."""
    part = folder.with_name(f"{folder.name}.part")
    if part.exists():  # left by a killed process; the lock keeps others out
        shutil.rmtree(part)
    try:
        part.mkdir()
        yield part
        if hasattr(os, "sync"):
            os.sync()  # once for all files: syncing a hundred thousand images one by one would take minutes
        if folder.is_dir():
            folder.rmdir()
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_names(archive: Path, names: set[str], root: str, require: Collection[str]) -> None:
    """Raises a UserError if the archive lacks a required file."""
    where = f"`{archive}`" + (f" (folder `{root}`)" if root else "")
    if not names:
        raise UserError(f"{where} contains no files; it is not the expected archive.")
    missing = sorted(set(require) - names)
    if missing:
        raise UserError(f"{where} does not contain `{missing[0]}`; it is not the expected archive.")


def _write_all(limits: _Limits, folder: Path, root: str, label: str) -> set[str]:
    """Unpacks an archive into an empty folder and returns the file names relative to `root`."""
    kind = limits.archive.name.lower()
    if kind.endswith(".zip"):
        open_archive = _open_zip
    elif kind.endswith((".tar.gz", ".tgz")):
        open_archive = _open_tar
    else:
        raise UserError(f"`{limits.archive}` is not a supported archive; expected .zip, .tar.gz or .tgz.")
    names: set[str] = set()
    num_bytes = 0
    with open_archive(limits, folder, f"Unpacking {label}") as opened:
        for member in opened.members:
            name = PurePosixPath(member.name)
            if not name.is_relative_to(root):
                continue
            name = name.relative_to(root)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, path.open("xb") as target:
                while chunk := source.read(_CHUNK):
                    num_bytes += len(chunk)
                    limits.check(num_bytes, len(names))
                    target.write(chunk)
                    opened.advance(len(chunk))
            names.add(str(name))
    return names


@contextlib.contextmanager
def _open_zip(limits: _Limits, folder: Path, label: str) -> Iterator[_Opened]:
    """Opens a .zip; the checksum of each file is checked after reading it."""
    with zipfile.ZipFile(limits.archive) as opened:
        entries = opened.infolist()
        total = sum(entry.file_size for entry in entries)
        limits.check(total, len(entries))
        for entry in entries:
            _check_name(limits.archive, entry.filename)
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(limits.archive, entry.filename, "is a link or a device, not a regular file")
            if entry.flag_bits & 0x1:
                raise UserError(f"`{limits.archive}` is password-protected; unpack it yourself.")
        files.check_space(folder.parent, total, f"the contents of {limits.archive.name}")
        plain = (entry for entry in entries if not entry.is_dir())
        with progress.track(label, total, unit="bytes") as tracker:
            members = (_Member(name=entry.filename, open=_opener(opened, entry)) for entry in plain)
            yield _Opened(members=members, advance=tracker.advance)


def _opener(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    def open_entry() -> IO[bytes]:
        try:
            return opened.open(entry)
        except NotImplementedError as error:  # a compression method that Python doesn't support
            raise zipfile.BadZipFile(f"{entry.filename}: {error}") from error

    return open_entry


@contextlib.contextmanager
def _open_tar(limits: _Limits, folder: Path, label: str) -> Iterator[_Opened]:
    """Opens a .tar.gz.

    Its unpacked size is not known in advance, so progress is measured in compressed bytes.
    """
    with (
        limits.archive.open("rb") as file,
        progress.track(label, limits.archive.stat().st_size, unit="bytes") as tracker,
        gzip.GzipFile(fileobj=file) as unzipped,
    ):
        stream = _BoundedStream(limits.archive, unzipped)
        shown = 0

        def advance(_: int) -> None:
            nonlocal shown
            tracker.advance(file.tell() - shown)
            shown = file.tell()

        with tarfile.open(fileobj=stream, mode="r|") as opened:  # type: ignore[call-overload]
            yield _Opened(members=_walk_tar(limits, folder, opened, stream), advance=advance)
        stream.allow(0)
        while stream.read(_CHUNK):  # skip the padding, so that gzip verifies its checksum
            pass
        advance(0)


class _BoundedStream:
    """Limits how much can be read: tarfile loads headers into memory, however large they claim to be."""

    def __init__(self, archive: Path, stream: gzip.GzipFile):
        self._archive, self._stream = archive, stream
        self._left = _MAX_HEADER

    def allow(self, num_bytes: int) -> None:
        """Allows reading the content of a file and the header of the next."""
        self._left = num_bytes + _MAX_HEADER

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes; raises a UserError beyond the limit."""
        chunk = self._stream.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise UserError(f"`{self._archive}` has an endless header; it is damaged or malicious.")
        return chunk


def _walk_tar(limits: _Limits, folder: Path, opened: tarfile.TarFile, stream: _BoundedStream) -> Iterator[_Member]:
    """Yields the regular files of a .tar in order."""
    num_bytes = 0
    for index, entry in enumerate(opened):
        if entry.size < 0:
            raise tarfile.ReadError(f"{entry.name}: {entry.size} bytes")
        num_bytes += entry.size
        limits.check(num_bytes, index + 1)
        stream.allow(entry.size)
        _check_name(limits.archive, entry.name)
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse():
            raise _unsafe(limits.archive, entry.name, "is a link or a device, not a regular file")
        try:
            tarfile.data_filter(entry, str(folder))  # Python's own checks, after ours
        except tarfile.FilterError as error:
            raise _unsafe(limits.archive, entry.name, "is rejected by Python's filter `data`") from error
        source = opened.extractfile(entry)
        assert source is not None, "a regular file has content"
        yield _Member(name=entry.name, open=lambda source=source: source)  # type: ignore[misc]


def _check_name(archive: Path, name: str) -> None:
    """Raises a UserError for a name that points, or on some system could point, outside the folder."""
    if not name or name.startswith("/") or ".." in name.split("/") or _NO_NAME.search(name):
        raise _unsafe(archive, name, "is not a safe name inside a folder")


def _unsafe(archive: Path, name: str, why: str) -> UserError:
    return UserError(f"`{archive}` contains {name[:200]!r}, which {why}; nothing was unpacked.")
