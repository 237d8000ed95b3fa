"""The files in a folder: finds images by the names that annotations use, and splits by the names of files and folders.

Annotations often give the path that an image had on another machine. A name is looked up in this order: relative to
the annotation file and to the source; as the end of a path in the source, the longest match first; the same, ignoring
case and Unicode normalization. Percent-encoding is decoded as in URLs (`a%20b.jpg`). If several images match equally
well, the one in the annotation's own split is used; otherwise the error names them.
"""

import collections
import os
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from efficientdet.data import sources
from efficientdet.data.reading import lookup
from efficientdet.errors import UserError

# Words that may accompany a split in a name: train_labels.csv, oidv6-train-annotations-bbox.csv, images_test.
_FILLERS = {"images", "image", "img", "imgs", "labels", "label", "annotations", "annotation", "ann", "anns", "bbox"}
_FILLERS |= {"boxes", "box", "data", "dataset", "set", "split", "instances", "oidv", "via", "region", "csv", "json"}
_FILLERS |= {"metadata", "detections", "v", "export", "createml", "coco", "project"}
_NUM_PLACES = 6


class Gallery:
    """The images and other files in a folder and its subfolders, without hidden files and this program's own output.

    Attributes:
        root: the folder.
        images: key of each image (its path relative to the root, with `/`) -> its file.
        others: files that are not images, sorted.
    """

    def __init__(self, root: Path):
        """Lists the folder, as `lookup` does.

        Args:
            root: the folder.
        """
        sources.check_folder(root)
        self.root = root
        self.images: dict[str, Path] = {}
        self.others: list[Path] = []
        listed = lookup.Files(root)
        for name in listed.paths():
            path = root / Path(name).relative_to(listed.root)
            # Unsupported image formats are listed too, so that annotations that name them get a clear error.
            if path.suffix.lower() in (lookup.IMAGE_SUFFIXES | lookup.OTHER_IMAGE_SUFFIXES):
                self.images[path.relative_to(root).as_posix()] = path
            else:
                self.others.append(path)
        self._by_name = _group(self.images, lambda key: lookup.fold(key.rpartition("/")[2]))
        self._by_stem: dict[str, list[str]] | None = None
        self._splits: dict[Path, str | None] = {}
        self._told: dict[tuple[Path, str], set[str]] | None = None

    def files(self, *suffixes: str) -> list[Path]:
        """Lists the non-image files with one of these suffixes, ignoring case."""
        return [path for path in self.others if path.name.lower().endswith(suffixes)]

    def key(self, path: Path) -> str:
        """Returns a path relative to the root, with `/`; only the name if it is elsewhere."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def contents(self) -> str:
        """Counts the files of each type and folder, for an error: `12 .xml files in annotations/`."""
        paths = (*self.others, *self.images.values())
        counts = collections.Counter((path.parent, path.suffix.lower() or path.name) for path in paths)
        places = [
            f"{count} {suffix} file{'s' if count > 1 else ''} "
            + ("at the top level" if parent == self.root else f"in `{self.key(parent)}/`")
            for (parent, suffix), count in counts.most_common(_NUM_PLACES)
        ]
        more = f" and more in {len(counts) - _NUM_PLACES} other places" if len(counts) > _NUM_PLACES else ""
        return f"{', '.join(places)}{more}" if places else "no files"

    def at(self, name: str, file: Path, where: str) -> str | None:
        r"""Finds the image at the path that an annotation gives, relative to the annotation file or to the source.

        Args:
            name: as in the annotation: a name, a path with `/` or `\`, or a URL.
            file: the annotation file.
            where: the annotation, for the error.

        Returns:
            Key of the image in `images`; None if there is no such image.

        Raises:
            UserError: the name is not a valid file name.
        """
        for parts in _variants(name, where):
            for folder in dict.fromkeys((file.parent, self.root)):
                key = self._plain_key(folder, parts)
                if key in self.images:
                    return key
        return None

    def search(self, name: str, where: str, split: str | None = None) -> str | None:
        """Finds the image that an outdated path refers to; a name without an extension matches an image's stem.

        Args:
            name: as in the annotation.
            where: the annotation, for the error.
            split: the split that the annotation gives, if any.

        Returns:
            Key of the image in `images`; None if there is no such image.

        Raises:
            UserError: several images match.
        """
        for parts in _variants(name, where):
            key = self._longest_end([part for part in parts if part != ".."], where, name, split)
            if key is not None:
                return key
        base = next((parts[-1] for parts in reversed(_variants(name, where))), "")
        return self.find_stem(base, where, split) if base and not lookup.is_image(base) else None

    def find_stem(self, stem: str, where: str, split: str | None = None, folder: Path | None = None) -> str | None:
        """Finds the image with a stem.

        Args:
            stem: the file name without its extension.
            where: the annotation, for the error.
            split: the split that the annotation gives, if any.
            folder: look only here; None means everywhere.
        """
        if self._by_stem is None:
            self._by_stem = _group(self.images, lambda key: Path(key).stem)
        keys = self._by_stem.get(stem, [])
        if folder is not None:
            keys = [key for key in keys if self.images[key].parent == folder]
        return self.only(keys, where, stem, split)

    def only(self, keys: list[str], where: str, name: str, split: str | None) -> str | None:
        """Picks the only key, or else the only one in the split; returns None if there is none.

        Args:
            keys: keys of the images that an annotation could refer to.
            where: the annotation, for the error.
            name: the image name in the annotation.
            split: the split that the annotation gives, if any.

        Raises:
            UserError: several remain.
        """
        if len(keys) > 1:
            keys = [key for key in keys if split and self.image_split(key) == split] or keys
        if len(keys) > 1:
            more = f" or one of {len(keys) - 2} more" if len(keys) > 2 else ""
            raise UserError(
                f"{where}: the image `{name}` could be `{keys[0]}` or `{keys[1]}`{more}; "
                "rename or remove one, or add the folder to the annotation."
            )
        return keys[0] if keys else None

    def split_of(self, file: Path) -> str | None:
        """Finds the split of an annotation file by its name, or else by its folders; None if neither names one."""
        if file not in self._splits:
            self._splits[file] = self._tell_split(file)
        return self._splits[file]

    @staticmethod
    def image_split(key: str) -> str | None:
        """Finds the split of a file by its folders, the innermost first; None if none of them names one."""
        return next((split for part in reversed(key.split("/")[:-1]) if (split := _split_in(part))), None)

    def _tell_split(self, file: Path) -> str | None:
        """Finds the split of an annotation file without the cache."""
        stem = _stem(file)
        if (found := _split_in(stem)) or (found := self.image_split(self.key(file))):
            return found
        # `cells_train.csv` and `cells_test.csv` are splits; `crash_test.csv` alone is not.
        if self._told is None:
            self._told = {}
            for path in self.others:
                told_here = self._told.setdefault((path.parent, path.suffix.lower()), set())
                told_here.add(_split_in(_stem(path), strict=False) or "")
        told = self._told.get((file.parent, file.suffix.lower()), set()) - {""}
        return _split_in(stem, strict=False) if "train" in told and len(told) > 1 else None

    def _plain_key(self, folder: Path, parts: list[str]) -> str | None:
        """Joins a folder and the parts of a name to a key; returns None if that leads out of the root."""
        joined = os.path.normpath(os.path.join(folder, *parts))  # noqa: PTH118 - Path.resolve would follow links
        below = os.path.relpath(joined, self.root)
        return None if below.startswith("..") else Path(below).as_posix()

    def _longest_end(self, parts: list[str], where: str, name: str, split: str | None) -> str | None:
        """Finds the image whose path shares the longest end with the name."""
        if not parts:
            return None
        same_name = self._by_name.get(lookup.fold(parts[-1]), [])
        readings: tuple[Callable[[str], str], ...] = (str, lookup.fold)
        for reading in readings:
            wanted = [reading(part) for part in parts]
            for length in range(len(parts), 0, -1):
                keys = [key for key in same_name if [reading(p) for p in key.split("/")][-length:] == wanted[-length:]]
                if keys:
                    return self.only(keys, where, name, split)
        return None


def _variants(name: str, where: str) -> list[list[str]]:
    """Splits a name into its parts, both as written and decoded as a URL."""
    if not name.strip() or re.search(r"[\x00-\x1f]", name):
        raise UserError(f"{where}: the image name is {name!r}; expected a file name.")
    variants = [name.strip().replace("\\", "/")]
    decoded = variants[0]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", decoded):
        decoded = urllib.parse.urlsplit(decoded).path
    variants.append(urllib.parse.unquote(decoded))
    split = [[part for part in variant.split("/") if part and part != "."] for variant in dict.fromkeys(variants)]
    return [parts for parts in split if parts]


def _split_in(name: str, *, strict: bool = True) -> str | None:
    """Finds the split in a name: `Train`, `valid`, `train2017`, `train_labels`; strict: no other words are allowed."""
    words = re.findall(r"[a-z]+", name.lower())
    found = {split for word in words if (split := sources.normalize_split(word)) in sources.SPLITS}
    others = [w for w in words if sources.normalize_split(w) not in sources.SPLITS and w not in _FILLERS]
    return found.pop() if len(found) == 1 and not (strict and others) else None


def _stem(file: Path) -> str:
    """Returns a file's name up to its first dot, except a leading one."""
    return file.name[:1] + file.name[1:].partition(".")[0]


def _group(keys: dict[str, Path], of: Callable[[str], str]) -> dict[str, list[str]]:
    """Groups keys by the result of a function."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(of(key), []).append(key)
    return groups
