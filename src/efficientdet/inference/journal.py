"""The journal of `predict`: one line of JSON per source, written as soon as the source is finished.

The first line holds the settings. A process that is killed leaves at most half a line, which the next one cuts off. One
process at a time writes. Running the same command again resumes it, results of other sources are added to the existing
ones, and different settings are refused: earlier results are never replaced without `overwrite`.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import filelock

from efficientdet.errors import UserError
from efficientdet.storage import files

NAME = "predictions.jsonl"
"""Name of the journal in the output folder."""
FINAL = "predictions.json"
"""Name of the final file made from it if boxes are drawn on images."""
SKIPPED = "skipped.txt"
"""Name of the list of skipped sources."""

ADVICE = "use another `--output`, or `--overwrite` to replace the results"
"""What to do about existing results."""

_VERSION = 2
_MARK = "_mark"  # suffix of a setting that identifies the version of a file
_TEMPORARY = f"{files.PARTIAL}*"


class Journal:
    """The journal of an output folder; the last line of a source counts. Made by `read`, writable inside `writing`."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        """Starts empty; nothing is written before the first entry.

        Args:
            path: the file.
            settings: plain JSON values; must be the same to resume.
        """
        self.path, self.settings = path, settings
        self.facts: dict[str, Any] = {}
        """Plain JSON values written next to the settings; they may differ when resuming."""
        self.entries: dict[str, dict[str, Any]] = {}
        """Entries by source: `mark` (identifies the version of the file), `files` and the results."""
        self.is_finished = False
        """Whether the last command finished."""
        self._whole = 0  # bytes
        self._file: TextIO | None = None

    @property
    def exists(self) -> bool:
        """Returns whether an earlier process has written to it."""
        return self._whole > 0

    def append(self, source: str, entry: dict[str, Any]) -> None:
        """Writes the entry of a source.

        Args:
            source: name of the source.
            entry: plain JSON values.
        """
        self._write({"source": source, **entry})
        self.entries[source], self.is_finished = entry, False

    def finish(self, named: Sequence[str]) -> None:
        """Records that the command finished.

        Args:
            named: files made from the entries, relative to the folder, other than those of this module.
        """
        if not self.is_finished:
            self._write({"finished": len(self.entries), "files": list(named)})
            self.is_finished = True

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Opens the journal for `append` while the block runs.

        Raises:
            UserError: another process is writing to it, or the disk is full.
        """
        with files.explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a", encoding="utf-8")
        with file:
            if not filelock.lock_descriptor(file.fileno(), blocking=False):
                raise UserError(
                    f"`{self.path}` is being written by another `predict`; wait for it, or use another `--output`."
                )
            with files.explained(self.path):
                file.truncate(self._whole)
                for left in self.path.parent.rglob(_TEMPORARY):  # left by a killed process
                    left.unlink(missing_ok=True)
            self._file = file
            if not self._whole:
                self._write({"version": _VERSION, "settings": self.settings, **self.facts})
            yield

    def _write(self, values: dict[str, Any]) -> None:
        assert self._file is not None, "outside of `writing`"
        with files.explained(self.path):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()  # to the operating system, so that a killed process loses nothing

    def take(self, content: bytes) -> None:
        """Reads the lines of an earlier process.

        Raises:
            UserError: the lines are damaged, or have different settings.
        """
        *lines, _ = content.split(b"\n")  # anything after the last newline is half a line
        try:
            head, *rest = [json.loads(line) for line in lines] or [None]
            if head is None:
                return
            known = dict(head["settings"]) if head["version"] == _VERSION else None
            self.facts = {name: value for name, value in head.items() if name not in ("version", "settings")}
            for values in rest:
                self.is_finished = "finished" in values
                if not self.is_finished:
                    self.entries[values.pop("source")] = values
            assert all(isinstance(entry["files"], list) for entry in self.entries.values())
        except (ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
            raise UserError(f"`{self.path}` is damaged at line {1 + _first_bad(lines)}; {ADVICE}.") from error
        if known is None:
            raise UserError(f"`{self.path}` was written by another version of this program; {ADVICE}.")
        names = [name for name in {**known, **self.settings} if known.get(name) != self.settings.get(name)]
        if names:
            was, now = (json.dumps(settings.get(names[0])) for settings in (known, self.settings))
            changed = f"`{names[0]}` was {was}, now {now}"
            if names[0].endswith(_MARK):
                changed = f"the file of `{names[0].removesuffix(_MARK)}` has changed"
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"`{self.path.parent}` has results from {len(self.entries)} sources with different settings ({changed}"
                f"{others}); {ADVICE}."
            )
        self._whole = sum(len(line) + 1 for line in lines)


def read(output: Path, settings: dict[str, Any]) -> Journal:
    """Reads the journal of an earlier process; it is empty if there is none.

    Args:
        output: the folder.
        settings: plain JSON values.

    Raises:
        UserError: the earlier results have different settings, or there is no journal for them.
    """
    path = output / NAME
    found = Journal(path, json.loads(json.dumps(settings)))
    try:
        if path.exists():
            found.take(path.read_bytes())
        elif (output / FINAL).exists():
            raise UserError(f"`{output / FINAL}` already has results from `predict`; {ADVICE}.")
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror or error}.") from error
    return found


def remove(output: Path) -> None:
    """Removes earlier results: the journal, `predictions.json`, and the files that these two name.

    Earlier versions used the key `picture` for an image.
    """
    named: set[str] = set()
    with contextlib.suppress(OSError):
        for line in (output / NAME).read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                named |= set(json.loads(line).get("files", []))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        for found in json.loads((output / FINAL).read_text(encoding="utf-8")).values():
            named |= {Path(found[key]).name for key in ("image", "picture", "video", "lines") if key in found}
    root = output.resolve()
    with files.explained(output):
        for name in (*named, FINAL, SKIPPED, NAME):
            path = output / str(name)
            if path.parent.resolve().is_relative_to(root) and path.is_file():
                path.unlink()


def _first_bad(lines: list[bytes]) -> int:
    """Finds the first line that is not a JSON object."""
    for number, line in enumerate(lines):
        try:
            if not isinstance(json.loads(line), dict):
                return number
        except ValueError:
            return number
    return 0
