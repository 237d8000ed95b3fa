"""Detects objects in the frames of a video, camera or stream; draws them into a video and writes a line per frame."""

import contextlib
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import progress
from efficientdet.inference.detections import ImageDetections
from efficientdet.media import locations, video
from efficientdet.media.locations import Medium
from efficientdet.storage import files

_Detect = Callable[[Sequence[np.ndarray]], list[ImageDetections]]


def write(
    medium: Medium, target: Path, detect: _Detect, batch_size: int, max_frames: int | None, folder: Path
) -> dict[str, Any]:
    """Writes a video with boxes, and a .jsonl file of its detections next to it.

    Args:
        medium: any medium but an image.
        target: path of the .mp4.
        detect: detects in several frames.
        batch_size: frames per batch; cameras and streams always use 1.
        max_frames: maximum number of frames; None means all.
        folder: folder for files from the web.

    Returns:
        Size, number of frames, seconds, and paths of both files.

    Raises:
        UserError: it cannot be read to the end or written; nothing is left then.
    """
    path = target.with_suffix(".jsonl")
    number, seconds = 0, 0.0
    with _opened(medium, folder) as film:

        def fill(video_file: Path, lines_file: Path) -> None:
            nonlocal number, seconds
            with lines_file.open("w", encoding="utf-8") as text, video.write_video(video_file, film) as writer:
                for frame, detections in _look(medium, film, detect, batch_size, max_frames):
                    writer.write(np.asarray(detections.draw(frame.image)), frame.ticks)
                    text.write(json.dumps(_line(number, frame, detections)) + "\n")
                    number, seconds = number + 1, frame.seconds

        files.write_aside(target, lambda temporary: files.write_aside(path, lambda text: fill(temporary, text)))
        height, width = film.size
    facts = {"height": height, "width": width, "frames": number, "seconds": round(seconds, 3)}
    return facts | {"video": str(target), "lines": str(path)}


def lines(
    medium: Medium, detect: _Detect, batch_size: int, max_frames: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yields the detections of each frame as plain JSON values; takes the arguments of `write`."""
    with _opened(medium, folder) as film:
        for number, (frame, detections) in enumerate(_look(medium, film, detect, batch_size, max_frames)):
            yield _line(number, frame, detections)


def _line(number: int, frame: video.Frame, detections: ImageDetections) -> dict[str, Any]:
    return {"frame": number, "seconds": round(frame.seconds, 3), **detections.to_dict()}


def _look(
    medium: Medium, film: video.Video, detect: _Detect, batch_size: int, max_frames: int | None
) -> Iterator[tuple[video.Frame, ImageDetections]]:
    """Detects frame by frame; Ctrl-C ends a camera or a stream."""
    total = film.num_frames if max_frames is None else min(film.num_frames or max_frames, max_frames)
    with progress.track(medium.name, total, unit="frames") as bar, _ended_by_hand(medium) as is_asked:
        wanted = itertools.takewhile(lambda _: not is_asked.is_set(), itertools.islice(film.frames, max_frames))
        while batch := list(itertools.islice(wanted, 1 if medium.is_live else _frames_a_batch(film, batch_size))):
            for frame, detections in zip(batch, detect([frame.image for frame in batch]), strict=True):
                yield frame, detections
                bar.advance()


def _frames_a_batch(film: video.Video, batch_size: int) -> int:
    """Returns the number of frames per batch; the whole batch is in memory."""
    return max(1, min(batch_size, _MOST_PIXELS // (film.size[0] * film.size[1])))


_MOST_PIXELS = 64_000_000  # in a batch; the frames are kept to draw on them


@contextlib.contextmanager
def _opened(medium: Medium, folder: Path) -> Iterator[video.Video]:
    """Opens a camera, a stream or a video, which is fetched first if it is on the web."""
    if medium.camera is not None:
        opened = video.open_camera(medium.camera)
    elif medium.kind == "stream":
        assert medium.url is not None, "no address"
        opened = video.open_stream(medium.url, medium.name)
    else:
        path = locations.fetch(medium, folder).path
        assert path is not None, "no file"
        opened = video.open_video(path, medium.name)
    with opened as film:
        yield film


@contextlib.contextmanager
def _ended_by_hand(medium: Medium) -> Iterator[threading.Event]:
    """Turns Ctrl-C into the end of a live source while the block runs, so that the output is complete."""
    is_asked = threading.Event()
    if not medium.is_live or threading.current_thread() is not threading.main_thread():
        yield is_asked
        return
    before = signal.signal(signal.SIGINT, lambda *_: is_asked.set())
    try:
        yield is_asked
    finally:
        signal.signal(signal.SIGINT, before)
