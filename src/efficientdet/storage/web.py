"""Downloads files: resumable, checked, and visible only when complete.

Data is kept in `<name>.part`, and `<name>.part.json` records which version of the file it belongs to: the server's
strong ETag, else its Last-Modified. The next call requests the rest on the condition that the version is still the same
(If-Range, RFC 9110, section 13.1.5). If the file has changed, or the server doesn't support ranges, it sends everything
and the part starts over. The request starts at the last byte that is present, not after it, so a complete part that
only has to be renamed needs no special case.
"""

import dataclasses
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import platformdirs
import requests

from efficientdet import progress
from efficientdet.errors import UserError
from efficientdet.storage import connection, files
from efficientdet.storage.connection import BrokenError

_PART = ".part"
# After this many new bytes the failure count restarts: a long download may be interrupted often.
_FRUITFUL = 10**6
_LONGEST_PAUSE = 30.0  # s
# Some servers declare x.tar.gz as an encoding of x.tar; its bytes are still the ones we want.
_ENCODED_ANYWAY = ("gz", "bz2", "xz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A file to fetch; the fields are `fetch`'s arguments."""

    url: str
    path: Path
    sha256: str | None
    size: int | None
    max_bytes: int | None
    label: str
    timeout: float
    attempts: int

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}{_PART}")

    @property
    def notes(self) -> Path:
        return self.path.with_name(f"{self.path.name}{_PART}.json")

    @property
    def shown(self) -> str:
        return connection.without_secrets(self.url)

    def forget(self) -> None:
        """Removes the partial download."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Version:
    """Identifies a version of a file.

    Attributes:
        mark: strong ETag or Last-Modified.
        size: bytes; None if the server doesn't report it.
    """

    mark: str
    size: int | None


def cache_dir() -> Path:
    """Returns the folder for files that can be downloaded or created again."""
    return platformdirs.user_cache_path("efficientdet-keras")


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    max_bytes: int | None = None,
    label: str | None = None,
    timeout: float = 30.0,
    attempts: int = 8,
) -> Path:
    """Downloads a file, unless it already exists.

    An interrupted download is resumed. If several processes want the same file, one downloads it while the others wait.

    Args:
        url: http or https.
        path: target file; its folder is created.
        sha256: expected SHA-256, hexadecimal; None means it is not checked.
        size: expected size, bytes; None means what the server reports.
        max_bytes: maximum size; None means whatever fits on the disk.
        label: label of the progress bar; None means the name of the file.
        timeout: seconds without data, when connecting and later, after which the server counts as dead.
        attempts: maximum number of consecutive failures without new data.

    Returns:
        `path`.

    Raises:
        UserError: the server or the network fails, or the file is not the expected one.
    """
    connection.check_url(url)
    path = Path(path)
    wanted = _Wanted(
        url=url,
        path=path,
        sha256=sha256,
        size=size,
        max_bytes=max_bytes,
        label=label or path.name,
        timeout=timeout,
        attempts=attempts,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.one_at_a_time(path):
            if path.exists():
                _check_present(wanted)
            else:
                _receive_all(wanted)
                _check_received(wanted)
                files.put_in_place(wanted.part, path)
                wanted.notes.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"`{path}` cannot be written: {error.strerror or error}.") from error
    return path


def remote_size(url: str, *, timeout: float = 30.0) -> int | None:
    """Returns the size of a file on the web, bytes; None if the server doesn't report it.

    Raises:
        UserError: the server cannot be reached, or the file does not exist.
    """
    connection.check_url(url)
    try:
        with connection.ask(url, timeout=timeout, method="HEAD") as response:
            if response.status_code in (404, 410):
                raise connection.refusal(url, response)
            return _length(response) if response.status_code == 200 else None
    except BrokenError as error:
        raise UserError(f"`{connection.without_secrets(url)}` cannot be fetched: {error}; try again later.") from error


def fetch_within(url: str, path: Path, *, max_bytes: int, max_seconds: float, timeout: float = 10.0) -> None:
    """Downloads a file once, with limits on time and size; keeps nothing of an incomplete download.

    Args:
        url: http or https.
        path: target file; its folder must exist.
        max_bytes: maximum size.
        max_seconds: maximum total time, from the name lookup to the last byte.
        timeout: seconds without data after which the server counts as dead.

    Raises:
        UserError: the server or the network fails, or the file is too large or too slow.
    """
    connection.check_url(url)
    shown = connection.without_secrets(url)
    is_late = threading.Event()
    try:
        connection.within(max_seconds, lambda: _receive_once(url, path, max_bytes, timeout, is_late))
    except TimeoutError:
        is_late.set()
        raise UserError(f"`{shown}` did not arrive within {max_seconds:g} s; download it first.") from None
    except BrokenError as error:
        raise UserError(f"`{shown}` cannot be fetched: {error}; try again later.") from error
    except OSError as error:
        raise UserError(f"`{path}` cannot be written: {error.strerror or error}.") from error


def _receive_once(url: str, path: Path, max_bytes: int, timeout: float, is_late: threading.Event) -> None:
    """Writes a response to a file, and removes the file if that fails."""
    shown = connection.without_secrets(url)
    too_large = UserError(f"`{shown}` is larger than {files.size_text(max_bytes)}; download it first.")
    arrived = 0
    try:
        with connection.ask(url, timeout=timeout) as response, path.open("wb") as file:
            if response.status_code != 200:
                raise connection.refusal(url, response)
            total = _length(response)
            if (total or 0) > max_bytes:
                raise too_large
            for chunk in connection.chunks(response, url, timeout):
                arrived += len(chunk)
                if arrived > max_bytes:
                    raise too_large
                if is_late.is_set():
                    raise BrokenError("the time limit has passed", is_passing=False)
                file.write(chunk)
            if total is not None and arrived != total:
                raise BrokenError(f"the connection ended after {arrived:,} of {total:,} bytes", is_passing=True)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def arrived(path: Path) -> int:
    """Returns how many bytes of a file have been downloaded so far."""
    path = Path(path)
    return _size(path) or _size(path.with_name(f"{path.name}{_PART}"))


def _check_present(wanted: _Wanted) -> None:
    """Raises a UserError if the existing file is not the expected one."""
    wrong = _what_is_wrong(wanted, wanted.path) if wanted.path.is_file() else "is not a file"
    if wrong:
        raise UserError(f"`{wanted.path}` exists but {wrong}, so it is not {wanted.shown}; delete it and try again.")


def _check_received(wanted: _Wanted) -> None:
    """Removes a downloaded file that is not the expected one, and raises a UserError."""
    wrong = _what_is_wrong(wanted, wanted.part)
    if wrong:
        wanted.forget()
        raise UserError(
            f"`{wanted.shown}` was downloaded but {wrong}, so it was deleted. Try again; if that does not help, the "
            "file on the server is damaged or was replaced."
        )


def _what_is_wrong(wanted: _Wanted, path: Path) -> str:
    """Compares size and checksum with the expected ones; returns an empty string if both match."""
    size = path.stat().st_size
    if wanted.size is not None and size != wanted.size:
        return f"has {size:,} bytes instead of {wanted.size:,}"
    if wanted.sha256 is None:
        return ""
    found = files.sha256(path)
    return "" if found == wanted.sha256.lower() else f"has the SHA-256 {found} instead of {wanted.sha256}"


def _receive_all(wanted: _Wanted) -> None:
    """Downloads the file, retrying as long as it makes sense."""
    before = most = _size(wanted.part)
    failures = 0
    while True:
        try:
            return _receive(wanted)
        except BrokenError as error:
            size = _size(wanted.part)
            failures = 1 if size > most + _FRUITFUL else failures + 1
            most = max(most, size)
            if failures >= wanted.attempts or not (error.is_passing or most > before):
                kept = f"the first {files.size_text(size)} are kept; " if _known_version(wanted) else ""
                raise UserError(f"`{wanted.shown}` cannot be fetched: {error}; {kept}try again later.") from error
            progress.console.print(f"{wanted.label}: {error}; trying again", markup=False, soft_wrap=True)
            # Retries immediately, then after 1, 2, 4, ... s.
            time.sleep(0.0 if failures == 1 else min(2.0 ** (failures - 2), _LONGEST_PAUSE))


def _receive(wanted: _Wanted) -> None:
    """Connects once and appends the data to the part.

    Raises:
        BrokenError: the download is incomplete; the part keeps what arrived.
    """
    version = _known_version(wanted)
    first, headers = 0, {}
    if version is not None:
        first = _size(wanted.part) - 1
        headers = {"Range": f"bytes={first}-", "If-Range": version.mark}
    with connection.ask(wanted.url, timeout=wanted.timeout, headers=headers) as response:
        if version is not None and response.status_code in (206, 416):
            total = _check_rest(wanted, response, first, version)
        elif response.status_code == 200:
            first, total = 0, _begin(wanted, response)
        else:
            raise connection.refusal(wanted.url, response)
        if total is not None:
            _check_total(wanted, total, first)
        arrived = _append(wanted, response, first, total)
    if total is not None and arrived != total:
        raise BrokenError(f"the connection ended after {arrived:,} of {total:,} bytes", is_passing=True)


def _append(wanted: _Wanted, response: requests.Response, first: int, total: int | None) -> int:
    """Writes a response to the part, starting at byte `first`, and returns the new size of the part."""
    arrived = first
    with (
        wanted.part.open("r+b" if first else "wb") as file,
        progress.track(f"Fetching {wanted.label}", total, unit="bytes", start=first) as tracker,
    ):
        file.seek(first)
        for chunk in connection.chunks(response, wanted.url, wanted.timeout):
            arrived += len(chunk)
            _check_limit(wanted, arrived)
            file.write(chunk)
            tracker.advance(len(chunk))
    return arrived


def _known_version(wanted: _Wanted) -> _Version | None:
    """Reads which version of the file the part belongs to; None if there is no part, or it cannot be resumed."""
    if not _size(wanted.part):
        return None
    try:
        notes: dict[str, Any] = json.loads(wanted.notes.read_text(encoding="utf-8"))
        same = notes["url"] == wanted.shown and isinstance(notes["version"], str)
        return _Version(mark=notes["version"], size=notes["size"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):  # missing, or not ours
        return None


def _mark(response: requests.Response) -> str | None:
    """Returns what identifies the version of a file; a weak ETag (W/...) doesn't."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Transfer-Encoding" not in response.headers else None


