"""`predict`: what is in pictures, videos and cameras, drawn and written down.

Into a folder it writes each picture and each video with its boxes, predictions.json, and beside a video a line of JSON
a frame; to standard output it writes lines of JSON alone. Each file is written aside and renamed when it is whole. All
pictures are decoded once before anything is written, and of all videos the first frame.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from efficientdet import files, progress
from efficientdet.config import Precision, RuntimeName, Switch
from efficientdet.data import images as image_files
from efficientdet.data import media, video
from efficientdet.data.media import Medium
from efficientdet.detections import PictureDetections
from efficientdet.detector import Detector, Tiles
from efficientdet.errors import UserError, one_line

_STANDARD_OUTPUT = Path("-")
_MOST_PIXELS = 64_000_000  # in a batch; the pictures are kept to draw on them

_Detect = Callable[[Sequence[np.ndarray]], list[PictureDetections]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What `predict` wrote."""

    output: str
    pictures: dict[str, dict[str, Any]]
    """Picture as it was given -> its size, its detections, and the annotated picture. Empty if lines were written."""
    videos: dict[str, dict[str, Any]]
    """Video or camera -> its size, number of frames, seconds, the annotated video, and the lines of its frames."""

    def to_dict(self) -> dict[str, Any]:
        """Turns the prediction into plain JSON values."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Says what was found and where it is; nothing if it went to standard output."""
        lines = [
            f"{name}: {len(found['detections'])} found, {found['picture']}" for name, found in self.pictures.items()
        ]
        lines += [
            f"{name}: {found['frames']} frames, {found['video']}"
            for name, found in self.videos.items()
            if found["video"]
        ]
        return "\n".join(map(one_line, lines))


