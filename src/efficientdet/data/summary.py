"""What a conversion did: figures per split and class, and everything that was changed or dropped."""

import dataclasses

from rich.console import Console
from rich.table import Table

from efficientdet.data import policy, sources
from efficientdet.data.reading import accounts
from efficientdet.result import Result
from efficientdet.structures import Category

_NUM_NAMES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Figures of one split; boxes include crowds.

    Attributes:
        num_examples: images.
        num_boxes: boxes.
        num_crowds: boxes that mark a crowd.
        max_boxes: boxes of the image that has the most.
        boxes_per_class: boxes of each label.
    """

    num_examples: int
    num_boxes: int
    num_crowds: int
    max_boxes: int
    boxes_per_class: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary(Result):
    """What a conversion did.

    Attributes:
        format: annotation format, one of `registry.NAMES`.
        source: folder that was read.
        output: folder that was written; empty after a dry run.
        categories: the classes.
        splits: figures of each split.
        problems: what was fixed, dropped, or (dry run) is broken.
        num_broken: images that cannot be used; without `skip_broken_images` they stop the conversion.
        account: what happened to every file and annotation.
        would_stop: after a dry run, why a conversion with the same options would stop; empty if it would not.
    """

    format: str
    source: str
    output: str
    categories: tuple[Category, ...]
    splits: dict[str, SplitSummary]
    problems: tuple[sources.Problem, ...]
    num_broken: int
    account: accounts.Account = dataclasses.field(default_factory=accounts.Account)
    would_stop: str = ""

    @property
    def num_broken_annotations(self) -> int:
        """Counts annotations that cannot be read; without `skip_broken_annotations` they stop the conversion."""
        return sum(problem.kind == sources.BROKEN_ANNOTATION for problem in self.problems)

    def counts(self) -> dict[str, int]:
        """Counts the problems by kind, in the order of their first occurrence."""
        counts: dict[str, int] = {}
        for problem in self.problems:
            counts[problem.kind] = counts.get(problem.kind, 0) + problem.count
        return counts

    def failure(self) -> str:
        """Returns why a conversion would stop; a dry run then exits with status 1."""
        return self.would_stop

    def show(self, console: Console) -> None:
        """Prints the figures, what was fixed or skipped, and what is unused."""
        table = Table("split", box=None, header_style="bold")
        for title in ("images", "boxes", "crowds", "most boxes per image"):
            table.add_column(title, justify="right")
        for name, split in self.splits.items():
            figures = (split.num_examples, split.num_boxes, split.num_crowds, split.max_boxes)
            table.add_row(name, *(f"{figure:,}" for figure in figures))
        console.print(table)
        classes = Table("id", "class", box=None, header_style="bold")
        for name in self.splits:
            classes.add_column(f"{name} boxes", justify="right")
        for label, category in enumerate(self.categories):
            per_split = [f"{split.boxes_per_class[label]:,}" for split in self.splits.values()]
            classes.add_row(str(category.id), category.name, *per_split)
        console.print()
        console.print(classes)
        console.print()
        for line in _account_lines(self):
            console.print(line, markup=False, soft_wrap=True)
        _show_problems(self.problems, console, "see conversion.json for all" if self.output else "")
        if self.account.unused:
            console.print("\nUnused files in the source folder")
            _show_problems(self.account.unused, console, "see conversion.json for all" if self.output else "")
        if self.output:
            text = f"\nWritten to {self.output}; its splits.json lists the images of each split"
            console.print(text, markup=False, soft_wrap=True)


def explain_no_boxes(summary: Summary) -> str:
    """Explains why no box is left."""
    counts = summary.counts()
    kinds = [kind for kind in (policy.NO_AREA, policy.OUTSIDE, policy.NOT_FINITE) if kind in counts]
    dropped = f" ({', '.join(f'{counts[kind]} {kind}' for kind in kinds)})" if kinds else ""
    hint = " If corners are in the wrong order, fix them with `--swap-corners`." if policy.NO_AREA in kinds else ""
    return f"`{summary.source}` has no usable boxes{dropped}, so there is nothing to learn.{hint}"


def explain_stop(summary: Summary, *, skip_broken_images: bool, skip_broken_annotations: bool) -> str:
    """Explains why the faults that a dry run found would stop a conversion; empty if they would not."""
    faults = [] if skip_broken_images else [(summary.num_broken, "images")]
    faults += [] if skip_broken_annotations else [(summary.num_broken_annotations, "annotations")]
    for count, what in faults:
        if count:
            return f"{count} {what} in `{summary.source}` cannot be used and would stop a conversion."
    return ""


def _account_lines(summary: Summary) -> list[str]:
    """Describes, in figures that add up, what happened to images, annotation files and annotations."""
    account = summary.account
    used = sum(split.num_examples for split in summary.splits.values())
    written = sum(split.num_boxes for split in summary.splits.values())
    broken = f", {summary.num_broken:,} broken" if summary.num_broken else ""
    lines = [
        f"Images: {used:,} used ({account.num_background:,} of them background, with no annotations){broken}, "
        f"{account.num_unused_images:,} unused"
    ]
    if account.num_annotation_files is not None:
        num_unused = len(account.unused) - account.num_unused_images
        lines.append(f"Annotation files: {account.num_annotation_files:,} used; other files: {num_unused:,} unused")
    lost: dict[str, int] = {}
    for problem in summary.problems:
        if problem.lost:
            lost[problem.kind] = lost.get(problem.kind, 0) + problem.lost
    rest = account.num_annotations - written - sum(lost.values())
    if rest > 0:
        lost["in broken images"] = rest
    dropped = "".join(f", {count:,} {kind}" for kind, count in lost.items())
    clipped = summary.counts().get(policy.CLIPPED, 0)
    lines.append(
        f"Annotations: {account.num_annotations:,} read, {written:,} written ({clipped:,} of them clipped){dropped}"
    )
    return lines


def _show_problems(problems: tuple[sources.Problem, ...], console: Console, rest: str) -> None:
    """Prints problems by kind; faults are all listed if no file will hold the rest."""
    kinds: dict[str, list[sources.Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    for kind, of_kind in kinds.items():
        count = sum(problem.count for problem in of_kind)
        console.print(f"\n{count:,} {kind}:", markup=False, soft_wrap=True)
        is_fault = kind in (policy.BROKEN, sources.BROKEN_ANNOTATION)
        limit = len(of_kind) if is_fault and not rest else _NUM_NAMES
        for problem in of_kind[:limit]:
            number = f" x {problem.count}" if problem.count > 1 else ""
            detail = f": {problem.detail}" if problem.detail else ""
            split = f" ({problem.split})" if problem.split else ""
            console.print(f"  {problem.file_name}{split}{number}{detail}", markup=False, soft_wrap=True)
        if len(of_kind) > limit:
            console.print(f"  and {len(of_kind) - limit} more files{f'; {rest}' if rest else ''}", markup=False)
