"""Results of `predict`, one line of JSON a source, written as they come.

The first line holds the settings; a line for each source follows as soon as it is done. A process that is killed leaves
at most half a line, which is cut off when the next one goes on. One process at a time writes. Running the same command
again goes on, results for other sources join those that are there, and other settings are refused: nothing earlier is
ever replaced without `overwrite`.
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
"""Of the file in the output directory."""
FINAL = "predictions.json"
"""Of the file that is made of it, for images with boxes drawn."""
SKIPPED = "skipped.txt"
"""Of the list of sources that could not be used."""

ADVICE = "give another `--output`, or `--overwrite` to replace them"
"""What to do about results that are in the way."""

_VERSION = 2
_MARK = "_mark"  # ends the name of a setting that tells versions of a file apart
_TEMPORARY = f"{files.PARTIAL}*"


class Journal:
    """The lines of an output directory; of a source the last one counts. Made by `read`, open inside `writing`."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        """Starts with no entry; nothing is written before the first one.

        Args:
            path: the file.
            settings: plain JSON values; what they must be to go on.
        """
        self.path, self.settings = path, settings
        self.facts: dict[str, Any] = {}
        """Plain JSON values written beside the settings, which need not be the same to go on."""
        self.entries: dict[str, dict[str, Any]] = {}
        """Source -> `mark` (what tells this version of it from another), `files` and whatever was found."""
        self.is_finished = False
        """Whether the last command came to its end."""
        self._whole = 0  # bytes
        self._file: TextIO | None = None

    @property
    def exists(self) -> bool:
        """Says whether an earlier process has begun to write."""
        return self._whole > 0

    def append(self, source: str, entry: dict[str, Any]) -> None:
        """Writes the entry of a source.

        Args:
            source: what it is called.
            entry: plain JSON values.
        """
        self._write({"source": source, **entry})
        self.entries[source], self.is_finished = entry, False

    def finish(self, named: Sequence[str]) -> None:
        """Notes that the command came to its end.

        Args:
            named: files that were made of the entries, relative to the directory, beside those of this module.
        """
        if not self.is_finished:
            self._write({"finished": len(self.entries), "files": list(named)})
            self.is_finished = True

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lets `append` write while the block runs.

        Raises:
            UserError: another process writes into it, or the disk is full.
        """
        with files.explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a", encoding="utf-8")
        with file:
            if not filelock.lock_descriptor(file.fileno(), blocking=False):
                raise UserError(
                    f"`{self.path}` is being written by another `predict`; wait for it, or give another `--output`."
                )
            with files.explained(self.path):
                file.truncate(self._whole)
                for left in self.path.parent.rglob(_TEMPORARY):  # of a process that was killed
                    left.unlink(missing_ok=True)
            self._file = file
            if not self._whole:
                self._write({"version": _VERSION, "settings": self.settings, **self.facts})
            yield

    def _write(self, values: dict[str, Any]) -> None:
        assert self._file is not None, "outside of `writing`"
        with files.explained(self.path):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()  # to the system: a killed process loses nothing

    def take(self, content: bytes) -> None:
        """Reads the lines of an earlier process.

        Raises:
            UserError: they are not such lines, or those of other settings.
        """
        *lines, _ = content.split(b"\n")  # what stands behind the last line's end is half a line
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
            raise UserError(f"`{self.path}` is damaged, line {1 + _first_bad(lines)}; {ADVICE}.") from error
        if known is None:
            raise UserError(f"`{self.path}` is of another version of this program; {ADVICE}.")
        names = [name for name in {**known, **self.settings} if known.get(name) != self.settings.get(name)]
        if names:
            was, now = (json.dumps(settings.get(names[0])) for settings in (known, self.settings))
            changed = f"`{names[0]}` was {was}, is {now}"
            if names[0].endswith(_MARK):
                changed = f"the file of `{names[0].removesuffix(_MARK)}` has changed"
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"`{self.path.parent}` has results of {len(self.entries)} sources with other settings ({changed}"
                f"{others}); {ADVICE}."
            )
        self._whole = sum(len(line) + 1 for line in lines)


def read(output: Path, settings: dict[str, Any]) -> Journal:
    """Reads what an earlier process wrote; empty if there is nothing.

    Args:
        output: the directory.
        settings: plain JSON values.

    Raises:
        UserError: the earlier results are of other settings, or there are some without a journal.
    """
    path = output / NAME
    found = Journal(path, json.loads(json.dumps(settings)))
    try:
        if path.exists():
            found.take(path.read_bytes())
        elif (output / FINAL).exists():
            raise UserError(f"`{output / FINAL}` has results of an earlier `predict`; {ADVICE}.")
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror or error}.") from error
    return found


def remove(output: Path) -> None:
    """Removes earlier results: the files that the journal and `predictions.json` of a directory name, and these two.

    Earlier versions called an image `picture` there.
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
