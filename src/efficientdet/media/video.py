"""Reads videos and cameras frame by frame as upright RGB and writes H.264 in MP4, with PyAV (FFmpeg's libraries).

Frames keep their timestamps, so a variable frame rate is preserved. Only a few frames are in memory at a time. Videos
are untrusted: only self-contained formats are opened, not playlists, which name other files and addresses, and a video
that cannot be decoded to the end is refused with a one-line error.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import progress
from efficientdet.errors import UserError

MAX_PIXELS = 8192 * 8192
"""Maximum number of pixels of a frame to decode."""

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg"
_PROTOCOLS = "rtsp,rtsps,rtmp,rtmps,rtp,srtp,udp,tcp,tls,http,https,crypto,httpproxy"
_STREAM_SECONDS = (15.0, 15.0)  # timeouts without data, when connecting and later
_FINEST = 1_000_000  # maximum ticks per second of written videos
_MISSING_SECONDS = 1.0  # a file that ends earlier than declared by more than this is truncated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame of a video.

    Attributes:
        image: uint8[H, W, 3], RGB, upright.
        ticks: time since the first frame, in units of `Video.time_base`.
        seconds: the same in s.
    """

    image: np.ndarray
    ticks: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """An open video or camera.

    Attributes:
        size: height and width of the frames, upright, px.
        rate: average frames/s.
        time_base: s per tick.
        num_frames: number of frames according to the file; None if unknown.
        frames: the frames; raises a UserError if the video is damaged.
    """

    size: tuple[int, int]
    rate: Fraction
    time_base: Fraction
    num_frames: int | None
    frames: Iterator[Frame]


@contextlib.contextmanager
def open_video(path: Path, name: str) -> Iterator[Video]:
    """Opens a video and decodes its first frame.

    Args:
        path: the file.
        name: name of the video in errors.

    Raises:
        UserError: PyAV is not installed, or the file is missing, not a video, or damaged.
    """
    av = _import_av()
    if not path.is_file():
        raise UserError(f"`{name}` is missing: there is no file {path}.")
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    with _opened(av, str(path.absolute()), name, "not a supported video, or is damaged", options=options) as video:
        yield video


@contextlib.contextmanager
def open_camera(number: int) -> Iterator[Video]:
    """Opens a camera of this computer.

    Args:
        number: 0 is the first camera.

    Raises:
        UserError: PyAV is not installed, or the camera does not exist.
    """
    av = _import_av()
    address, format_name = camera_address(number)
    with _opened(av, address, f"camera {number}", "not a camera that can be opened", format=format_name) as video:
        yield video


@contextlib.contextmanager
def open_stream(url: str, name: str) -> Iterator[Video]:
    """Opens a network stream: RTSP, RTMP, HLS, or a network camera's motion JPEG over HTTP.

    If it breaks off after its first frame, it counts as ended and earlier frames stay valid.

    Args:
        url: its address; the data that it sends cannot open local files.
        name: name of the stream in errors, without passwords.

    Raises:
        UserError: PyAV is not installed, or the stream cannot be opened.
    """
    av = _import_av()
    options = {"protocol_whitelist": _PROTOCOLS}
    if url.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # UDP loses packets, and firewalls block it
    otherwise = "not a stream that can be opened"
    with _opened(av, url, name, otherwise, is_live=True, options=options, timeout=_STREAM_SECONDS) as video:
        yield video


def camera_address(number: int) -> tuple[str, str]:
    """Returns FFmpeg's address and format of a camera."""
    if sys.platform == "linux":
        return f"/dev/video{number}", "v4l2"
    if sys.platform == "darwin":
        return f"{number}:none", "avfoundation"
    raise UserError(f"`camera {number}`: cameras are supported only on Linux and macOS, not on {sys.platform}.")


