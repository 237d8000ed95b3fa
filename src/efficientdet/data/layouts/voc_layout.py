"""Finds the XML files, images and splits of a VOC dataset in the layouts that tools write.

`Annotations/` and `JPEGImages/` (VOC), the same in lower case or under other names, XML next to the images (labelImg),
one folder per split (Roboflow), and subfolders of all of these. Splits are lists in `ImageSets/Main/`, or else folders
named like splits; otherwise everything is `train`.
"""

from pathlib import Path

from efficientdet.data import sources
from efficientdet.data.parsing import xml_files
from efficientdet.data.reading import lookup
from efficientdet.errors import UserError

_STANDARD_SPLITS = ("train", "val", "test")
_ANNOTATION_FOLDERS = {"annotations", "annotation", "annots", "anns", "labels", "xml", "xmls"}
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "image", "imgs", "img", "jpegs", "photos", "data")
_LISTS = ("ImageSets/Main", "ImageSets", "imagesets/main", "imagesets", ".")
_FLAGS = ("1", "0", "-1")


def is_root(folder: Path) -> bool:
    """Checks whether the folder itself looks like a dataset in this format."""
    return _has_annotations(folder) or any(
        _has_annotations(inner) for inner in _folders(folder) if sources.split_in(inner.name)
    )


def annotation_files(root: Path) -> list[Path]:
    """Lists the annotation files in a dataset's folder and subfolders."""
    paths = (Path(path) for path in lookup.Files(root).paths() if path.lower().endswith(".xml"))
    return [path for path in paths if xml_files.root_tag(path) in ("annotation", "")]


def key_of(path: Path, root: Path) -> str:
    """Returns the name of an XML file in split lists: its path in the annotation folder, without extension."""
    parts = path.relative_to(root).with_suffix("").parts
    places = [i for i, part in enumerate(parts[:-1]) if part.lower() in _ANNOTATION_FOLDERS]
    return "/".join(parts[places[-1] + 1 :] if places else parts)


def find_splits(root: Path, files: list[Path], wanted: tuple[str, ...], faults: sources.Faults) -> "Splits":
    """Sorts the annotation files into splits.

    Args:
        root: folder of the dataset.
        files: its annotation files.
        wanted: names of splits; all standard ones if empty.
        faults: where faulty lines of split lists are reported.
    """
    lists = _find_lists(root)
    if lists:
        names = sources.take_splits(lists, wanted, next(iter(lists.values())).parent) if wanted else _standard(lists)
        if names:
            index = _Index(root, files)
            return Splits({n: _read_list(lists[n], index, n, faults) for n in names}, [lists[n] for n in names])
    by_folder: dict[str, list[Path]] = {}
    for path in files:
        found = [split for part in path.relative_to(root).parts[:-1] if (split := sources.split_in(part))]
        by_folder.setdefault(found[-1] if found else "", []).append(path)
    unnamed = by_folder.pop("", [])
    by_folder.setdefault("train", unnamed)
    order = [name for name in _STANDARD_SPLITS if by_folder.get(name)]
    names = sources.take_splits(order, wanted, root)
    return Splits({name: by_folder[name] for name in names}, [])


class Splits:
    """Annotation files of each split.

    Attributes:
        files: annotation files of each split, in the order of the records.
        lists: the split lists that were read.
    """

    def __init__(self, files: dict[str, list[Path]], lists: list[Path]):
        """Renames `trainval` to train if there is no train."""
        rename = "trainval" if "train" not in files else ""
        self.files = {"train" if name == rename else name: paths for name, paths in files.items()}
        self.lists = lists


