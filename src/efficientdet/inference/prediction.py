"""`predict`: what is in images, videos, cameras and streams, drawn and written down, or as annotations.

Into a directory it writes each image and each video with its boxes, and a line of JSON a source as soon as it is done
(predictions.jsonl); at the end predictions.json is made of the lines. With `format` it writes a dataset of annotations
to correct instead. A source that cannot be read is left out and named. A run that is stopped goes on when the same
command runs again; earlier results are only ever replaced on request. To standard output it writes lines of JSON alone.
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
    """Image as it was given -> its size, its detections, and the annotated image, or its copy. `a.gif#2` is the second
    frame of a.gif. Empty if lines were written."""
    videos: dict[str, dict[str, Any]]
    """Video, camera or stream -> its size, number of frames, seconds, the annotated video, the lines of its frames."""
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    """Source that could not be used -> why."""
    num_kept: int = 0
    """Sources whose results were there from an earlier run of the same command."""
    format: str = "json"
    """Of the annotations."""

    @property
    def is_shown(self) -> bool:
        """Whether a line an image went to standard output."""
        return self.output == str(_STANDARD_OUTPUT)

    def status(self) -> int:
        """Returns 1 where sources could not be used."""
        return 1 if self.skipped else 0

    def text(self) -> str:
        """Says what was found and where it is."""
        lines = [f"{name}: {len(found['detections'])} found, {found['image']}" for name, found in self.images.items()]
        lines += [f"{name}: {found['frames']} frames, {found['video']}" for name, found in self.videos.items()]
        if self.format != "json":
            number = sum(len(found["detections"]) for found in self.images.values())
            lines.append(f"{self.output}: {len(self.images)} images, {number} boxes, format {self.format}")
        if self.num_kept:
            lines.append(f"{self.num_kept} of these were there from an earlier run.")
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
    """Detects in images, videos, cameras and streams, draws what was found, and writes it down as JSON.

    A source that cannot be read is left out and named, and the exit status is 1 then. The same command goes on where it
    was stopped.

    Args:
        weights: weights file, folder of a run (its best weights), a published name such as coco-d0, or an export.
        sources: images, videos, folders of them, patterns such as 'photos/**/*.jpg', http(s) addresses, streams such as
            rtsp://host/path, or the number of a camera; Ctrl-C ends a camera or a stream.
        output: directory for annotated images and videos and predictions.json; - prints a line of JSON for each image
            and each frame of a video instead.
        format: json: images with boxes drawn, and predictions.json; coco, yolo, voc, labelme, csv: copies of the images
            with annotations to correct, which `convert` reads.
        overwrite: replace the results of another command in `output`.
        score_threshold: detections below this are left out.
        class_thresholds: classes, by name or id, that have a threshold of their own, such as person 0.5 dog 0.2.
        classes: names or ids of the classes that are wanted; all if not given.
        class_agnostic: of boxes that share half of their union, whatever their classes, only the best stays.
        max_detections: most detections an image, the best ones; all if not given.
        tiles: look at pieces of this height and width too, px, for small objects in large images; input: as large as
            the network input.
        tile_overlap: least share of a tile's side that the next one sees too.
        batch_size: most images in the network at once; a camera or a stream has 1.
        max_frames: of each video, animation, camera or stream; all if not given.
        image_size: height and width of the network input, px; what the weights were trained with if not given.
        precision: of the arithmetic inside the network.
        runtime: what runs the network; auto: OpenVINO on a CPU, where its extra is installed, else Keras.
        xla: compile Keras's graph with XLA; auto: on a GPU.

    Returns:
        What was found; boxes in px of each image, upright as its EXIF orientation says.

    Raises:
        UserError: the weights cannot be used, `output` has results of another command, or no source can be read;
            nothing is written then.
    """
    # In Python a path is often a string, and one source is often alone.
    weights, output = Path(weights), Path(output)
    sources = (sources,) if isinstance(sources, str | Path) else tuple(sources)
    if max_frames is not None and max_frames < 1:
        raise UserError(f"`max_frames` is {max_frames}; it must be at least 1.")
    is_printed = output == _STANDARD_OUTPUT
    if is_printed and format != "json":
        raise UserError(f"`format` is {format}, which is files; give a directory as `--output`.")
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
    """Says which folders have images in folders inside them, which are not looked at."""
    for folder in [Path(source) for source in sources if os.path.isdir(source)]:  # noqa: PTH112 - addresses are too long
        if inside := locations.find_inside(folder, without=folder / output.name):
            text = f"Folders inside `{folder}` are left out, such as that of `{inside}`; '{folder}/**/*' takes them."
            progress.console.print(one_line(text), soft_wrap=True, markup=False)


def _summary(directory: prediction_directory.Directory) -> Prediction:
    """Gathers what there is of the sources of a command."""
    images: dict[str, dict[str, Any]] = {}
    videos: dict[str, dict[str, Any]] = {}
    for task in directory.tasks:
        results = task.results or (task.entry or {}).get("results", {})
        (images if task.medium.kind == "image" else videos).update(results)
    skipped = {task.source: task.error for task in directory.tasks if task.error}
    _say_skipped(skipped, len(directory.tasks), directory.output / journal.SKIPPED)
    if images and not videos and not any(found["detections"] for found in images.values()):
        text = "Nothing was found; a lower `--score-threshold` shows what the model is less sure of."
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
    """Prints a line for each image, and for each frame of a video."""
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
    """Ends the work quietly when nobody reads its lines any more, as behind `| head`."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_skipped(skipped: dict[str, str], total: int, path: Path | None) -> None:
    """Names the sources that could not be used, on standard error."""
    if not skipped:
        return
    lines = [f"{len(skipped)} of {total} sources could not be used:"]
    lines += [f"  {one_line(reason)}" for reason in list(skipped.values())[:_MOST_NAMED]]
    if len(skipped) > _MOST_NAMED:
        lines.append(f"  and {len(skipped) - _MOST_NAMED} more" + (f", all in {path}" if path else ""))
    progress.console.print("\n".join(lines), soft_wrap=True, markup=False)


def _mark(weights: Path) -> list[list[Any]]:
    """Says what tells these weights from others of the same name; of a run its best ones count."""
    try:
        if (weights / "weights" / "best.safetensors").is_file():
            found = [weights / "weights" / "best.safetensors"]
        else:
            found = sorted(path for path in weights.rglob("*") if path.is_file()) if weights.is_dir() else [weights]
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found]
    except OSError:  # a published name, or said when they are loaded
        return []
