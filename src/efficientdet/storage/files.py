"""Writes files atomically: to a temporary file, then renamed; with locks between processes and checks of disk space."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efficientdet.errors import UserError

PARTIAL = ".partial-"
"""Prefix of temporary files; a leftover one comes from a killed process."""


def sha256(path: Path) -> str:
    """Computes the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a temporary file next to `path`, syncs it to disk, and renames it.

    Args:
        path: the file; its folder is created if it is missing.
        write: writes the file at the path it is given, which has the suffix of `path`.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporary = None
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=path.suffix, dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            write(temporary)
            temporary.chmod(0o644)  # mkstemp creates files that only their owner can read
            put_in_place(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Yields an empty folder next to `folder` that replaces it if the block succeeds, and is removed otherwise.

    An existing folder is removed only after the new one is in place; if the block fails, it stays as it was.

    Args:
        folder: target folder; its parents are created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{folder.name}-", dir=folder.parent))
    earlier = partial.with_name(partial.name + "-earlier")
    try:
        partial.chmod(0o755)  # mkdtemp creates folders that only their owner can read
        yield partial
        if folder.exists():
            folder.rename(earlier)
        partial.rename(folder)
    finally:
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Raises a UserError if a file cannot be written, before hours of work for it; leaves nothing behind.

    Args:
        path: the file; if its folder is missing, its nearest existing parent is checked.
    """
    with explained(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = path.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError while the block writes into a one-line error that names `path`.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"`{path}` cannot be written: {error.strerror or error}.") from error


def put_in_place(temporary: Path, path: Path) -> None:
    """Syncs a finished file to disk and renames it."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power loss, if the system supports it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, values: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_aside(path, write)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Locks `path` for one thread of one process while the block runs; others wait.

    Args:
        path: the file or folder to lock; its parent folder must exist.
    """
    import filelock

    lock = path.with_name(f".{path.name}.lock")
    with filelock.FileLock(lock):
        try:
            yield
        finally:
            if os.name == "posix":  # on Windows filelock removes it
                lock.unlink(missing_ok=True)  # a waiting process notices that it is gone and creates another


def is_filled(folder: Path) -> bool:
    """Returns whether a folder exists and is not empty."""
    return folder.is_dir() and any(folder.iterdir())


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raises a UserError if the disk of a folder has too little free space.

    Args:
        folder: an existing folder.
        num_bytes: number of bytes to write.
        what: what needs the space, such as the name of a file.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"`{folder}` has {size_text(free)} free, but {what} needs {size_text(num_bytes)}; "
            "free some space, or use a folder on another disk."
        )


def size_text(num_bytes: int) -> str:
    """Formats a number of bytes: 253.0 MB, 19.3 GB."""
    if num_bytes < 10**6:
        return f"{num_bytes:,} bytes"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 10**9 else f"{num_bytes / 1e9:.1f} GB"