class ImageFolders:
    """The folders where the images of a dataset may be."""

    def __init__(self, root: Path):
        """Stores the folder of the dataset."""
        self._root = root
        self._of: dict[Path, list[Path]] = {}

    def of(self, xml: Path) -> list[Path]:
        """Lists the folders that may have the image of an XML file, best first: VOC's folders, then next to it.

        Subfolders of Annotations/ are also looked up in JPEGImages/.
        """
        if xml.parent not in self._of:
            self._of[xml.parent] = [folder for folder in self._candidates(xml.parent) if folder.is_dir()]
        return self._of[xml.parent]

    def _candidates(self, parent: Path) -> list[Path]:
        inside = parent.relative_to(self._root)
        places = [i for i, part in enumerate(inside.parts) if part.lower() in _ANNOTATION_FOLDERS]
        bases = [(self._root.joinpath(*inside.parts[:i]), Path(*inside.parts[i + 1 :])) for i in reversed(places)]
        bases += [(parent, Path()), (self._root, inside)]
        folders = [base / name / rest for base, rest in bases for name in _IMAGE_FOLDERS]
        folders += [base / name for base, rest in bases if rest.parts for name in _IMAGE_FOLDERS]
        return list(dict.fromkeys([*folders, parent, *(base for base, _ in bases)]))


class _Index:
    """Annotation files by their names in split lists."""

    def __init__(self, root: Path, files: list[Path]):
        self.root = root
        self._by_key = {key_of(path, root): path for path in files}
        self._by_stem: dict[str, list[Path]] = {}
        for path in files:
            self._by_stem.setdefault(lookup.fold(path.stem), []).append(path)

    def find(self, name: str) -> Path | None:
        """Finds the annotation file for `a`, `a.jpg`, `a.xml` in a list, or a path that ends like that."""
        plain = name.replace("\\", "/").removeprefix("./")
        stems = [plain, plain.rsplit(".", 1)[0]] if _has_known_ending(plain) else [plain]
        for stem in stems:
            if stem in self._by_key:
                return self._by_key[stem]
        for stem in stems:
            found = self._by_stem.get(lookup.fold(stem.rsplit("/", 1)[-1]), [])
            if len(found) == 1:
                return found[0]
        return None


def _has_known_ending(name: str) -> bool:
    return lookup.is_image(name) or name.lower().endswith(".xml")


def _find_lists(root: Path) -> dict[str, Path]:
    """Finds the split lists; the keys are the normalized split names."""
    for folder in _LISTS:
        files = lookup.visible((root / folder).glob("*.txt"))
        if folder == ".":
            files = [path for path in files if sources.normalize_split(path.stem) in (*_STANDARD_SPLITS, "trainval")]
        if files:
            return {sources.normalize_split(path.stem): path for path in files}
    return {}


def _standard(lists: dict[str, Path]) -> list[str]:
    """Picks the splits to convert: train, val and test; trainval if train and val are missing; or the only list."""
    names = [name for name in _STANDARD_SPLITS if name in lists]
    if not {"train", "val"} & set(names) and "trainval" in lists:
        names = ["trainval", *names]
    return names or (list(lists) if len(lists) == 1 else [])


def _read_list(path: Path, index: _Index, split: str, faults: sources.Faults) -> list[Path]:
    """Reads one split list, with or without a second column (per-class lists: 1, 0 or -1; Paddle: the XML file)."""
    found: dict[Path, None] = {}
    is_empty = True
    for number, line in enumerate(sources.read_text(path).splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        is_empty = False
        head, _, last = name.replace("\t", " ").rpartition(" ")
        if head and last in _FLAGS:
            name = head.strip()
        elif head and last.lower().endswith(".xml") and _has_known_ending(head.strip()):
            name = last
        with faults.of(split, path.name):
            annotation = index.find(name)
            if annotation is None:
                raise UserError(
                    f"`{path}` lists `{name}`, but {name.rsplit('/', 1)[-1]}.xml was not found in {index.root} "
                    f"(line {number})."
                )
            if annotation in found:
                raise UserError(f"`{path}` lists `{name}` twice; each image must appear once (line {number}).")
            found[annotation] = None
    if is_empty:
        raise UserError(f"`{path}` is empty; expected one image name per line.")
    return list(found)


def _has_annotations(folder: Path) -> bool:
    """Checks whether a folder or an annotation folder in it has VOC XML files."""
    folders = [inner for inner in _folders(folder) if inner.name.lower() in _ANNOTATION_FOLDERS]
    folders += [inner for outer in folders for inner in _folders(outer)]
    paths = (path for inner in (*folders, folder) for path in inner.glob("*.[xX][mM][lL]"))
    return any(xml_files.root_tag(path) == "annotation" for path in paths if not lookup.is_hidden(path))


def _folders(parent: Path) -> list[Path]:
    return lookup.visible(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
