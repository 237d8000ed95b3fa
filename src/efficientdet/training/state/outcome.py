"""How a run ended: summary.json, as an object."""

import dataclasses
from pathlib import Path

from efficientdet import progress
from efficientdet.result import Result
from efficientdet.training.distributed import processes
from efficientdet.training.state import run_directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSummary(Result):
    """How a run ended."""

    run_dir: str
    steps: int
    epochs: float
    best_ap: float | None
    """AP of weights/best on the validation images; none without any."""
    metrics: dict[str, float | None]
    """Of the last evaluation: AP and the others, and the validation losses."""
    skipped_steps: int
    ended: str
    """Why it ended: all epochs are done, or patience was lost."""
    seconds: float
    """Of this process; a resumed run counts from the resume."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """Likewise."""

    def text(self) -> str:
        """Says where the best weights are, if there was something to tell the best by."""
        return "" if self.best_ap is None else f"Weights: {self.run_dir}/weights/best.safetensors"

    def best(self) -> str:
        """Writes the best AP for the last line of a run; empty without one."""
        return "" if self.best_ap is None else f", best AP {100 * self.best_ap:.1f}"


def read(folder: Path) -> TrainingSummary | None:
    """Reads how the run of a folder ended and says so; none: it has not ended."""
    values = run_directory.read_summary(folder)
    if values is None or values.keys() != {field.name for field in dataclasses.fields(TrainingSummary)}:
        return None
    summary = TrainingSummary(**values)
    if processes.is_first():
        text = f"done before, after {summary.steps} steps{summary.best()}: {folder}"
        progress.console.print(text, soft_wrap=True, markup=False)
    return summary
