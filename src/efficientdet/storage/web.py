"""Files from the web: resumed after an interruption, checked, and never seen half.

What arrives is kept in `<name>.part`. `<name>.part.json` beside it remembers which version of the file it is part of:
the server's strong ETag, else its Last-Modified. The next call asks for the rest under the condition that this is
still the version (If-Range, RFC 9110, section 13.1.5), so a server whose file has changed, and one that knows no
ranges, sends everything, and the part is begun again. It asks from the last byte that is there, not from the one after
it: then a part that only lacks its new name needs no case of its own.
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
# After so many new bytes a failure counts as the first again: a long download may break off often.
_FRUITFUL = 10**6
_LONGEST_PAUSE = 30.0  # s
# Some servers call the file x.tar.gz an encoding of x.tar; its bytes are those that we want all the same.
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
        """Removes what has arrived."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Version:
    """What tells a version of a file from others.

    Attributes:
        mark: strong ETag or Last-Modified.
        size: bytes; none if the server did not say.
    """

    mark: str
    size: int | None


def cache_dir() -> Path:
    """Says where this program keeps what it can fetch or make again."""
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
    """Fetches a file, unless it is there.

    A call that was interrupted goes on where it stopped. Of several processes that want the same file one fetches it
    while the others wait.

    Args:
        url: http or https.
        path: where the file will be; its folder is made.
        sha256: what the file must hash to, hexadecimal; none: not checked.
        size: bytes that the file must have; none: what the server says.
        max_bytes: a larger file is refused; none: any that the disk has room for.
        label: what the progress bar says; none: the name of the file.
        timeout: seconds of silence, when connecting and later, after which the server is taken for dead.
        attempts: how often in a row a connection may break off without anything new arriving.

    Returns:
        `path`.

    Raises:
        UserError: the server or the way there fails, or the file is not the one that is wanted.
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
    """Asks how large a file on the web is, bytes; none if the server does not say.

    Raises:
        UserError: the server cannot be reached, or has no such file.
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
    """Fetches a file once, in bounded time and size; of one that does not come whole nothing is kept.

    Args:
        url: http or https.
        path: where the file will be; its folder exists.
        max_bytes: a larger file is refused.
        max_seconds: for everything together, from the look-up of the server's name to the last byte.
        timeout: seconds of silence after which the server is taken for dead.

    Raises:
        UserError: the server or the way there fails, or the file is too large or too slow.
    """
    connection.check_url(url)
    shown = connection.without_secrets(url)
    is_late = threading.Event()
    try:
        connection.within(max_seconds, lambda: _receive_once(url, path, max_bytes, timeout, is_late))
    except TimeoutError:
        is_late.set()
        raise UserError(f"`{shown}` did not come within {max_seconds:g} s; fetch it beforehand.") from None
    except BrokenError as error:
        raise UserError(f"`{shown}` cannot be fetched: {error}; try again later.") from error
    except OSError as error:
        raise UserError(f"`{path}` cannot be written: {error.strerror or error}.") from error


def _receive_once(url: str, path: Path, max_bytes: int, timeout: float, is_late: threading.Event) -> None:
    """Writes an answer into a file, and removes the file where that fails."""
    shown = connection.without_secrets(url)
    too_large = UserError(f"`{shown}` has more than {files.size_text(max_bytes)}; fetch it beforehand.")
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
                    raise BrokenError("nobody waits any more", is_passing=False)
                file.write(chunk)
            if total is not None and arrived != total:
                raise BrokenError(f"the connection ended after {arrived:,} of {total:,} bytes", is_passing=True)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def arrived(path: Path) -> int:
    """Says how many bytes of a file are there, whole or as a part."""
    path = Path(path)
    return _size(path) or _size(path.with_name(f"{path.name}{_PART}"))


def _check_present(wanted: _Wanted) -> None:
    """Raises a UserError if a file that is there is not the one that is wanted."""
    wrong = _what_is_wrong(wanted, wanted.path) if wanted.path.is_file() else "is not a file"
    if wrong:
        raise UserError(f"`{wanted.path}` is there, but {wrong}, so it is not {wanted.shown}; remove it and try again.")


