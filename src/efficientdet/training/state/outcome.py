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
    """AP of weights/best on the validation images; None without validation images."""
    metrics: dict[str, float | None]
    """AP and the other metrics of the last evaluation, and the validation losses."""
    skipped_steps: int
    ended: str
    """Why it ended: all epochs are done, or patience ran out."""
    seconds: float
    """Duration of this process; a resumed run counts from the resume."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """Warnings of this process."""

    def text(self) -> str:
        """Says where the best weights are, if a best AP is known."""
        return "" if self.best_ap is None else f"Weights: {self.run_dir}/weights/best.safetensors"

    def best(self) -> str:
        """Formats the best AP for the last line of a run; empty without one."""
        return "" if self.best_ap is None else f", best AP {100 * self.best_ap:.1f}"


def read(folder: Path) -> TrainingSummary | None:
    """Reads how the run of a folder ended and prints it; returns None if it hasn't ended."""
    values = run_directory.read_summary(folder)
    if values is None or values.keys() != {field.name for field in dataclasses.fields(TrainingSummary)}:
        return None
    summary = TrainingSummary(**values)
    if processes.is_first():
        text = f"already finished after {summary.steps} steps{summary.best()}: {folder}"
        progress.console.print(text, soft_wrap=True, markup=False)
    return summary
