"""An output folder that appears as a whole or not at all: written to a temporary folder, renamed at the end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.storage import files


@contextlib.contextmanager
def output_folder(output: Path, source: Path, dry_run: bool, overwrite: bool) -> Iterator[Path | None]:
    """Yields a folder to write to that becomes `output` if the block succeeds, and is removed if it fails.

    Args:
        output: a missing or empty folder or, with `overwrite`, a converted dataset.
        source: folder that is read; it must not be inside the output.
        dry_run: yields None; nothing is written.
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
    """Raises a UserError rather than overwrite something that is not a converted dataset."""
    if source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"`output` {output} contains the source {source}; choose another folder.")
    if output.exists() and not output.is_dir():
        raise UserError(f"`output` {output} is a file; choose a folder that does not exist yet.")
    if not files.is_filled(output):
        return
    if not overwrite:
        raise UserError(f"`output` {output} is not empty; choose another folder, or replace it with `--overwrite`.")
    if not (output / store.MANIFEST).is_file():
        raise UserError(
            f"`output` {output} is not a converted dataset, so `--overwrite` won't replace it; choose another folder."
        )
