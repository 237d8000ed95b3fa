"""`predict`: detects objects in images, videos, cameras and streams; draws them or writes annotations.

In the output folder it writes each image and video with its boxes and, as soon as a source is finished, a line of JSON
(predictions.jsonl), from which it makes predictions.json at the end. With `format` it writes a dataset of annotations
to correct instead. Unreadable sources are skipped and reported. Running an interrupted command again resumes it;
earlier results are replaced only on request. To standard output it writes only lines of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from efficientdet import progress
from efficientdet.config import Precision, RuntimeName, Switch, Tiles
from efficientdet.errors import UserError, one_line
from efficientdet.inference import detector as detectors
from efficientdet.inference import image_batches, journal, labelling, prediction_directory, video_prediction
from efficientdet.media import locations
from efficientdet.result import Result
from efficientdet.structures import Category

_STANDARD_OUTPUT = Path("-")
_MOST_NAMED = 20  # sources that the terminal lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction(Result):
    """What `predict` wrote."""

    output: str
    images: dict[str, dict[str, Any]]
    """For each image as it was named: its size, its detections, and the annotated image or its copy. `a.gif#2` is the
    second frame of a.gif. Empty if lines went to standard output."""
    videos: dict[str, dict[str, Any]]
    """For each video, camera or stream: size, number of frames, seconds, annotated video, and lines of its frames."""
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    """Skipped sources, with the reason."""
    num_kept: int = 0
    """Number of sources with results from an earlier run of the same command."""
    format: str = "json"
    """Format of the annotations."""

    @property
    def is_shown(self) -> bool:
        """Returns whether the results went to standard output."""
        return self.output == str(_STANDARD_OUTPUT)

    def status(self) -> int:
        """Returns 1 if sources were skipped, else 0."""
        return 1 if self.skipped else 0

    def text(self) -> str:
        """Summarizes what was found and where it was written."""
        lines = [
            f"{name}: {len(found['detections'])} detections, {found['image']}" for name, found in self.images.items()
        ]
        lines += [f"{name}: {found['frames']} frames, {found['video']}" for name, found in self.videos.items()]
        if self.format != "json":
            number = sum(len(found["detections"]) for found in self.images.values())
            lines.append(f"{self.output}: {len(self.images)} images, {number} boxes, format {self.format}")
        if self.num_kept:
            lines.append(f"Reused the results for {self.num_kept} sources from an earlier run.")
        return "\n".join(map(one_line, lines))


def predict(
    weights: Path,
    sources: tuple[str | Path, ...],
    /,
    *,
    output: Path = Path("predictions"),
    format: labelling.Form = "json",
    overwrite: bool = False,
    score_threshold: float = 0.3,
    class_thresholds: dict[str, float] | None = None,
    classes: tuple[str, ...] | None = None,
    class_agnostic: bool = False,
    max_detections: int | None = None,
    tiles: Tiles | None = None,
    tile_overlap: float = 0.2,
    batch_size: int = 8,
    max_frames: int | None = None,
    image_size: tuple[int, int] | None = None,
    precision: Precision = "float32",
    runtime: RuntimeName = "auto",
    xla: Switch = "auto",
) -> Prediction:
    """Detects objects in images, videos, cameras and streams; draws boxes and writes JSON.

    Unreadable sources are skipped and reported, in which case the exit status is 1. Running an interrupted command
    again resumes it.

    Args:
        weights: weights file, run folder (uses its best weights), published name such as coco-d0, or export.
        sources: images, videos, folders of them, patterns such as 'photos/**/*.jpg', http(s) addresses, streams such as
            rtsp://host/path, or a camera number; Ctrl-C stops a camera or stream.
        output: folder for annotated images and videos and predictions.json; - prints one line of JSON per image and
            per video frame instead.
        format: json draws boxes on images and writes predictions.json; coco, yolo, voc, labelme and csv write copies of
            the images with annotations to correct, which `convert` reads.
        overwrite: replace the results from another command in `output`.
        score_threshold: drop detections with a lower score.
        class_thresholds: score thresholds for individual classes, by name or id, such as person 0.5 dog 0.2.
        classes: names or ids of the classes to keep; default: all.
        class_agnostic: among boxes with an IoU of at least 0.5, keep only the best, regardless of class.
        max_detections: maximum number of detections per image, best first; default: all.
        tiles: also detect in tiles of this height and width, px, for small objects in large images; input: the size of
            the network input.
        tile_overlap: minimum overlap of neighboring tiles, as a fraction of a tile's side.
        batch_size: maximum number of images per batch; cameras and streams always use 1.
        max_frames: maximum number of frames per video, animation, camera or stream; default: all.
        image_size: height and width of the network input, px; default: what the weights were trained with.
        precision: precision of the network's arithmetic.
        runtime: what runs the network; auto picks OpenVINO on a CPU if it is installed, else Keras.
        xla: compile Keras's graph with XLA; auto does so on a GPU.

    Returns:
        The detections; boxes in px of each image, rotated upright according to its EXIF orientation.

    Raises:
        UserError: the weights cannot be used, `output` has results from another command, or no source can be read; in
            each case nothing is written.
    """
    # Python callers may pass strings instead of paths, and a single source.
    weights, output = Path(weights), Path(output)
    sources = (sources,) if isinstance(sources, str | Path) else tuple(sources)
    if max_frames is not None and max_frames < 1:
        raise UserError(f"`max_frames` is {max_frames}; it must be at least 1.")
    is_printed = output == _STANDARD_OUTPUT
    if is_printed and format != "json":
        raise UserError(f"`format` is {format}, which cannot be printed; set `--output` to a folder.")
    found = [locations.resolve(medium) for medium in locations.find(sources)]
    _say_left_out(sources, output)
    choice: dict[str, Any] = {
        "score_threshold": score_threshold,
        "class_thresholds": class_thresholds,
        "classes": classes,
        "class_agnostic": class_agnostic,
        "max_detections": max_detections,
        "batch_size": batch_size,
        "image_size": image_size,
        "precision": precision,
        "runtime": runtime,
        "xla": xla,
    }

    def load() -> tuple[image_batches.Detect, tuple[Category, ...]]:
        detector = detectors.Detector(weights, **choice)
        return (
            lambda batch: detector.detect(list(batch), tiles=tiles, tile_overlap=tile_overlap),
            detector.categories,
        )

    looked = {"format": format, "tiles": tiles, "tile_overlap": tile_overlap, "max_frames": max_frames}
    settings = {"weights": str(weights), "weights_mark": _mark(weights), **choice, **looked}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = image_batches.Work(load=load, batch_size=batch_size, max_frames=max_frames, folder=Path(folder))
        if is_printed:
            return _print(found, work)
        directory = prediction_directory.Directory(output, format, found, settings, work, overwrite)
        directory.write()
    return _summary(directory)


def _say_left_out(sources: Sequence[str | Path], output: Path) -> None:
    """Reports source folders whose subfolders have images, which are skipped."""
    for folder in [Path(source) for source in sources if os.path.isdir(source)]:  # noqa: PTH112 - addresses are too long
        if inside := locations.find_inside(folder, without=folder / output.name):
            text = (
                f"Skipped the subfolders of `{folder}`, such as the one with `{inside}`; '{folder}/**/*' includes them."
            )
            progress.console.print(one_line(text), soft_wrap=True, markup=False)


def _summary(directory: prediction_directory.Directory) -> Prediction:
    """Collects the results of a command's sources."""
    images: dict[str, dict[str, Any]] = {}
    videos: dict[str, dict[str, Any]] = {}
    for task in directory.tasks:
        results = task.results or (task.entry or {}).get("results", {})
        (images if task.medium.kind == "image" else videos).update(results)
    skipped = {task.source: task.error for task in directory.tasks if task.error}
    _say_skipped(skipped, len(directory.tasks), directory.output / journal.SKIPPED)
    if images and not videos and not any(found["detections"] for found in images.values()):
        text = "No detections; a lower `--score-threshold` shows those that the model is less sure of."
        progress.console.print(text, soft_wrap=True, markup=False)
    return Prediction(
        output=str(directory.output),
        images=images,
        videos=videos,
        skipped=skipped,
        num_kept=sum(task.entry is not None for task in directory.tasks),
        format=directory.form,
    )