def _check_received(wanted: _Wanted) -> None:
    """Removes a received file that is not the one that is wanted, and raises a UserError."""
    wrong = _what_is_wrong(wanted, wanted.part)
    if wrong:
        wanted.forget()
        raise UserError(
            f"`{wanted.shown}` was fetched, but {wrong}; it was removed. Try again; if that does not help, the file on "
            "the server is damaged or another one."
        )


def _what_is_wrong(wanted: _Wanted, path: Path) -> str:
    """Compares size and checksum with those that are wanted; empty if both fit."""
    size = path.stat().st_size
    if wanted.size is not None and size != wanted.size:
        return f"has {size:,} bytes instead of {wanted.size:,}"
    if wanted.sha256 is None:
        return ""
    found = files.sha256(path)
    return "" if found == wanted.sha256.lower() else f"has the SHA-256 {found} instead of {wanted.sha256}"


def _receive_all(wanted: _Wanted) -> None:
    """Fills the part, in as many attempts as are worth it."""
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
                kept = f"{files.size_text(size)} of it are kept, " if _known_version(wanted) else ""
                raise UserError(f"`{wanted.shown}` cannot be fetched: {error}; {kept}try again later.") from error
            progress.console.print(f"{wanted.label}: {error}; trying again", markup=False, soft_wrap=True)
            # The first time at once, then after 1, 2, 4, ... s.
            time.sleep(0.0 if failures == 1 else min(2.0 ** (failures - 2), _LONGEST_PAUSE))


def _receive(wanted: _Wanted) -> None:
    """Connects once and appends what comes to the part.

    Raises:
        BrokenError: not everything came; the part keeps what did.
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
    """Writes what comes into the part, from a byte on, and returns how many bytes it then has."""
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
    """Reads which version of the file the part is of; none if there is no part, or it cannot be gone on with."""
    if not _size(wanted.part):
        return None
    try:
        notes: dict[str, Any] = json.loads(wanted.notes.read_text(encoding="utf-8"))
        same = notes["url"] == wanted.shown and isinstance(notes["version"], str)
        return _Version(mark=notes["version"], size=notes["size"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not ours
        return None


def _mark(response: requests.Response) -> str | None:
    """Takes what tells one version of a file from another; a weak ETag (W/...) does not."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Transfer-Encoding" not in response.headers else None


def _begin(wanted: _Wanted, response: requests.Response) -> int | None:
    """Forgets an earlier part, notes the version of the new one, and returns its size in bytes."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity" and not wanted.path.name.endswith(_ENCODED_ANYWAY):
        raise UserError(f"`{wanted.shown}` comes encoded ({encoding}), which was not asked for; use another server.")
    wanted.forget()
    total, mark = _length(response), _mark(response)
    if mark is not None:
        files.write_json(wanted.notes, {"url": wanted.shown, "version": mark, "size": total})
    return total


def _check_rest(wanted: _Wanted, response: requests.Response, first: int, version: _Version) -> int | None:
    """Checks that the rest that comes belongs to the part that is there, and returns the size of the whole."""
    matched = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(matched[2]) if matched and matched[2] != "*" else None
    # A server may know ranges and not If-Range; then its answer tells that the file has changed (416: it is shorter).
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
    """Raises a UserError if a file of `total` bytes is not the one that is wanted, or its rest has no room."""
    if wanted.size is not None and total != wanted.size:
        raise UserError(f"`{wanted.shown}` has {total:,} bytes; expected {wanted.size:,}.")
    _check_limit(wanted, total)
    files.check_space(wanted.path.parent, total - first, wanted.shown)


def _check_limit(wanted: _Wanted, num_bytes: int) -> None:
    """Raises a UserError if a file has so many bytes or more, and may not."""
    limit = wanted.max_bytes if wanted.size is None else wanted.size
    if limit is not None and num_bytes > limit:
        wanted.forget()
        raise UserError(
            f"`{wanted.shown}` has {files.size_text(num_bytes)} or more; expected {files.size_text(limit)} at most."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