class VideoWriter:
    """Writes a video: H.264 in MP4, without sound. Made by `write_video`."""

    def __init__(self, container: Any, video: Video):
        """Sets up an encoder with the size and timing of `video`; an odd side gains a row or column."""
        import av

        self._av, self._container = av, container
        height, width = video.size
        self._padding = ((0, height % 2), (0, width % 2), (0, 0))  # H.264 shares color among four pixels
        self._stream = container.add_stream("libx264", rate=video.rate, options={"preset": "veryfast", "crf": "20"})
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        # With nanosecond ticks, the timestamps would overflow within an hour.
        self._coarser = max(1, round(1 / (video.time_base * _FINEST)))
        self._stream.codec_context.time_base = video.time_base * self._coarser
        self._last = -1

    def write(self, image: np.ndarray, ticks: int) -> None:
        """Appends a frame.

        Args:
            image: uint8[H, W, 3], RGB.
            ticks: its time, in units of the source video's `time_base`.
        """
        padded = np.pad(image, self._padding, mode="edge") if any(map(any, self._padding)) else image
        frame = self._av.VideoFrame.from_ndarray(padded, format="rgb24")
        self._last = max(ticks // self._coarser, self._last + 1)
        frame.pts, frame.time_base = self._last, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Flushes the encoder."""
        self._container.mux(self._stream.encode(None))


@contextlib.contextmanager
def write_video(path: Path, video: Video) -> Iterator[VideoWriter]:
    """Opens a writer for a video with the size and rate of another while the block runs.

    Args:
        path: path of the .mp4, such as a temporary one from `files.write_aside`.
        video: the source video.

    Raises:
        UserError: the video cannot be encoded.
    """
    av = _import_av()
    try:
        with av.open(str(path), "w", format="mp4") as container:
            writer = VideoWriter(container, video)
            yield writer
            writer.finish()
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, UserError | OSError):  # PyAV's disk errors are OSErrors too
            raise
        height, width = video.size
        raise UserError(
            f"`{path.suffix}` video of {height} x {width} px cannot be written: {_reason(error)}."
        ) from error


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(
            "Videos and cameras need PyAV, which is not installed; run `pip install 'efficientdet-keras[video]'`."
        ) from error
    return av


@contextlib.contextmanager
def _opened(
    av: Any, address: str, name: str, otherwise: str, *, is_live: bool = False, **arguments: Any
) -> Iterator[Video]:
    """Opens an address with FFmpeg and decodes the first frame."""
    try:
        container = av.open(address, **arguments)
    except (OSError, ValueError) as error:  # FFmpegError is one of these or of both
        raise UserError(f"`{name}` is {otherwise}: {_reason(error)}.") from error
    with container:
        if not container.streams.video:
            raise UserError(f"`{name}` is {otherwise}: it has no video track.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        frames = _decode(av, container, stream, name, is_live)
        first = next(frames, None)
        if first is None:
            raise UserError(f"`{name}` has no frame that can be decoded.")
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        yield Video(
            size=(first.image.shape[0], first.image.shape[1]),
            rate=rate,
            time_base=stream.time_base,
            num_frames=_count(container, stream, rate),
            frames=itertools.chain([first], frames),
        )


def _decode(av: Any, container: Any, stream: Any, name: str, is_live: bool) -> Iterator[Frame]:
    """Decodes frame by frame, at the size of the first; an error in a stream ends it."""
    start: int | None = None
    size: tuple[int, int] | None = None
    seconds, ticks, number = 0.0, -1, 0
    step = 1 / (stream.average_rate or Fraction(25)) / stream.time_base
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt and is_live:
                continue
            if frame.is_corrupt:
                raise UserError(f"`{name}` is damaged at {seconds:.1f} s: a frame cannot be decoded.")
            start = (frame.pts or 0) if start is None else start
            ticks = max(ticks + 1, round(number * step) if frame.pts is None else frame.pts - start)
            seconds, number = float(ticks * stream.time_base), number + 1
            size = size or (frame.height, frame.width)
            pixels = frame.to_ndarray(format="rgb24", height=size[0], width=size[1])
            yield Frame(image=_upright(pixels, frame.rotation), ticks=ticks, seconds=seconds)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        if is_live and size is not None:
            progress.console.print(
                f"`{name}` ended after {seconds:.1f} s: {_reason(error)}.", soft_wrap=True, markup=False
            )
            return
        raise UserError(
            f"`{name}` cannot be decoded after {seconds:.1f} s; it is damaged or truncated: {_reason(error)}."
        ) from error
    length = None if is_live else _length(container, stream)
    if length is not None and length - seconds > float(step * stream.time_base) + _MISSING_SECONDS:
        raise UserError(f"`{name}` is truncated: it ends after {seconds:.1f} of {length:.1f} s.")


def _length(container: Any, stream: Any) -> float | None:
    """Reads the length of the video track, s; the length of the whole file may be that of its sound."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def _upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """Rotates a frame upright: `rotation` degrees counterclockwise, from the file's metadata."""
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _count(container: Any, stream: Any, rate: Fraction) -> int | None:
    """Returns the number of frames of a file, exact or estimated from its length; None for a camera."""
    if stream.frames:
        return int(stream.frames)
    if container.duration:
        return max(round(container.duration / 1e6 * float(rate)), 1)  # microseconds
    return None


def _reason(error: Exception) -> str:
    """Extracts FFmpeg's reason from a PyAV error."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
