"""Weights by name: what google/automl published for COCO, fetched and imported once into the cache.

`coco-d0` .. `coco-d7x` and `coco-lite0` .. `coco-lite4`; where the model is known, `coco` is enough. The publisher
gives no checksums: what arrives must unpack, and every tensor must fit the model.
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
"""Environment variable: address of a mirror of the published weights."""

_ADDRESS = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientdet"
# D7x, the largest, is 0.9 GB: two copies of each variable, and the optimizer's.
_LARGEST_ARCHIVE = 4 * 10**9
_SILENCE = 30.0  # s, after which the server is taken for dead
_ATTEMPTS = 3
_NAMES = [name for name in presets.MODELS if name != "demo"]


def find_weights(location: str | Path, preset: str = "") -> Path:
    """Finds the weights file that `location` means, and fetches it if it is a published one.

    Args:
        location: a weights file, the folder of a run, or a name such as `coco-d0`.
        preset: preset of the model, for which the name `coco` is enough.

    Returns:
        A weights file of this project.

    Raises:
        UserError: there is nothing of that kind, or it cannot be fetched.
    """
    name = str(location)
    if name == COCO and not Path(name).exists():
        if preset not in _NAMES:
            raise UserError(f"`{COCO}` does not say which model; give one of {COCO}-{f', {COCO}-'.join(_NAMES)}.")
        name = f"{COCO}-{preset}"
    if name.startswith(f"{COCO}-") and not Path(name).exists():
        return _fetch_coco(name)
    return weights.find(location)


def _fetch_coco(name: str) -> Path:
    """Fetches and imports weights that google/automl published, unless that has been done."""
    preset = name.removeprefix(f"{COCO}-")
    if preset not in _NAMES:
        raise UserError(f"`{name}` is not a published model; there are {COCO}-{f', {COCO}-'.join(_NAMES)}.")
    folder = web.cache_dir() / "weights"
    target = folder / f"{name}{weights.SUFFIX}"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.one_at_a_time(target):
            if not target.is_file():  # another process may have fetched it meanwhile
                _fetch_and_import(preset, name, target)
    except OSError as error:
        raise UserError(f"`{folder}` cannot be written: {error.strerror or error}.") from error
    return target


def _fetch_and_import(preset: str, name: str, target: Path) -> None:
    """Fetches an archive, and writes the weights in it to `target`; nothing else is left."""
    url = f"{os.environ.get(ADDRESS_VARIABLE, _ADDRESS).rstrip('/')}/{_remote_path(preset)}"
    progress.console.print(f"Fetching {name} once into {target.parent}", markup=False, soft_wrap=True)
    suffix = ".tgz" if url.endswith(".tgz") else ".tar.gz"
    archive = web.fetch(
        url, target.with_name(f"{name}{suffix}"), max_bytes=_LARGEST_ARCHIVE, timeout=_SILENCE, attempts=_ATTEMPTS
    )
    checkpoint = target.with_name(name)
    try:
        archives.unpack(archive, checkpoint, max_bytes=importing.LARGEST_CHECKPOINT, max_files=1000)
        importing.import_weights(checkpoint, output=target, model=preset)
    except UserError:
        archive.unlink(missing_ok=True)  # so that the next call does not stumble over the same bytes
        raise
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)
    archive.unlink(missing_ok=True)


def _remote_path(preset: str) -> str:
    """Says where a model's checkpoint is below the publisher's address."""
    if preset.startswith("lite"):
        return f"coco/efficientdet-{preset}.tgz"
    return f"coco2/efficientdet-{preset}.tar.gz"
