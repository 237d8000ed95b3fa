"""The files below a folder: images found by the names that annotations call them, and splits told by names.

An annotation often names an image where it lay on another machine. A name is looked for, in this order: beside the
annotation file and below the source; as the end of a path below the source, the longest end first; the same without
regard to case and to how accents are encoded. Percent signs are decoded as in addresses (`a%20b.jpg`). Where several
images fit equally well, the one in the annotation's own split is taken, else the error names them.
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

# Words that may stand beside a split in a name: train_labels.csv, oidv6-train-annotations-bbox.csv, images_test.
_FILLERS = {"images", "image", "img", "imgs", "labels", "label", "annotations", "annotation", "ann", "anns", "bbox"}
_FILLERS |= {"boxes", "box", "data", "dataset", "set", "split", "instances", "oidv", "via", "region", "csv", "json"}
_FILLERS |= {"metadata", "detections", "v", "export", "createml", "coco", "project"}
_NUM_PLACES = 6


class Gallery:
    """The images and other files below a folder; hidden ones, and what this program wrote there, are left out.

    Attributes:
        root: the folder.
        images: path below the root, `/` between its parts, of each image -> its file.
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
            # Images that are not read are listed too: whoever names them hears so.
            if path.suffix.lower() in (lookup.IMAGE_SUFFIXES | lookup.OTHER_IMAGE_SUFFIXES):
                self.images[path.relative_to(root).as_posix()] = path
            else:
                self.others.append(path)
        self._by_name = _group(self.images, lambda key: lookup.fold(key.rpartition("/")[2]))
        self._by_stem: dict[str, list[str]] | None = None
        self._splits: dict[Path, str | None] = {}
        self._told: dict[tuple[Path, str], set[str]] | None = None

    def files(self, *suffixes: str) -> list[Path]:
        """Lists the files whose names end so, in any case."""
        return [path for path in self.others if path.name.lower().endswith(suffixes)]

    def key(self, path: Path) -> str:
        """Returns a path below the root, `/` between its parts; its name where it is elsewhere."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def contents(self) -> str:
        """Says how many files of which kind lie where, for an error: `12 .xml files in annotations/`."""
        paths = (*self.others, *self.images.values())
        counts = collections.Counter((path.parent, path.suffix.lower() or path.name) for path in paths)
        places = [
            f"{count} {suffix} file{'s' if count > 1 else ''} "
            + ("at its top" if parent == self.root else f"in `{self.key(parent)}/`")
            for (parent, suffix), count in counts.most_common(_NUM_PLACES)
        ]
        more = f" and more in {len(counts) - _NUM_PLACES} places" if len(counts) > _NUM_PLACES else ""
        return f"{', '.join(places)}{more}" if places else "no files"

    def at(self, name: str, file: Path, where: str) -> str | None:
        r"""Finds the image that lies where an annotation says: beside the annotation file, or below the source.

        Args:
            name: as the annotation has it: a name, a path with `/` or `\`, an address.
            file: the annotation file.
            where: the annotation, for the error.

        Returns:
            Key of the image in `images`; none if there is no such image.

        Raises:
            UserError: the name is not one of a file.
        """
        for parts in _variants(name, where):
            for folder in dict.fromkeys((file.parent, self.root)):
                key = self._plain_key(folder, parts)
                if key in self.images:
                    return key
        return None

    def search(self, name: str, where: str, split: str | None = None) -> str | None:
        """Finds the image that a stale name means; one without an ending means the image whose name begins so.

        Args:
            name: as the annotation has it.
            where: the annotation, for the error.
            split: its split, if it says.

        Returns:
            Key of the image in `images`; none if there is no such image.

        Raises:
            UserError: several images fit.
        """
        for parts in _variants(name, where):
            key = self._longest_end([part for part in parts if part != ".."], where, name, split)
            if key is not None:
                return key
        base = next((parts[-1] for parts in reversed(_variants(name, where))), "")
        return self.find_stem(base, where, split) if base and not lookup.is_image(base) else None

    def find_stem(self, stem: str, where: str, split: str | None = None, folder: Path | None = None) -> str | None:
        """Finds the image with a name, its ending left out.

        Args:
            stem: the name.
            where: the annotation, for the error.
            split: its split, if it says.
            folder: look only here; none: everywhere.
        """
        if self._by_stem is None:
            self._by_stem = _group(self.images, lambda key: Path(key).stem)
        keys = self._by_stem.get(stem, [])
        if folder is not None:
            keys = [key for key in keys if self.images[key].parent == folder]
        return self.only(keys, where, stem, split)

    def only(self, keys: list[str], where: str, name: str, split: str | None) -> str | None:
        """Takes the only key, else the only one in the split; none if there is none.

        Args:
            keys: of the images that an annotation could mean.
            where: the annotation, for the error.
            name: what it calls the image.
            split: its split, if it says.

        Raises:
            UserError: there are several.
        """
        if len(keys) > 1:
            keys = [key for key in keys if split and self.image_split(key) == split] or keys
        if len(keys) > 1:
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            raise UserError(
                f"{where}: names the image `{name}`, and both `{keys[0]}` and `{keys[1]}`{more} could be it; "
                "rename or remove one, or write the folder into the annotation."
            )
        return keys[0] if keys else None

    def split_of(self, file: Path) -> str | None:
        """Tells the split of an annotation file by its name, else by its folders; none if they do not say."""
        if file not in self._splits:
            self._splits[file] = self._tell_split(file)
        return self._splits[file]

    @staticmethod
    def image_split(key: str) -> str | None:
        """Tells the split of a file by its folders, the innermost first; none if they do not say."""
        return next((split for part in reversed(key.split("/")[:-1]) if (split := _split_in(part))), None)

    def _tell_split(self, file: Path) -> str | None:
        """Tells the split of an annotation file."""
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
        """Joins a folder and the parts of a name to a key; none if that leads out of the root."""
        joined = os.path.normpath(os.path.join(folder, *parts))  # noqa: PTH118 - Path.resolve would follow links
        below = os.path.relpath(joined, self.root)
        return None if below.startswith("..") else Path(below).as_posix()

    def _longest_end(self, parts: list[str], where: str, name: str, split: str | None) -> str | None:
        """Finds the image whose path ends as the name does, by as many parts as possible."""
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
    """Splits a name into its parts, as it stands and as an address."""
    if not name.strip() or re.search(r"[\x00-\x1f]", name):
        raise UserError(f"{where}: has the image name {name!r}; expected the name of a file.")
    variants = [name.strip().replace("\\", "/")]
    decoded = variants[0]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", decoded):
        decoded = urllib.parse.urlsplit(decoded).path
    variants.append(urllib.parse.unquote(decoded))
    split = [[part for part in variant.split("/") if part and part != "."] for variant in dict.fromkeys(variants)]
    return [parts for parts in split if parts]


def _split_in(name: str, *, strict: bool = True) -> str | None:
    """Tells the split that a name has: `Train`, `valid`, `train2017`, `train_labels`; strict: and nothing else."""
    words = re.findall(r"[a-z]+", name.lower())
    found = {split for word in words if (split := sources.normalize_split(word)) in sources.SPLITS}
    others = [w for w in words if sources.normalize_split(w) not in sources.SPLITS and w not in _FILLERS]
    return found.pop() if len(found) == 1 and not (strict and others) else None


def _stem(file: Path) -> str:
    """Returns a file's name up to its first dot that does not begin it."""
    return file.name[:1] + file.name[1:].partition(".")[0]


def _group(keys: dict[str, Path], of: Callable[[str], str]) -> dict[str, list[str]]:
    """Groups keys by what a function makes of them."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(of(key), []).append(key)
    return groups
