"""The files of a run folder other than metrics, weights and checkpoints."""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np

import efficientdet
from efficientdet import knobs
from efficientdet.config import ExperimentConfig
from efficientdet.errors import UserError
from efficientdet.media import draw
from efficientdet.storage import files
from efficientdet.structures import Category
from efficientdet.training.dataset import Dataset
from efficientdet.training.distributed import liveness, processes
from efficientdet.training.logs.metrics import MetricsWriter
from efficientdet.training.state import checkpoint, continuation
from efficientdet.training.validation import ValidationResult

CONFIG, SUMMARY = "config.json", continuation.SUMMARY

# Facts about the data that may differ when a run is resumed; `_check_data` compares the contents.
_FREE_FACTS = {"dataset.num_examples", "dataset.train", "dataset.validation"}

_FOLDERS = ("checkpoints", "weights", "evaluation")

_LOCKS: dict[Path, filelock.BaseFileLock] = {}  # of the folders that this process has claimed

_IMAGES = 8
_SHOWN_SCORE = 0.3


def check_writable(folder: Path) -> None:
    """Raises a UserError if a run could not be written to a folder; leaves nothing behind."""
    files.check_writable(folder / CONFIG)


def claim(facts: dict[str, Any]) -> Path:
    """Creates the run folder, or checks that an existing one belongs to the same run.

    Args:
        facts: the result of `facts`.

    Raises:
        UserError: the folder belongs to a run with different settings or data, or cannot be written.
    """
    now = json.loads(json.dumps(facts["config"]))
    folder = Path(now["run_dir"]).expanduser()
    path = folder / CONFIG
    if path.exists():
        if any((folder / "checkpoints").glob("step-*")):
            _check_same(path, now)
    elif folder.is_dir() and any(not _is_begun(entry) for entry in folder.iterdir()):
        raise UserError(f"`{folder}` has files but no {CONFIG}, so it is not a run; use an empty or new `--run-dir`.")
    try:
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        _lock(folder)
        for partial in [*folder.glob(f"{files.PARTIAL}*"), *folder.glob(f"*/{files.PARTIAL}*")]:
            partial.unlink(missing_ok=True)
        files.write_json(path, now)
    except OSError as error:
        raise UserError(f"`{folder}` cannot be written: {error.strerror}; use another `--run-dir`.") from error
    return folder


def facts(config: ExperimentConfig, dataset: Dataset, derived: dict[str, float | str]) -> dict[str, Any]:
    """Describes a run in JSON values: config with facts about the dataset, class table, version.

    Args:
        config: config as given; derived values stay None in it, so that the file repeats the command.
        dataset: the data it trains on.
        derived: the derived values.
    """
    categories = [dataclasses.asdict(category) for category in dataset.categories]
    seen = {"num_examples": dataset.num_examples, "categories": categories, **dataset.checksums()}
    return {
        "config": {**knobs.to_dict(config), "dataset": seen, "derived": derived},
        "categories": categories,
        "version": efficientdet.__version__,
    }


def _is_begun(entry: Path) -> bool:
    """Returns whether an entry of the folder may be left by a run that was killed before it wrote its config."""
    if entry.is_dir():
        return entry.name == liveness.FOLDER or (entry.name in _FOLDERS and not any(entry.iterdir()))
    return entry.name == ".lock" or entry.name.startswith(files.PARTIAL)


def _lock(folder: Path) -> None:
    """Keeps a second run out of the folder until `released` or the process ends."""
    lock = filelock.FileLock(folder / ".lock", blocking=False, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"`{folder}` is in use by another process; wait for it, or use another `--run-dir`.") from error
    _LOCKS[folder.resolve()] = lock


@contextlib.contextmanager
def released(folder: Path) -> Iterator[None]:
    """Releases the folder's lock at the end of the block if it was taken in it: a notebook outlives its runs."""
    is_held = folder.resolve() in _LOCKS
    try:
        yield
    finally:
        if not is_held and (lock := _LOCKS.pop(folder.resolve(), None)) is not None:
            lock.release()