def _print(found: Sequence[locations.Medium], work: image_batches.Work) -> Prediction:
    """Prints one line of JSON per image and per video frame."""
    tasks = image_batches.plan(found, journal.Journal(_STANDARD_OUTPUT, {}))
    detect, _ = work.load()
    num_lines = 0
    with _broken_pipe_ends():
        for piece, detections in work.pieces(tasks, detect):
            piece.task.error = piece.error
            if detections is not None:
                frame = {} if piece.total == 1 else {"frame": piece.number}
                _say({"source": piece.task.source, **frame, **detections.to_dict()})
                num_lines += 1
        for task in tasks:
            if task.medium.kind != "image":
                try:
                    for line in video_prediction.lines(
                        task.medium, detect, work.batch_size, work.max_frames, work.folder
                    ):
                        _say({"source": task.source, **line})
                        num_lines += 1
                except UserError as error:
                    task.error = str(error)
    skipped = {task.source: task.error for task in tasks if task.error}
    if skipped and not num_lines:
        raise UserError(next(iter(skipped.values())))
    _say_skipped(skipped, len(tasks), None)
    return Prediction(output=str(_STANDARD_OUTPUT), images={}, videos={}, skipped=skipped)


def _say(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _broken_pipe_ends() -> Iterator[None]:
    """Stops quietly when the reader closes the pipe, as `| head` does."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes standard output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_skipped(skipped: dict[str, str], total: int, path: Path | None) -> None:
    """Reports the skipped sources on standard error."""
    if not skipped:
        return
    lines = [f"Skipped {len(skipped)} of {total} sources:"]
    lines += [f"  {one_line(reason)}" for reason in list(skipped.values())[:_MOST_NAMED]]
    if len(skipped) > _MOST_NAMED:
        lines.append(f"  and {len(skipped) - _MOST_NAMED} more" + (f", all in {path}" if path else ""))
    progress.console.print("\n".join(lines), soft_wrap=True, markup=False)


def _mark(weights: Path) -> list[list[Any]]:
    """Returns what identifies this version of the weights; for a run, of its best ones."""
    try:
        if (weights / "weights" / "best.safetensors").is_file():
            found = [weights / "weights" / "best.safetensors"]
        else:
            found = sorted(path for path in weights.rglob("*") if path.is_file()) if weights.is_dir() else [weights]
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found]
    except OSError:  # a published name, or an error that is reported when they are loaded
        return []
