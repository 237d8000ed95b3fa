"""What people point at: images, videos, folders, patterns, addresses on the web, streams, the number of a camera.

A word is taken for what exists: a file called `*.jpg` or `0` is that file, before a pattern or a camera. Of folders and
patterns, files that are neither images nor videos by their names are left out; a file that was named itself is judged
by its content. From the web nothing is kept: a file of bounded size, in bounded time, into a folder of the caller's.
"""

import dataclasses
import functools
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from efficientdet.errors import UserError
from efficientdet.media import images
from efficientdet.storage import connection, web

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg"),
    *(".mpeg", ".wmv", ".flv", ".ogv", ".mts", ".3gp"),
)
"""How names of video files end, lower case."""

STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps")
"""Of addresses of streams."""
STREAM_SUFFIXES = (".m3u8", ".mjpg", ".mjpeg")
"""How http(s) addresses of streams end: HLS, and the JPEG after JPEG of network cameras."""

MAX_BYTES = {"image": 100 * 10**6, "video": 4 * 10**9}
"""Of a file from the web."""
MAX_SECONDS = {"image": 60.0, "video": 3600.0}
"""For a file from the web, all in all."""

_LONGEST_STEM = 100  # bytes
_STREAM_TYPES = ("multipart/x-mixed-replace", "application/vnd.apple.mpegurl", "application/x-mpegurl")