def _begin(wanted: _Wanted, response: requests.Response) -> int | None:
    """Discards an earlier part, records the version of the new one, and returns its size in bytes."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity" and not wanted.path.name.endswith(_ENCODED_ANYWAY):
        raise UserError(
            f"`{wanted.shown}` is sent with the encoding {encoding}, which was not requested; use another server."
        )
    wanted.forget()
    total, mark = _length(response), _mark(response)
    if mark is not None:
        files.write_json(wanted.notes, {"url": wanted.shown, "version": mark, "size": total})
    return total


def _check_rest(wanted: _Wanted, response: requests.Response, first: int, version: _Version) -> int | None:
    """Checks that the rest belongs to the existing part, and returns the size of the whole file."""
    matched = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(matched[2]) if matched and matched[2] != "*" else None
    # A server may support ranges but not If-Range; then its response shows that the file changed (416: it is shorter).
    if (
        response.status_code == 416
        or matched is None
        or int(matched[1]) != first
        or _mark(response) not in (None, version.mark)
        or (version.size is not None and total not in (None, version.size))
    ):
        wanted.forget()
        raise BrokenError("the file has changed", is_passing=True)
    return version.size if total is None else total


def _check_total(wanted: _Wanted, total: int, first: int) -> None:
    """Raises a UserError if a file of `total` bytes is not the expected one, or the rest doesn't fit on the disk."""
    if wanted.size is not None and total != wanted.size:
        raise UserError(f"`{wanted.shown}` has {total:,} bytes; expected {wanted.size:,}.")
    _check_limit(wanted, total)
    files.check_space(wanted.path.parent, total - first, wanted.shown)


def _check_limit(wanted: _Wanted, num_bytes: int) -> None:
    """Raises a UserError if a file exceeds its size limit."""
    limit = wanted.max_bytes if wanted.size is None else wanted.size
    if limit is not None and num_bytes > limit:
        wanted.forget()
        raise UserError(
            f"`{wanted.shown}` has at least {files.size_text(num_bytes)}; expected at most {files.size_text(limit)}."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
