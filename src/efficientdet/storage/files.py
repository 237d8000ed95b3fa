"""Writes files so that nobody ever sees half of one: aside, then renamed; by one process at a time; if they fit."""

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
"""How names begin of what is being written; one that is left is of a process that was killed."""


def sha256(path: Path) -> str:
    """Computes the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, makes it durable, and renames it.

    Args:
        path: the file; its folder is made if it is missing.
        write: fills the file it is given; the name ends as `path` does.

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
            temporary.chmod(0o644)  # mkstemp makes files that only their owner reads
            put_in_place(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder` that takes its place if the block succeeds, and vanishes if it does not.

    A folder that was there before goes when the new one has come; after a block that failed it is as it was.

    Args:
        folder: where the result belongs; the folders above it are made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{folder.name}-", dir=folder.parent))
    earlier = partial.with_name(partial.name + "-earlier")
    try:
        partial.chmod(0o755)  # mkdtemp makes folders that only their owner reads
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
    """Raises a UserError if a file cannot be written, before hours of work for it; nothing is left behind.

    Args:
        path: the file; where folders on the way are missing, the one that they would be made in is tried.
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
    """Turns what goes wrong while the block writes into a line that names `path`.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"`{path}` cannot be written: {error.strerror or error}.") from error


def put_in_place(temporary: Path, path: Path) -> None:
    """Makes a finished file durable and gives it its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power loss, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, values: Any) -> None:
    """Writes JSON, indented, aside and then renamed."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8, aside and then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes, aside and then renamed."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_aside(path, write)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Lets one process, and one thread of it, work on `path` while the block runs; others wait for it.

    Args:
        path: what is worked on; its folder exists.
    """
    import filelock

    lock = path.with_name(f".{path.name}.lock")
    with filelock.FileLock(lock):
        try:
            yield
        finally:
            if os.name == "posix":  # on Windows filelock removes it
                lock.unlink(missing_ok=True)  # whoever waits for it sees that it is gone and makes another


def is_filled(folder: Path) -> bool:
    """Says whether there is a folder with something in it."""
    return folder.is_dir() and any(folder.iterdir())


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raises a UserError if the disk of a folder has less room than something needs.

    Args:
        folder: exists.
        num_bytes: what will be written.
        what: what needs the room, such as the name of a file.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"`{folder}` has {size_text(free)} free, but {what} needs {size_text(num_bytes)}; "
            "make room, or name a folder on another disk."
        )


def size_text(num_bytes: int) -> str:
    """Writes a number of bytes for people: 253 MB, 19.3 GB."""
    if num_bytes < 10**6:
        return f"{num_bytes:,} bytes"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 10**9 else f"{num_bytes / 1e9:.1f} GB"