def predict(
    weights: Path,
    sources: tuple[str | Path, ...],
    /,
    *,
    output: Path = Path("predictions"),
    score_threshold: float = 0.3,
    classes: tuple[str, ...] | None = None,
    tiles: Tiles | None = None,
    tile_overlap: float = 0.2,
    batch_size: int = 8,
    max_frames: int | None = None,
    image_size: tuple[int, int] | None = None,
    precision: Precision = "float32",
    runtime: RuntimeName = "auto",
    xla: Switch = "auto",
) -> Prediction:
    """Detects in pictures, videos and cameras, draws what was found, and writes it down as JSON.

    Args:
        weights: weights file, folder of a run (its best weights), a published name such as coco-d0, or an export.
        sources: pictures, videos, folders of them, patterns such as 'photos/**/*.jpg', http(s) addresses, or the number
            of a camera, which Ctrl-C ends.
        output: folder for annotated pictures and videos and predictions.json; - prints a line of JSON for each picture
            and each frame of a video instead.
        score_threshold: detections below this are left out.
        classes: names or ids of the classes that are wanted; all if not given.
        tiles: look at pieces of this height and width too, px, for small objects in large pictures; input: as large as
            the network input.
        tile_overlap: least share of a tile's side that the next one sees too.
        batch_size: most pictures in the network at once; a camera has 1.
        max_frames: of each video or camera; all if not given.
        image_size: height and width of the network input, px; what the weights were trained with if not given.
        precision: of the arithmetic inside the network.
        runtime: what runs the network; auto: OpenVINO on a CPU, where its extra is installed, else Keras.
        xla: compile Keras's graph with XLA; auto: on a GPU.

    Returns:
        What was found; boxes in px of each picture, upright as its EXIF orientation says.

    Raises:
        UserError: weights or a source cannot be used; nothing is written then, unless a video turns out to be damaged
            behind its first frame.
    """
    if max_frames is not None and max_frames < 1:
        raise UserError(f"`max_frames` is {max_frames}; it must be at least 1.")
    found = media.find(sources)
    targets = _targets(found, output)
    if output != _STANDARD_OUTPUT:
        files.check_writable(output / "predictions.json")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = [media.fetch(medium, Path(folder)) for medium in found]
        for medium in found:
            _check(medium)
        detector = Detector(
            weights,
            score_threshold=score_threshold,
            classes=classes,
            batch_size=batch_size,
            image_size=image_size,
            precision=precision,
            runtime=runtime,
            xla=xla,
        )

        def detect(batch: Sequence[np.ndarray]) -> list[PictureDetections]:
            return detector.detect(list(batch), tiles=tiles, tile_overlap=tile_overlap)

        work = _Work(detect=detect, batch_size=batch_size, max_frames=max_frames)
        if output == _STANDARD_OUTPUT:
            return _print(found, work)
        return _write(found, targets, output, work)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    """How pictures and frames are looked at."""

    detect: _Detect
    batch_size: int
    max_frames: int | None

    def pictures(self, found: Sequence[Medium]) -> Iterator[tuple[int, np.ndarray, PictureDetections]]:
        """Looks at the pictures among media: position, pixels, detections of each."""
        places = [place for place, medium in enumerate(found) if medium.kind == "picture"]
        if not places:
            return
        read = ((place, image_files.read_image(_path(found[place]), found[place].name)) for place in places)
        with progress.track("predict", len(places)) as bar:
            for batch in _batches(read, self.batch_size):
                for (place, image), detections in zip(batch, self.detect([image for _, image in batch]), strict=True):
                    yield place, image, detections
                    bar.advance(note=_path(found[place]).name)

    def frames(self, medium: Medium, film: video.Video) -> Iterator[tuple[video.Frame, PictureDetections]]:
        """Looks at the frames of a video or camera, which Ctrl-C ends."""
        total = film.num_frames if self.max_frames is None else min(film.num_frames or self.max_frames, self.max_frames)
        with progress.track(medium.name, total, unit="frames") as bar, _ended_by_hand(medium) as is_asked:
            wanted = itertools.takewhile(
                lambda _: not is_asked.is_set(), itertools.islice(film.frames, self.max_frames)
            )
            pairs = ((frame, frame.image) for frame in wanted)
            for batch in _batches(pairs, 1 if medium.kind == "camera" else self.batch_size):
                found = self.detect([image for _, image in batch])
                for (frame, _), detections in zip(batch, found, strict=True):
                    yield frame, detections
                    bar.advance()


def _write(found: Sequence[Medium], targets: Sequence[Path], output: Path, work: _Work) -> Prediction:
    """Writes pictures, videos and the report into a folder."""
    pictures: dict[str, dict[str, Any]] = {}
    videos: dict[str, dict[str, Any]] = {}
    for place, image, detections in work.pictures(found):
        target = targets[place]
        drawn = detections.draw(image)
        files.write_aside(target, lambda temporary, drawn=drawn: drawn.save(temporary, quality=92))  # type: ignore[misc]
        pictures[found[place].name] = {**detections.to_dict(), "picture": str(target)}
    for medium, target in zip(found, targets, strict=True):
        if medium.kind != "picture":
            with _open(medium) as film:
                videos[medium.name] = _write_video(medium, film, target, work)
    files.write_json(output / "predictions.json", {**pictures, **videos})
    return Prediction(output=str(output), pictures=pictures, videos=videos)


def _write_video(medium: Medium, film: video.Video, target: Path, work: _Work) -> dict[str, Any]:
    """Writes a video with boxes, and its detections as lines."""
    lines = target.with_suffix(".jsonl")
    number, seconds = 0, 0.0

    def fill(picture_file: Path, lines_file: Path) -> None:
        nonlocal number, seconds
        with lines_file.open("w", encoding="utf-8") as text, video.write_video(picture_file, film) as writer:
            for frame, detections in work.frames(medium, film):
                writer.write(np.asarray(detections.draw(frame.image)), frame.ticks)
                text.write(_frame_line(number, frame, detections))
                number, seconds = number + 1, frame.seconds

    files.write_aside(target, lambda temporary: files.write_aside(lines, lambda text: fill(temporary, text)))
    height, width = film.size
    facts = {"height": height, "width": width, "frames": number, "seconds": round(seconds, 3)}
    return facts | {"video": str(target), "lines": str(lines)}


