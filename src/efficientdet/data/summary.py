"""What a conversion did: figures of each split and class, and what was not taken over as it stood."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from efficientdet.data import sources
from efficientdet.structures import Category

_NUM_NAMES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Figures of one split; boxes include crowds.

    Attributes:
        num_examples: pictures.
        num_boxes: boxes.
        num_crowds: boxes that mark a crowd.
        max_boxes: boxes of the fullest picture.
        boxes_per_class: boxes of each label.
    """

    num_examples: int
    num_boxes: int
    num_crowds: int
    max_boxes: int
    boxes_per_class: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a conversion did.

    Attributes:
        format: coco, voc or yolo.
        source: folder that was read.
        output: folder that was written; empty after a dry run.
        categories: the classes.
        splits: figures of each split.
        problems: what was mended, dropped, or (dry run) is broken.
        num_broken: pictures that cannot be used; after a dry run without `skip_broken_images` they would stop the
            conversion.
    """

    format: str
    source: str
    output: str
    categories: tuple[Category, ...]
    splits: dict[str, SplitSummary]
    problems: tuple[sources.Problem, ...]
    num_broken: int

    def to_dict(self) -> dict[str, Any]:
        """Turns it into plain JSON values."""
        return dataclasses.asdict(self)

    def counts(self) -> dict[str, int]:
        """Counts the problems by kind, in the order of their first occurrence."""
        counts: dict[str, int] = {}
        for problem in self.problems:
            counts[problem.kind] = counts.get(problem.kind, 0) + problem.count
        return counts


def show(summary: Summary, console: Console | None = None) -> None:
    """Prints a summary for people, on standard output unless another console is given."""
    console = console or Console(highlight=False)
    table = Table("split", box=None, header_style="bold")
    for title in ("pictures", "boxes", "of them crowds", "fullest picture"):
        table.add_column(title, justify="right")
    for name, split in summary.splits.items():
        figures = (split.num_examples, split.num_boxes, split.num_crowds, split.max_boxes)
        table.add_row(name, *(f"{figure:,}" for figure in figures))
    console.print(table)
    classes = Table("id", "class", box=None, header_style="bold")
    for name in summary.splits:
        classes.add_column(f"{name} boxes", justify="right")
    for label, category in enumerate(summary.categories):
        per_split = [f"{split.boxes_per_class[label]:,}" for split in summary.splits.values()]
        classes.add_row(str(category.id), category.name, *per_split)
    console.print()
    console.print(classes)
    for kind, count in summary.counts().items():
        console.print(f"\n{count:,} {kind}:", markup=False, soft_wrap=True)
        of_kind = [problem for problem in summary.problems if problem.kind == kind]
        for problem in of_kind[:_NUM_NAMES]:
            number = f" x {problem.count}" if problem.count > 1 else ""
            detail = f": {problem.detail}" if problem.detail else ""
            console.print(f"  {problem.file_name} ({problem.split}){number}{detail}", markup=False, soft_wrap=True)
        if len(of_kind) > _NUM_NAMES:
            console.print(f"  and {len(of_kind) - _NUM_NAMES} more files, all of them in conversion.json", markup=False)
    if summary.output:
        text = f"\nWritten to {summary.output}; splits.json there names the images of each split"
        console.print(text, markup=False, soft_wrap=True)
