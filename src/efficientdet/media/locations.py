"""Resolves sources: images, videos, folders, patterns, web addresses, streams and camera numbers.

Existing files come first: a file named `*.jpg` or `0` is that file, not a pattern or a camera. In folders and patterns,
only files with the suffix of an image or a video count; a file that is named explicitly is judged by its content. Files
from the web are fetched into a folder of the caller's, within size and time limits, and not cached.
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
"""Suffixes of video files, lower case."""

STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps")
"""URL schemes of streams."""
STREAM_SUFFIXES = (".m3u8", ".mjpg", ".mjpeg")
"""Suffixes of http(s) streams: HLS, and the motion JPEG of network cameras."""

MAX_BYTES = {"image": 100 * 10**6, "video": 4 * 10**9}
"""Maximum size of a file from the web."""
MAX_SECONDS = {"image": 60.0, "video": 3600.0}
"""Maximum total time to fetch a file from the web."""

_LONGEST_STEM = 100  # bytes
_STREAM_TYPES = ("multipart/x-mixed-replace", "application/vnd.apple.mpegurl", "application/x-mpegurl")


Kind = Literal["image", "video", "camera", "stream"]
"""A stream is processed as it arrives from the network; like a camera, it may never end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Medium:
    """An image, a video, a camera or a stream.

    Attributes:
        name: display name: the path, the address without passwords, or `camera 0`.
        kind: what it is.
        stem: stem of its output files; not a path, limited in length.
        path: the file; None for a camera or a stream, and before `fetch`.
        url: its web address.
        camera: number of the camera.
    """

    name: str
    kind: Kind
    stem: str
    path: Path | None = None
    url: str | None = None
    camera: int | None = None

    @property
    def is_live(self) -> bool:
        """Returns whether it may never end."""
        return self.kind in ("camera", "stream")


def find(words: Sequence[str | Path]) -> list[Medium]:
    """Resolves sources in their order; files of folders and patterns are sorted by name.

    Args:
        words: files, folders, patterns such as `photos/**/*.jpg`, http(s) addresses, streams (rtsp://..., or an http(s)
            address that ends in .m3u8, .mjpg or .mjpeg), or camera numbers.

    Returns:
        At least one medium; nothing is opened or fetched yet.

    Raises:
        UserError: a source does not exist.
    """
    if not words:
        raise UserError("`sources` is empty; pass at least one image, folder, video, address or camera.")
    return [medium for word in words for medium in _find(word)]


def resolve(medium: Medium, *, max_seconds: float = 10.0) -> Medium:
    """Asks the server whether an address without a known suffix is an image, a video or a stream.

    Args:
        medium: a medium from `find`; any other kind is returned unchanged.
        max_seconds: time to wait for the server. If it takes longer or fails, the address stays an image, and `fetch`
            reports the error.
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
    """Fetches the content type of an address, lower case; empty if there is none."""
    with connection.ask(url, timeout=timeout) as response:
        kind = response.headers.get("Content-Type", "") if response.status_code == 200 else ""
        return kind.partition(";")[0].strip().lower()


def fetch(medium: Medium, folder: Path, *, max_bytes: int | None = None, max_seconds: float | None = None) -> Medium:
    """Fetches a medium from the web; other media are returned unchanged.

    Args:
        medium: a medium from `find`.
        folder: existing folder for the file.
        max_bytes: maximum size; None means `MAX_BYTES`.
        max_seconds: maximum time; None means `MAX_SECONDS`.

    Raises:
        UserError: the server or the network fails, or the file is too large or too slow.
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
    """Resolves one source."""
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
            # Path.glob doesn't support absolute patterns.
            matches = [Path(match) for match in glob.glob(str(word), recursive=True)]  # noqa: PTH207
            return _only_media([match for match in matches if match.is_file()], f"`{word}` matches")
    except OSError as error:
        raise UserError(f"`{word}` cannot be read: {error.strerror or error}.") from error
    raise UserError(
        f"`{path}` does not exist; pass an image, a video, a folder, a pattern, an address (http, https, rtsp) or a "
        "camera number."
    )


def _of_folder(path: Path) -> list[Medium]:
    """Lists the media of a folder, without subfolders and hidden files, such as `._a.jpg` of macOS."""
    files = [child for child in path.iterdir() if child.is_file() and not child.name.startswith(".")]
    if not any(map(_is_medium, files)) and (inside := find_inside(path)):
        raise UserError(f"`{path}` has images only in subfolders, such as `{inside}`; use '{path}/**/*'.")
    return _only_media(files, f"`{path}` has")


def find_inside(path: Path, without: Path | None = None) -> Path | None:
    """Finds an image or a video in the subfolders of a folder, which `find` skips; returns None if there is none.

    Args:
        path: the folder.
        without: a subfolder to ignore.
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
    """Selects the images and videos among files, by suffix."""
    known = [path for path in sorted(paths) if _is_medium(path)]
    if not known:
        raise UserError(f"{what} no images or videos ({', '.join((*images.SUFFIXES, *VIDEO_SUFFIXES))}).")
    return [_from_file(path) for path in known]


def _from_file(path: Path) -> Medium:
    return Medium(name=str(path), kind=_kind(path.suffix), stem=_short(path.stem), path=path)


def _from_web(url: str) -> Medium:
    """Parses a web address; keeps only letters, digits, `.`, `-` and `_` of its file name, which is untrusted."""
    scheme = url.partition(":")[0].lower()
    if scheme in STREAM_SCHEMES:
        try:
            is_usable = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
        except ValueError:
            is_usable = False
        if not is_usable:
            raise UserError(f"`{url}` is not a valid stream address; expected {scheme}://host/...")
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
    """Shortens a stem to leave room for a number and a suffix; file names have at most 255 bytes."""
    return stem.encode(errors="surrogateescape")[:_LONGEST_STEM].decode(errors="ignore") or "image"
