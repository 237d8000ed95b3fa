"""A cache for OpenVINO: converted weights and compiled graphs, the newest few of each."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

import efficientdet
from efficientdet.formats import manifest as manifests
from efficientdet.formats import openvino
from efficientdet.formats.manifest import Manifest
from efficientdet.storage import files, web

_KEPT = 16  # graphs in the cache


def find_converted(location: str | Path, image_size: tuple[int, int] | None = None) -> Path:
    """Returns converted weights from the cache, and converts them if they are missing.

    Args:
        location: weights file, run folder or published name.
        image_size: height and width of the network input, px; None means what the weights were trained with.

    Returns:
        The folder of an export.
    """
    from efficientdet.checkpoints import pretrained
    from efficientdet.model import weights

    path = weights.find(pretrained.find_weights(location))
    content = files.sha256(path)
    versions = [_fingerprint_of_network(), importlib.metadata.version("openvino"), manifests.FORMAT]
    key = hashlib.sha256(json.dumps([content, image_size, versions]).encode()).hexdigest()[:32]
    folder = web.cache_dir() / "openvino"
    target = folder / key
    if not (target / manifests.FILE).is_file():
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with files.one_at_a_time(target):
                if not (target / manifests.FILE).is_file():
                    _write_folder(target, weights.load(path), image_size)
                    _forget_oldest(folder)
    return target


def _fingerprint_of_network() -> str:
    """Hashes the source code that defines what a network computes."""
    package = Path(efficientdet.__file__).parent
    sources = sorted(path for room in ("model", "kernels", "formats") for path in (package / room).glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def find_compiled(graph: Path) -> Path | None:
    """Returns the folder for the compiled form of a graph, or None if the cache cannot be written.

    OpenVINO itself distinguishes graphs, properties, CPUs and versions, and recompiles damaged files. Each graph still
    has its own folder, named after its content, so that the oldest can be removed.
    """
    content = b"".join(path.read_bytes() for path in (graph, graph.with_suffix(".bin")) if path.exists())
    folder = web.cache_dir() / "openvino-compiled" / hashlib.sha256(content).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        _forget_oldest(folder.parent, "*")
    except OSError:
        return None
    return folder


def _forget_oldest(folder: Path, pattern: str = f"*/{openvino.GRAPH}") -> None:
    """Removes all but the newest folders of a cache; the pattern matches the folders or a file in each."""
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    for path in found[:-_KEPT]:
        shutil.rmtree(path if path.is_dir() else path.parent, ignore_errors=True)


def _write_folder(folder: Path, loaded: Any, image_size: tuple[int, int] | None) -> None:
    """Converts weights into a temporary folder, then renames it."""
    model = dataclasses.replace(loaded.model, image_size=image_size or loaded.model.image_size)
    with files.folder_aside(folder) as temporary:
        openvino.save(temporary / openvino.GRAPH, openvino.convert(loaded, image_size))
        manifests.write(
            temporary,
            Manifest(
                target="openvino",
                precision="float32",
                answer="raw",
                batch_size=0,
                has_letterbox=False,
                model=model,
                categories=loaded.categories,
                postprocess=loaded.postprocess,
            ),
        )
