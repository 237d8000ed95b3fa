"""Accounts for every file and annotation of a source: the figures add up, and unused files are named."""

import collections
import dataclasses
import os
from pathlib import Path

import numpy as np

from efficientdet.data import sources
from efficientdet.data.reading import lookup
from efficientdet.errors import UserError

_REPEATED = "duplicate annotations in the same image kept"
_USED_TWICE = "images used more than once"
_UNUSED_IMAGES = "unused images"
_WITHOUT = "splits without a single annotation"
_ONLY_CROWDS = "splits whose annotations are all crowds (`iscrowd` 1): nothing to learn or to evaluate"
_MOST_GROUPS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """Counts of what was read.

    Attributes:
        num_background: images without annotations; they teach the network what is not an object.
        num_unused_images: unused image files in the source.
        num_annotation_files: files that annotations, classes and splits were read from; None if unknown.
        num_annotations: annotations read, including dropped ones.
        unused: each unused file in the source; its kind is the reason.
    """

    num_background: int = 0
    num_unused_images: int = 0
    num_annotation_files: int | None = None
    num_annotations: int = 0
    unused: tuple[sources.Problem, ...] = ()


def account(source: Path, dataset: sources.Source, wanted: tuple[str, ...]) -> Account:
    """Compares what a dataset uses with what its folder contains.

    Args:
        source: the folder.
        dataset: what was read from it.
        wanted: requested splits; all if empty.
    """
    examples = [example for some in dataset.splits.values() for example in some]
    used = {os.path.abspath(example.path) for example in examples}  # noqa: PTH100 - without following links
    read = {os.path.abspath(path) for path in dataset.annotation_files or ()}  # noqa: PTH100
    of_splits = f" in the splits {', '.join(wanted)}" if wanted else ""
    unused = []
    for path in lookup.Files(source).paths():
        if path in used or path in read:
            continue
        kind = _reason(path, dataset, of_splits)
        if kind:
            name = os.path.relpath(path, Path(source).absolute())
            unused.append(sources.Problem(kind=kind, split="", file_name=name))
    files = dataset.annotation_files
    return Account(
        num_background=sum(not len(example.labels) for example in examples),
        num_unused_images=sum(problem.kind.startswith(_UNUSED_IMAGES) for problem in unused),
        num_annotation_files=None if files is None else len(files),
        num_annotations=sum(len(e.labels) for e in examples) + sum(problem.lost for problem in dataset.problems),
        unused=tuple(unused),
    )


def find_repeats(dataset: sources.Source) -> list[sources.Problem]:
    """Reports images used twice, in one split or in two, and duplicate annotations (same image, class and box)."""
    problems = []
    users: dict[str, str] = {}
    for split, examples in dataset.splits.items():
        for example in examples:
            path = os.path.abspath(example.path)  # noqa: PTH100
            if path in users:
                detail = f"in `{split}` and in `{users[path]}`" if users[path] != split else ""
                problems.append(
                    sources.Problem(kind=_USED_TWICE, split=split, file_name=example.file_name, detail=detail)
                )
            users.setdefault(path, split)
            if len(example.labels) > 1:
                rows = np.column_stack([example.boxes, example.labels])
                count = len(rows) - len(np.unique(rows, axis=0))
                if count:
                    problems.append(
                        sources.Problem(kind=_REPEATED, split=split, file_name=example.file_name, count=count)
                    )
    return problems


def find_useless(dataset: sources.Source) -> list[sources.Problem]:
    """Reports splits without annotations if other splits have some, and splits whose annotations are all crowds.

    Raises:
        UserError: all annotations are crowds, in train or in every split.
    """
    problems: list[sources.Problem] = []
    only = {
        split: sum(len(example.labels) for example in examples)
        for split, examples in dataset.splits.items()
        if any(len(e.labels) for e in examples) and all(e.is_crowd.all() for e in examples)
    }
    if "train" in only or (only and len(only) == len(dataset.splits)):
        split, count = next((name, count) for name, count in only.items() if name == "train" or "train" not in only)
        raise UserError(
            f"All {count} annotations of `{split}` are crowds (`iscrowd` 1), which training skips, so there is nothing "
            "to learn. Some tools set `iscrowd` for every mask; use `--crowds-as-objects` to ignore it."
        )
    empty = [
        split
        for split, examples in dataset.splits.items()
        if split not in dataset.unannotated and not any(len(example.labels) for example in examples)
    ]
    if len(empty) < len(dataset.splits):
        problems += [
            sources.Problem(kind=_WITHOUT, split=split, file_name=split, detail=f"looked {dataset.searched}")
            for split in empty
        ]
    return problems + [
        sources.Problem(kind=_ONLY_CROWDS, split=split, file_name=split, detail=f"{count} annotations")
        for split, count in only.items()
    ]


def explain_nothing(dataset: sources.Source) -> str:
    """Explains why a dataset may have no boxes: where they were looked for, what was dropped, what is missing."""
    paths = [example.path for examples in dataset.splits.values() for example in examples]
    texts = [f"Looked {dataset.searched}."] if dataset.searched else []
    texts += [f"{problem.lost} {problem.kind}." for problem in dataset.problems if problem.lost][:3]
    if paths and not any(path.is_file() for path in paths):
        texts.append(f"None of its images were found, such as {paths[0]}; export the images too.")
    return "".join(f" {text}" for text in texts)


def describe_files(source: Path) -> str:
    """Counts the images and annotation files in each folder: "It has 12 .xml files in annotations/, ..."."""
    groups: collections.Counter[tuple[str, str]] = collections.Counter()
    for path in lookup.Files(source).paths():
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        if suffix in sources.ANNOTATION_SUFFIXES or lookup.is_image(path) or suffix in lookup.OTHER_IMAGE_SUFFIXES:
            folder = os.path.relpath(os.path.dirname(path), Path(source).absolute())  # noqa: PTH120
            groups[folder, suffix] += 1
    texts = [
        f"{count:,} {suffix} file{'s' if count > 1 else ''} in {'the folder itself' if folder == '.' else f'{folder}/'}"
        for (folder, suffix), count in groups.most_common(_MOST_GROUPS)
    ]
    more = f" and {len(groups) - _MOST_GROUPS} more kinds" if len(groups) > _MOST_GROUPS else ""
    return f"It has {', '.join(texts)}{more}." if texts else "It has neither images nor annotations."


def _reason(path: str, dataset: sources.Source, of_splits: str) -> str:
    """Returns why a file is unused; empty for files that do not matter."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if suffix in lookup.IMAGE_SUFFIXES:
        return f"{_UNUSED_IMAGES} not named in any annotation{of_splits}"
    if suffix in lookup.OTHER_IMAGE_SUFFIXES:
        return f"{_UNUSED_IMAGES} ({suffix} is not supported)"
    if dataset.annotation_files is None or suffix not in sources.ANNOTATION_SUFFIXES:
        return f"other unused files ({suffix or 'without an extension'})"
    if suffix == ".txt":
        return f"unused text files: not the labels of an image{of_splits}, and not a list"
    if suffix == ".xml":
        return f"unused XML files: not an annotation{of_splits or ' in any split'}"
    return f"unused {suffix} files"