def _print(found: Sequence[Medium], work: _Work) -> Prediction:
    """Prints a line for each picture, and for each frame of a video."""
    videos: dict[str, dict[str, Any]] = {}
    with _broken_pipe_ends():
        for place, _, detections in work.pictures(found):
            _say(sys.stdout, json.dumps({"source": found[place].name, **detections.to_dict()}))
        for medium in found:
            if medium.kind != "picture":
                with _open(medium) as film:
                    for number, (frame, detections) in enumerate(work.frames(medium, film)):
                        _say(sys.stdout, _frame_line(number, frame, detections, source=medium.name))
    return Prediction(output=str(_STANDARD_OUTPUT), pictures={}, videos=videos)


def _frame_line(number: int, frame: video.Frame, detections: PictureDetections, **facts: Any) -> str:
    """Writes the detections of a frame as a line of JSON."""
    return json.dumps({**facts, "frame": number, "seconds": round(frame.seconds, 3), **detections.to_dict()}) + "\n"


def _say(stream: TextIO, text: str) -> None:
    stream.write(text if text.endswith("\n") else f"{text}\n")
    stream.flush()


@contextlib.contextmanager
def _broken_pipe_ends() -> Iterator[None]:
    """Ends the work quietly when nobody reads its lines any more, as behind `| head`."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _ended_by_hand(medium: Medium) -> Iterator[threading.Event]:
    """Takes Ctrl-C for the end of a camera's pictures while the block runs, so that what is written is whole."""
    is_asked = threading.Event()
    if medium.kind != "camera" or threading.current_thread() is not threading.main_thread():
        yield is_asked
        return
    before = signal.signal(signal.SIGINT, lambda *_: is_asked.set())
    try:
        yield is_asked
    finally:
        signal.signal(signal.SIGINT, before)


def _batches(pairs: Iterator[tuple[Any, np.ndarray]], batch_size: int) -> Iterator[list[tuple[Any, np.ndarray]]]:
    """Groups pictures, by number and by pixels."""
    batch: list[tuple[Any, np.ndarray]] = []
    pixels = 0
    for pair in pairs:
        batch.append(pair)
        pixels += pair[1].shape[0] * pair[1].shape[1]
        if len(batch) == batch_size or pixels > _MOST_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _open(medium: Medium) -> contextlib.AbstractContextManager[video.Video]:
    """Opens a video or a camera."""
    return (
        video.open_camera(medium.camera) if medium.camera is not None else video.open_video(_path(medium), medium.name)
    )


def _check(medium: Medium) -> None:
    """Raises a UserError for what cannot be decoded, of a video its first frame."""
    if medium.kind == "picture":
        image_files.read_image(_path(medium), medium.name)
    else:
        with _open(medium):
            pass


def _path(medium: Medium) -> Path:
    assert medium.path is not None, "not fetched"
    return medium.path


def _targets(found: Sequence[Medium], output: Path) -> list[Path]:
    """Names what is written as the originals; equal names are numbered, and no original is replaced."""
    taken: set[str] = set()
    targets = []
    for medium in found:
        stem, number = medium.stem, 2
        while stem in taken:
            stem, number = f"{medium.stem}-{number}", number + 1
        taken.add(stem)
        targets.append(output / f"{stem}{'.jpg' if medium.kind == 'picture' else '.mp4'}")
    originals = {medium.path.resolve() for medium in found if medium.path is not None}
    for target in targets:
        if {target.resolve(), target.with_suffix(".jsonl").resolve()} & originals:
            raise UserError(f"`output` is `{output}`, where `{target.name}` would be replaced; give another folder.")
    return targets