Kind = Literal["image", "video", "camera", "stream"]
"""A stream comes from the network and is looked at as it comes; like a camera it may never end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Medium:
    """An image, a video, a camera or a stream.

    Attributes:
        name: what people call it: the path, the address without passwords, `camera 0`.
        kind: what it is.
        stem: of files that are written about it; no path, of a bounded length.
        path: the file; none of a camera or a stream, and before `fetch`.
        url: its address on the web.
        camera: its number.
    """

    name: str
    kind: Kind
    stem: str
    path: Path | None = None
    url: str | None = None
    camera: int | None = None

    @property
    def is_live(self) -> bool:
        """Says whether it may never end."""
        return self.kind in ("camera", "stream")


def find(words: Sequence[str | Path]) -> list[Medium]:
    """Finds what words stand for, in their order; files of folders and patterns in the order of their names.

    Args:
        words: files, folders, patterns such as `photos/**/*.jpg`, http(s) addresses, streams (rtsp://..., an http(s)
            address that ends in .m3u8, .mjpg or .mjpeg), numbers of cameras.

    Returns:
        One at least; nothing has been opened or fetched.

    Raises:
        UserError: a word stands for nothing.
    """
    if not words:
        raise UserError("`sources` is empty; give at least one image, folder, video, address or camera.")
    return [medium for word in words for medium in _find(word)]


def resolve(medium: Medium, *, max_seconds: float = 10.0) -> Medium:
    """Asks a server what an address is whose name does not say it: an image, a video or a stream.

    Args:
        medium: one of `find`; others than such an address are given back as they are.
        max_seconds: to wait for the server; later, or if it fails, the address stays an image, and `fetch` says why.
    """
    suffix = Path(urlsplit(medium.url or "").path).suffix.lower()
    if medium.url is None or medium.kind != "image" or suffix in images.SUFFIXES:
        return medium
    try:
        kind = connection.within(max_seconds, functools.partial(_ask_type, medium.url, max_seconds))
    except (connection.BrokenError, OSError):  # a TimeoutError too
        return medium
    if kind in _STREAM_TYPES:
        return dataclasses.replace(medium, kind="stream")
    return dataclasses.replace(medium, kind="video") if kind.startswith("video/") else medium


def _ask_type(url: str, timeout: float) -> str:
    """Asks for the content type of an address, lower case; empty if there is none."""
    with connection.ask(url, timeout=timeout) as response:
        kind = response.headers.get("Content-Type", "") if response.status_code == 200 else ""
        return kind.partition(";")[0].strip().lower()


def fetch(medium: Medium, folder: Path, *, max_bytes: int | None = None, max_seconds: float | None = None) -> Medium:
    """Fetches a medium that is on the web; others are given back as they are.

    Args:
        medium: one of `find`.
        folder: exists; the file is written into it.
        max_bytes: none: `MAX_BYTES`.
        max_seconds: none: `MAX_SECONDS`.

    Raises:
        UserError: the server or the way there fails, or the file is too large or too slow.
    """
    if medium.url is None or medium.kind == "stream":
        return medium
    taken = {path.stem for path in folder.iterdir()}
    number = next(number for number in range(len(taken) + 1) if str(number) not in taken)
    path = folder / f"{number}{Path(urlsplit(medium.url).path).suffix[:10]}"
    web.fetch_within(
        medium.url,
        path,
        max_bytes=max_bytes or MAX_BYTES[medium.kind],
        max_seconds=max_seconds or MAX_SECONDS[medium.kind],
    )
    return dataclasses.replace(medium, path=path)


def _find(word: str | Path) -> list[Medium]:
    """Finds what one word stands for."""
    if isinstance(word, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", word):
        return [_from_web(word)]
    path = Path(word)
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.exists():
            return [_from_file(path)]
        if re.fullmatch(r"[0-9]{1,3}", str(word)):
            number = int(str(word))
            return [Medium(name=f"camera {number}", kind="camera", stem=f"camera-{number}", camera=number)]
        if glob.has_magic(str(word)):
            # Path.glob takes no pattern that begins at the root.
            matches = [Path(match) for match in glob.glob(str(word), recursive=True)]  # noqa: PTH207
            return _only_media([match for match in matches if match.is_file()], f"`{word}` matches")
    except OSError as error:
        raise UserError(f"`{word}` cannot be read: {error.strerror or error}.") from error
    raise UserError(
        f"`{path}` does not exist; give an image, a video, a folder, a pattern, an address (http, https, rtsp) or a "
        "camera's number."
    )


def _of_folder(path: Path) -> list[Medium]:
    """Finds what a folder has itself; hidden files, such as `._a.jpg` of macOS, are none."""
    files = [child for child in path.iterdir() if child.is_file() and not child.name.startswith(".")]
    if not any(map(_is_medium, files)) and (inside := find_inside(path)):
        raise UserError(f"`{path}` has images only in folders inside, such as `{inside}`; '{path}/**/*' takes them.")
    return _only_media(files, f"`{path}` has")


def find_inside(path: Path, without: Path | None = None) -> Path | None:
    """Finds an image or a video in the folders inside a folder, which `find` leaves out; none if there is none.

    Args:
        path: the folder.
        without: a folder that does not count.
    """
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(folder, name) != without)
        for name in sorted(names) if Path(folder) != path else ():
            if _is_medium(Path(name)) and not name.startswith("."):
                return Path(folder, name)
    return None


def _is_medium(path: Path) -> bool:
    return path.suffix.lower() in (*images.SUFFIXES, *VIDEO_SUFFIXES)


def _only_media(paths: list[Path], what: str) -> list[Medium]:
    """Takes images and videos out of files, by their names."""
    known = [path for path in sorted(paths) if _is_medium(path)]
    if not known:
        raise UserError(f"{what} no images and no videos ({', '.join((*images.SUFFIXES, *VIDEO_SUFFIXES))}).")
    return [_from_file(path) for path in known]


def _from_file(path: Path) -> Medium:
    return Medium(name=str(path), kind=_kind(path.suffix), stem=_short(path.stem), path=path)


def _from_web(url: str) -> Medium:
    """Takes an address; its name may hold anything, so that only letters, digits, `.`, `-` and `_` of it are used."""
    scheme = url.partition(":")[0].lower()
    if scheme in STREAM_SCHEMES:
        try:
            is_usable = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
        except ValueError:
            is_usable = False
        if not is_usable:
            raise UserError(f"`{url}` is not the address of a stream; expected {scheme}://host/...")
    else:
        connection.check_url(url)
    last = unquote(urlsplit(url).path).replace("\\", "/").rpartition("/")[2]
    is_stream = scheme in STREAM_SCHEMES or Path(last).suffix.lower() in STREAM_SUFFIXES
    kind: Kind = "stream" if is_stream else _kind(Path(last).suffix)
    stem = re.sub(r"[^\w.-]+", "_", Path(last).stem).strip("._") or ("stream" if is_stream else "image")
    return Medium(name=connection.without_secrets(url), kind=kind, stem=_short(stem), url=url)


def _kind(suffix: str) -> Literal["image", "video"]:
    return "video" if suffix.lower() in VIDEO_SUFFIXES else "image"


def _short(stem: str) -> str:
    """Cuts a name that would leave no room for a number and a suffix; names of files have 255 bytes at most."""
    return stem.encode(errors="surrogateescape")[:_LONGEST_STEM].decode(errors="ignore") or "image"
