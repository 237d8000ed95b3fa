"""Weights by name: google/automl's published COCO weights, downloaded and imported into the cache once.

`coco-d0` to `coco-d7x` and `coco-lite0` to `coco-lite4`; if the model is known, `coco` is enough. No checksums are
published, so the check is that the archive unpacks and every tensor fits the model.
"""

import os
import shutil
from pathlib import Path

from efficientdet import presets, progress
from efficientdet.checkpoints import importing
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.storage import archives, files, web

COCO = "coco"
ADDRESS_VARIABLE = "EFFICIENTDET_WEIGHTS_URL"
"""Environment variable with the address of a mirror of the published weights."""

_ADDRESS = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientdet"
# D7x, the largest, is 0.9 GB: two copies of each variable, and the optimizer's.
_LARGEST_ARCHIVE = 4 * 10**9
_SILENCE = 30.0  # s without data, after which the server counts as dead
_ATTEMPTS = 3
_NAMES = [name for name in presets.MODELS if name != "demo"]


def find_weights(location: str | Path, preset: str = "") -> Path:
    """Finds the weights file at `location`, and downloads it if it is a published one.

    Args:
        location: a weights file, a run folder, or a name such as `coco-d0`.
        preset: preset of the model, so that the name `coco` is enough.

    Returns:
        A weights file of this project.

    Raises:
        UserError: the weights do not exist, or cannot be downloaded.
    """
    name = str(location)
    if name == COCO and not Path(name).exists():
        if preset not in _NAMES:
            raise UserError(f"`{COCO}` does not name a model; choose from {COCO}-{f', {COCO}-'.join(_NAMES)}.")
        name = f"{COCO}-{preset}"
    if name.startswith(f"{COCO}-") and not Path(name).exists():
        return _fetch_coco(name)
    return weights.find(location)


def _fetch_coco(name: str) -> Path:
    """Downloads and imports weights published by google/automl, unless they are in the cache."""
    preset = name.removeprefix(f"{COCO}-")
    if preset not in _NAMES:
        raise UserError(f"`{name}` is not a published model; choose from {COCO}-{f', {COCO}-'.join(_NAMES)}.")
    folder = web.cache_dir() / "weights"
    target = folder / f"{name}{weights.SUFFIX}"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.one_at_a_time(target):
            if not target.is_file():  # another process may have downloaded it in the meantime
                _fetch_and_import(preset, name, target)
    except OSError as error:
        raise UserError(f"`{folder}` cannot be written: {error.strerror or error}.") from error
    return target


def _fetch_and_import(preset: str, name: str, target: Path) -> None:
    """Downloads an archive and writes its weights to `target`; leaves nothing else."""
    url = f"{os.environ.get(ADDRESS_VARIABLE, _ADDRESS).rstrip('/')}/{_remote_path(preset)}"
    progress.console.print(f"Downloading {name} to {target.parent} (only once)", markup=False, soft_wrap=True)
    suffix = ".tgz" if url.endswith(".tgz") else ".tar.gz"
    archive = web.fetch(
        url, target.with_name(f"{name}{suffix}"), max_bytes=_LARGEST_ARCHIVE, timeout=_SILENCE, attempts=_ATTEMPTS
    )
    checkpoint = target.with_name(name)
    try:
        archives.unpack(archive, checkpoint, max_bytes=importing.LARGEST_CHECKPOINT, max_files=1000)
        importing.import_weights(checkpoint, output=target, model=preset)
    except UserError:
        archive.unlink(missing_ok=True)  # so that the next call does not fail on the same file
        raise
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)
    archive.unlink(missing_ok=True)


def _remote_path(preset: str) -> str:
    """Returns the path of a model's checkpoint below the publisher's address."""
    if preset.startswith("lite"):
        return f"coco/efficientdet-{preset}.tgz"
    return f"coco2/efficientdet-{preset}.tar.gz"