def _check_same(path: Path, now: dict[str, Any]) -> None:
    """Compares with the config of the existing run."""
    try:
        before = json.loads(path.read_text())
        if not isinstance(before, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise UserError(f"`{path}` cannot be read ({error}); use another `--run-dir`.") from error
    if before.get("preset") == now["preset"]:  # if the presets differ, report that first
        _check_data(path.parent, before, now)
    # A knob that is newer than the run counts with its default.
    defaults = json.loads(json.dumps(knobs.to_dict(ExperimentConfig())))
    old, new = {**knobs.flatten(defaults), **knobs.flatten(before)}, knobs.flatten(now)
    free = knobs.free(ExperimentConfig()) | _FREE_FACTS
    differing = sorted(
        (name for name in old.keys() | new.keys() if name not in free and old.get(name) != new.get(name)),
        # A different preset changes other knobs too. Derived values differ because something else does, or because
        # another version derives them differently.
        key=lambda name: (name != "preset", name.startswith("derived."), name),
    )
    if differing:
        name = differing[0]
        raise UserError(
            continuation.explain(path.parent, old, new, differing)
            or f"`{path.parent}` is a run with {name} = {old.get(name)!r}, but now it is {new.get(name)!r}; "
            "use the same value to resume the run, or another `--run-dir` for a new one."
        )


def _check_data(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares the contents of the datasets, wherever they are stored."""
    old, new = before.get("dataset"), now["dataset"]
    advice = f"or use another `--run-dir`; `--weights {folder}` starts it from this run's weights."
    for split, done in (("train", "trained"), ("validation", "validated")):
        if not isinstance(old, dict) or split not in old:
            raise UserError(
                f"`{folder}` is a run of an earlier version that did not record the checksum of its data, so it is "
                f"unknown whether the data are the same. Resume it with that version, {advice}"
            )
        if old[split] != new[split]:
            then, given = (_say_where(config, split) for config in (before, now))
            raise UserError(
                f"`data.{split}` differs from the data that the run in `{folder}` was {done} on: {given} "
                f"now, {then} then. Use the same images in the same order (their folder may differ), {advice}"
            )


def _say_where(config: dict[str, Any], split: str) -> str:
    """Describes the data of a run: where they are, number of training images, start of the checksum."""
    data, seen = config["data"], config["dataset"]
    if seen[split] is None:
        return "no data"
    where = data["train"] or data["source"]
    if split == "validation":
        where = data["validation"] or where
    number = f", {seen['num_examples']:,} images" if split == "train" else ""
    return f"`{where}`{number} (checksum {seen[split][:8]})"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Reads summary.json of a claimed folder; None means the run hasn't ended.

    A summary left by an earlier run is removed.
    """
    found = continuation.finished(folder)
    is_done = bool(processes.agree(int(found is not None)))
    if not is_done and processes.is_first():
        (folder / SUMMARY).unlink(missing_ok=True)
    return found if is_done else None


def find_checkpoint(folder: Path) -> Path | None:
    """Finds the newest checkpoint; all processes use the one that the first process sees."""
    newest = checkpoint.latest(folder / "checkpoints") if processes.is_first() else None
    step = processes.agree(checkpoint.step_of(newest) if newest else -1)
    return checkpoint.path_of(folder / "checkpoints", step) if step >= 0 else None


def log(folder: Path, text: str) -> None:
    """Appends a line with the time to log.txt."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    path = folder / "log.txt"
    with files.explained(path), path.open("a") as file:
        file.write(f"{now} {text}\n")


def write_evaluation(
    folder: Path, step: int, found: ValidationResult, categories: tuple[Category, ...], metrics: MetricsWriter
) -> None:
    """Writes the metrics of an evaluation, and a contact sheet with ground truth and detections side by side."""
    from PIL import Image

    files.write_json(folder / "evaluation" / f"step-{step:08d}.json", found.evaluation.to_dict())
    names = [category.name for category in categories]
    images = []
    for batch, detections in found.examples:
        arrays = {**batch, **{f"found_{name}": value for name, value in detections.items()}}
        for row in range(min(_IMAGES, len(batch["images"]))):
            images.append(_pair({name: np.asarray(value)[row] for name, value in arrays.items()}, names))
    sheet = draw.contact_sheet(images, columns=2)
    path = folder / "evaluation" / f"step-{step:08d}.jpg"
    files.write_aside(path, lambda temporary: Image.fromarray(sheet).save(temporary, quality=90))
    metrics.image("truth and detections", sheet, step)


def _pair(row: dict[str, Any], names: list[str]) -> np.ndarray:
    """Draws one image twice: with its ground truth and with its detections."""
    height, width = row["valid_size"]
    image = row["images"][:height, :width]
    sure = row["found_scores"] >= _SHOWN_SCORE
    both = []
    for boxes, labels, scores in (
        (row["boxes"][: row["num_boxes"]], row["labels"][: row["num_boxes"]], None),
        (row["found_boxes"][sure], row["found_labels"][sure], row["found_scores"][sure]),
    ):
        larger, moved = draw.enlarge(image, boxes, 384)
        both.append(draw.draw_detections(larger, moved, labels, scores, names))
    return draw.side_by_side(both[0], both[1], ("truth", "detections"))
