"""An output folder that appears whole or not at all: written beside its place, renamed at the end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.storage import files


@contextlib.contextmanager
def output_folder(output: Path, source: Path, dry_run: bool, overwrite: bool) -> Iterator[Path | None]:
    """Gives a folder to write into that becomes `output` if the block succeeds, and vanishes if it does not.

    Args:
        output: absent, an empty folder, or with `overwrite` a converted dataset.
        source: folder that is read; the output must not hold it.
        dry_run: gives none; nothing is written.
        overwrite: a converted dataset may be replaced.
    """
    if dry_run:
        yield None
        return
    output = output.absolute()
    _check_output(output, source, overwrite)
    try:
        with files.folder_aside(output) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"`output` {output} cannot be written: {error.strerror}.") from error


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    """Raises a UserError rather than write over something that is not ours."""
    if source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"`output` {output} holds the source {source}; name another folder.")
    if output.exists() and not output.is_dir():
        raise UserError(f"`output` {output} is a file; name a folder that does not exist.")
    if not files.is_filled(output):
        return
    if not overwrite:
        raise UserError(f"`output` {output} is not empty; name another folder, or replace it with `--overwrite`.")
    if not (output / store.MANIFEST).is_file():
        raise UserError(
            f"`output` {output} is not a converted dataset, so `--overwrite` leaves it alone; name another folder."
        )
