"""The output folder of `predict`: images and videos as they are finished, a journal line for each, final files last.

An interrupted command resumes when it runs again. Existing files are replaced only on request.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientdet import progress
from efficientdet.errors import UserError, one_line
from efficientdet.inference import image_batches, journal, labelling, video_prediction
from efficientdet.inference.detections import ImageDetections
from efficientdet.inference.image_batches import Detect, Piece, Task, Work
from efficientdet.media import fonts, locations
from efficientdet.storage import files
from efficientdet.structures import Category


class Directory:
    """An output folder that is being filled."""

    def __init__(
        self,
        output: Path,
        form: labelling.Form,
        found: Sequence[locations.Medium],
        settings: dict[str, Any],
        work: Work,
        overwrite: bool,
    ):
        """Reads existing results.

        Args:
            output: the folder; created with the first result.
            form: what to write.
            found: the sources.
            settings: plain JSON values; must equal those of existing results.
            work: how sources are processed.
            overwrite: replace existing results.

        Raises:
            UserError: existing results have different settings.
        """
        self.output, self.form, self.work, self.overwrite = output, form, work, overwrite
        path = output / journal.NAME
        self.journal = journal.Journal(path, settings) if overwrite else journal.read(output, settings)
        if path.exists():  # a pattern such as **/*.jpg also matches the images that we drew
            own = output.resolve()
            found = [one for one in found if one.path is None or not one.path.resolve().is_relative_to(own)]
            if not found:
                raise UserError(f"`sources` are all in the output folder `{output}`; {journal.ADVICE}.")
        self.tasks = image_batches.plan(found, self.journal)
        self.open = contextlib.ExitStack()
        self.is_open = False

    def write(self) -> None:
        """Processes the unfinished sources and makes the final files.

        Raises:
            UserError: no source can be read, or an existing file would be replaced.
        """
        fresh = [task for task in self.tasks if task.entry is None]
        self._check(bool(fresh))
        with self.open:
            if fresh:
                files.check_writable(self.output / journal.FINAL)
                detect, categories = self.work.load()
                labelling.check_names(self.form, categories)
                if self.form == "json":
                    _say_legend(categories)
                self.journal.facts = {"categories": [[category.id, category.name] for category in categories]}
                try:
                    self._look(detect)
                except KeyboardInterrupt as error:
                    raise self._interruption(error) from None
            self._finish(fresh)

    def _check(self, has_work: bool) -> None:
        """Raises a UserError if an existing file would be replaced."""
        originals = {task.medium.path.resolve() for task in self.tasks if task.medium.path is not None}
        is_ours = self.journal.exists or self.overwrite
        if self.form == "json":
            for task in self.tasks:
                suffixes = (".jpg",) if task.medium.kind == "image" else (".mp4", ".jsonl")
                for target in [self.output / f"{task.stem}{suffix}" for suffix in suffixes]:
                    if target.resolve() in originals:
                        raise UserError(
                            f"`output` is `{self.output}`, where the source `{target.name}` would be overwritten; "
                            "use another folder."
                        )
                    if task.entry is None and not is_ours and target.exists():
                        raise UserError(f"`{target}` already exists; {journal.ADVICE}.")
        elif any(path.is_relative_to(self.output.resolve()) for path in originals):
            raise UserError(f"`output` is `{self.output}`, which contains sources; use another folder.")
        elif not self.journal.path.exists() and files.is_filled(self.output):
            raise UserError(f"`output` is `{self.output}`, which is not empty; use another folder.")
        elif self.journal.is_finished and has_work:
            raise UserError(
                f"`{self.output}` is finished, and its annotations may have been corrected since then; "
                f"{journal.ADVICE}."
            )

    def _look(self, detect: Detect) -> None:
        """Processes the images, then the videos."""
        for piece, detections in self.work.pieces(self.tasks, detect):
            task = piece.task
            if detections is not None:
                task.results[piece.name] = detections.to_dict() | {"image": self._write_image(piece, detections)}
            task.error = piece.error
            if piece.is_last and task.results:
                self._append(task)
        for task in self.tasks:
            if task.entry is None and task.medium.kind != "image":
                if self.form != "json":
                    task.error = (
                        f"`{task.source}` is a {task.medium.kind}; `--format {self.form}` supports only images."
                    )
                    continue
                target = self.output / f"{task.stem}.mp4"
                try:
                    facts = video_prediction.write(
                        task.medium, target, detect, self.work.batch_size, self.work.max_frames, self.work.folder
                    )
                except UserError as error:
                    task.error = str(error)
                else:
                    task.results, task.files = {task.source: facts}, [target.name, f"{task.stem}.jsonl"]
                    self._append(task)

    def _write_image(self, piece: Piece, detections: ImageDetections) -> str:
        """Writes an image with its boxes, or a copy of it, and returns the path."""
        stem = piece.task.stem
        if piece.total > 1:
            stem = f"{stem}-{piece.number + 1:03d}"
            while any(stem == task.stem for task in self.tasks):
                stem += "-frame"
        self._start()
        if self.form == "json":
            name = Path(f"{stem}.jpg")
            drawn = detections.draw(piece.pixels)
            files.write_aside(self.output / name, lambda temporary: drawn.save(temporary, quality=92))
        else:
            source = piece.path if piece.total == 1 else None
            name = labelling.image_path(self.form, stem, source)
            labelling.copy_image(source, piece.pixels, self.output / name)
        piece.task.files.append(name.as_posix())
        return str(self.output / name)

    def _append(self, task: Task) -> None:
        self._start()
        self.journal.append(task.source, task.to_entry())

    def _start(self) -> None:
        """Opens the journal at the first result, so that a command without results leaves nothing."""
        if not self.is_open:
            self.is_open = True
            if self.overwrite:
                journal.remove(self.output)
            self.open.enter_context(self.journal.writing())

    def _finish(self, fresh: Sequence[Task]) -> None:
        """Makes the final files from the journal.

        Raises:
            UserError: no source could be read.
        """
        if not any(task.results or task.entry for task in self.tasks):
            count = len(fresh) - 1
            others = (
                f" The other {f'{count} sources' if count > 1 else 'source'} cannot be read either." if count else ""
            )
            raise UserError(f"{fresh[0].error}{others}")
        is_there = self.form != "json" or (self.output / journal.FINAL).exists()
        if self.journal.is_finished and not self.is_open and is_there:
            return
        self._start()
        entries = self._entries()
        named = []
        if self.form == "json":
            results = {name: found for entry in entries for name, found in entry["results"].items()}
            files.write_json(self.output / journal.FINAL, results)
        else:
            found = [pair for entry in entries for pair in zip(entry["files"], entry["results"].values(), strict=True)]
            categories = [Category(id=number, name=name) for number, name in self.journal.facts["categories"]]
            named = labelling.write(self.form, self.output, found, categories)
        skipped = "".join(f"{one_line(task.error)}\n" for task in self.tasks if task.error)
        path = self.output / journal.SKIPPED
        if skipped:
            files.write_text(path, skipped)
        else:
            path.unlink(missing_ok=True)
        self.journal.finish(named)

    def _entries(self) -> list[dict[str, Any]]:
        """Lists the entries of the folder: other commands' sources first, then our images, then our videos."""
        mine = {task.source for task in self.tasks}
        names = [name for name in self.journal.entries if name not in mine]
        for is_film in (False, True):
            names += [task.source for task in self.tasks if (task.medium.kind != "image") == is_film]
        return [self.journal.entries[name] for name in names if name in self.journal.entries]

    def _interruption(self, error: KeyboardInterrupt) -> KeyboardInterrupt:
        """Reports the progress and how to resume."""
        if not self.is_open:
            return error
        number = sum(task.source in self.journal.entries for task in self.tasks)
        said = f"predict: interrupted, {number} of {len(self.tasks)} sources done; run the same command to resume."
        progress.console.print(said, soft_wrap=True, markup=False)
        return KeyboardInterrupt(said)


def _say_legend(categories: Sequence[Category]) -> None:
    """Reports the classes that are drawn as numbers because no installed font has their characters."""
    names = [category.name for category in categories]
    shown = fonts.show(names, [category.id for category in categories])
    legend = [
        f"{text} is {name}" for text, name in zip(shown, names, strict=True) if text.startswith("#") and text != name
    ]
    if legend:
        text = f"No installed font has the characters of some class names; in the images {', '.join(legend)}."
        progress.console.print(
            f"{one_line(text)} Install a font that has them, such as Noto Sans.", soft_wrap=True, markup=False
        )
