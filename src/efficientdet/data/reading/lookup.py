"""Lists the files in a dataset's folder, and finds images that annotations call by an outdated name.

Annotation files travel: they name images by paths of another machine, in another case, percent-encoded, or in another
Unicode normalization form (macOS decomposes é). A name is first looked up as written. Only if nothing is there, the one
file in the source whose base name matches (its extension may be missing) is used, and the caller reports it; among
several, the one that shares the longest end of the path. Hidden files (`._a.jpg`, which macOS leaves in archives) are
never part of a dataset.
"""

import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path

from efficientdet.data import sources
from efficientdet.errors import UserError
from efficientdet.media import images

IMAGE_SUFFIXES = frozenset({*images.SUFFIXES, ".jfif", ".jpe", ".jif", ".mpo"})
"""Suffixes of supported image files, lower case."""

OTHER_IMAGE_SUFFIXES = (
    frozenset({".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".svg", ".psd", ".ppm", ".pgm", ".pbm"})
    | frozenset({".pnm", ".exr", ".hdr", ".ico", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"})
    | frozenset({".rw2", ".raw", ".dcm", ".nii", ".npy"})
) - IMAGE_SUFFIXES
"""Suffixes of unsupported image files, lower case; they are counted, so that none goes unnoticed."""

_MOST_NAME_BYTES = 255
_UPLOADED = re.compile(r"[0-9a-f]{8}-.")  # what Label Studio writes before the name of an uploaded image
_CONTROL = re.compile(r"[\x00-\x1f]")


class Files:
    """The visible files in a folder and its subfolders, listed once, on first use.

    Skips folders that are not part of a dataset: `runs`, `predictions`, training runs and converted datasets.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path):
        """Stores the folder; nothing is read yet."""
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - Path.resolve would follow links
        self._paths: list[str] | None = None
        self._images: dict[str, list[str]] = {}

    def paths(self) -> list[str]:
        """Lists all files, sorted."""
        if self._paths is None:
            self._paths = sorted(_walk(str(self.root)))
            for path in self._paths:
                if is_image(path):
                    self._images.setdefault(fold(os.path.basename(path)), []).append(path)  # noqa: PTH119
        return self._paths

    def images(self) -> list[str]:
        """Lists the image files, sorted."""
        return [path for path in self.paths() if is_image(path)]

    def with_stem(self, stem: str) -> list[Path]:
        """Lists the images whose stem is `stem`, ignoring case and Unicode normalization."""
        self.paths()
        wanted = fold(stem)
        found = (paths for suffix in IMAGE_SUFFIXES if (paths := self._images.get(wanted + suffix)))
        return sorted(Path(path) for paths in found for path in paths)

    def find(
        self, name: str, folders: Sequence[Path], where: Path, within: Path | None = None
    ) -> tuple[Path | None, bool]:
        r"""Finds an image by the name in an annotation.

        Args:
            name: a relative or absolute path, with `/` or `\`, or a URL.
            folders: where to look the name up as written, best first.
            where: annotation file to name in the error.
            within: folder whose images are preferred if the name is outdated.

        Returns:
            The file, or None; whether it was found by its base name only.

        Raises:
            UserError: the name is empty or invalid, or several files match it.
        """
        if not _can_be_a_name(name):
            raise UserError(f"`{where}` has the image name {name[:60]!r}; expected a file name.")
        for folder in folders:
            path = os.path.normpath(os.path.join(folder, name.replace("\\", "/")))  # noqa: PTH118
            if (_is_below(path, folder) or _is_below(path, self.root)) and os.path.isfile(path):  # noqa: PTH113
                return Path(path), False
        found = self._by_base_name(_plain(name), within)
        if len(found) > 1:
            raise UserError(
                f"`{where}` names the image `{name}`, which was not found; it could be {found[0]} or {found[1]}. "
                "Correct the name, or remove one of them."
            )
        return (Path(found[0]), True) if found else (None, False)

    def _by_base_name(self, name: str, within: Path | None) -> list[str]:
        """Lists the images with the base name of `name` that share the longest end of the path with it."""
        self.paths()
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        base = parts[-1] if parts else ""
        matches = self._images.get(fold(base), [])
        if base and not matches and not is_image(base):  # an id instead of a file name
            matches = [str(path) for path in self.with_stem(base)]
        elif not matches and _UPLOADED.match(base):
            matches = self._images.get(fold(base[len("12345678-") :]), [])
        exact = [path for path in matches if os.path.basename(path) == base]  # noqa: PTH119
        matches = exact or matches
        if within is not None:
            matches = [path for path in matches if _is_below(path, within)] or matches
        if len(matches) < 2:
            return matches
        shared = {path: _shared_end(parts, path.replace("\\", "/").split("/")) for path in matches}
        return [path for path in matches if shared[path] == max(shared.values())]


def missing(folder: Path, name: str, where: Path) -> Path:
    """Returns where a missing image should be; a relative name that leads out of the folder is an error.

    Args:
        folder: image folder.
        name: as in the annotation.
        where: annotation file to name in the error.
    """
    plain = name.replace("\\", "/")
    if plain.startswith("/") or "://" in plain or plain[1:2] == ":":
        return folder / _plain(name).rsplit("/", 1)[-1]
    return sources.inside(folder, name, where)


def is_image(path: str | Path) -> bool:
    """Checks whether a file has the suffix of a supported image format."""
    return os.path.splitext(str(path))[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def is_hidden(path: Path) -> bool:
    """Checks whether a file is hidden, like macOS's `._a.xml`."""
    return path.name.startswith(".")


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sorts paths and drops hidden ones."""
    return sorted(path for path in paths if not is_hidden(path))


def fold(name: str) -> str:
    """Normalizes a name, so that names that differ only in case or Unicode normalization become equal."""
    return unicodedata.normalize("NFC", name).casefold()


def resolve(folder: Path, name: str) -> Path | None:
    """Finds a file or folder by its path relative to a folder; a part that is missing may differ in case.

    Args:
        folder: where the path starts.
        name: path with `/`; an absolute one must exist as written.
    """
    path = folder / name
    if path.exists():
        return path
    if path.is_absolute() and Path(name).is_absolute():
        return None
    path = folder
    for part in Path(name).parts:
        inner = path / part
        if not inner.exists():
            found = [p for p in path.iterdir() if fold(p.name) == fold(part)] if path.is_dir() else []
            if len(found) != 1:
                return None
            inner = found[0]
        path = inner
    return path


def _can_be_a_name(name: str) -> bool:
    """Checks whether a file could have this name: no control characters, and no part that is too long."""
    try:
        parts = _plain(name).encode().split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return False
    return bool(name.strip()) and _CONTROL.search(name) is None and max(map(len, parts)) <= _MOST_NAME_BYTES


def _walk(root: str) -> Iterable[str]:
    """Walks all visible files; follows links to folders, but visits no folder twice."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or (parent != root and _is_output(names, folders)):
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in sources.NOT_DATA and not name.startswith("."))
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))  # noqa: PTH118


def _is_output(names: list[str], folders: list[str]) -> bool:
    """Checks whether a folder is a run or a converted dataset."""
    is_converted = "dataset.json" in names and any(name.endswith(".tfrecord") for name in names)
    return is_converted or ("checkpoints" in folders and "config.json" in names)


def _plain(name: str) -> str:
    r"""Turns a URL or a Windows path into a path with `/`; decodes percent-encoding and drops queries."""
    text = name.strip().replace("\\", "/")
    if "?d=" in text:  # Label Studio's local files: /data/local-files/?d=folder/a.jpg
        text = text.split("?d=", 1)[1]
    elif "://" in text:
        text = urllib.parse.urlsplit(text).path
    return urllib.parse.unquote(text) if "%" in text else text


def _shared_end(parts: Sequence[str], path: Sequence[str]) -> int:
    """Counts the trailing parts that two paths share."""
    count = 0
    for one, other in zip(reversed(parts), reversed(path), strict=False):
        if fold(one) != fold(other):
            break
        count += 1
    return count


def _is_below(path: str, folder: Path) -> bool:
    root = os.path.abspath(folder)  # noqa: PTH100
    return path.startswith(root.rstrip(os.sep) + os.sep) or os.path.abspath(path).startswith(  # noqa: PTH100
        root.rstrip(os.sep) + os.sep
    )
