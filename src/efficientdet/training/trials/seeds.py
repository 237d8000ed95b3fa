"""The same training with several seeds, one after another: one row per seed, then mean and standard deviation.

RUN_DIR/seed-N is an ordinary run; a finished one is not trained again. The table shows the last evaluation of each run,
of the averaged weights at its end. The standard deviation is that of a sample (n - 1).

Each run has its own process because TensorFlow never frees the graph of a compiled step: five runs of a small model in
one process leaked 150 MB each.
"""

import dataclasses
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from efficientdet import backend, knobs, progress
from efficientdet import config as configs
from efficientdet.config import ExperimentConfig
from efficientdet.errors import UserError
from efficientdet.evaluation import counting
from efficientdet.result import Result
from efficientdet.storage import files
from efficientdet.training.distributed import processes
from efficientdet.training.logs import tracking
from efficientdet.training.state import interruption, outcome, run_directory

RESULT, TABLE = "seeds.json", "seeds.md"

_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_MOST = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedsSummary(Result):
    """How the runs ended."""

    run_dir: str
    runs: dict[int, outcome.TrainingSummary]
    """Seed -> its run."""
    mean: dict[str, float | None]
    """Mean of each metric over the seeds; None if a seed lacks it."""
    standard_deviation: dict[str, float | None]
    """Of a sample (n - 1); None for a single seed."""

    def to_dict(self) -> dict[str, Any]:
        """Converts the summary to plain JSON values."""
        runs = {str(seed): summary.to_dict() for seed, summary in self.runs.items()}
        return {**dataclasses.asdict(self), "runs": runs}

    def rows(self) -> list[list[str]]:
        """Formats the table in percent: headings first, mean and standard deviation last."""
        rows = [["seed", *_COLUMNS, "best AP"]]
        for seed, summary in self.runs.items():
            values = [summary.metrics.get(name) for name in _COLUMNS]
            rows.append([str(seed), *map(_percent, [*values, summary.best_ap])])
        for label, found in (("mean", self.mean), ("standard deviation", self.standard_deviation)):
            rows.append([label, *(_percent(found.get(name)) for name in (*_COLUMNS, "best_AP"))])
        return rows

    def table(self) -> Table:
        """Formats the rows for a terminal."""
        headings, *rows = self.rows()
        table = Table(title=f"{len(self.runs)} seeds, %", title_justify="left")
        for heading in headings:
            table.add_column(heading, justify="right")
        for number, row in enumerate(rows):
            table.add_row(*row, end_section=number == len(self.runs) - 1)
        return table


def parse(text: str) -> tuple[int, ...]:
    """Parses seeds: numbers and ranges that include both ends, such as `0..4` or `0,1,7`.

    Raises:
        UserError: the text is not of this form.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", part.strip())
        if match is None:
            raise UserError(f"`seeds` is `{text}`; expected numbers and ranges, such as 0..4 or 0,1,7.")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + _MOST:
            raise UserError(
                f"`seeds` is `{text}`; the range `{part.strip()}` must be ascending and have at most {_MOST:,} seeds."
            )
        seeds += range(first, last + 1)
    return tuple(seeds)


def train_seeds(config: ExperimentConfig, seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> SeedsSummary:
    """Trains once with each seed, or resumes where an earlier call stopped.

    Args:
        config: config of every run except for `training.seed`; the runs are in subfolders of its `run_dir`.
        seeds: different seeds, in the order of training.

    Returns:
        Summary of the runs; also written to `seeds.json` and `seeds.md` in the run folder after each run.

    Raises:
        UserError: a run cannot be trained, or the folder is a run itself.
        Interrupted, Stopped: as in `train`; the same call resumes.
    """
    _check(config, seeds)
    folder = Path(config.run_dir or f"runs/{config.preset}").expanduser()
    if (folder / run_directory.CONFIG).exists():
        raise UserError(f"`{folder}` is a run itself; use another `--run-dir` for several seeds.")
    found: dict[int, outcome.TrainingSummary] = {}
    for number, seed in enumerate(seeds, start=1):
        progress.console.print(f"seed {seed} ({number} of {len(seeds)})", markup=False)
        training = dataclasses.replace(config.training, seed=seed)
        found[seed] = _train(dataclasses.replace(config, run_dir=str(folder / f"seed-{seed}"), training=training))
        summary = _sum_up(folder, found)
        _write(folder, summary)
    return summary


def _check(config: ExperimentConfig, seeds: Sequence[int]) -> None:
    """Raises a UserError for settings that no run can use."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"`seeds` is {', '.join(map(str, seeds)) or 'empty'}; expected distinct numbers.")
    if processes.count() > 1:
        raise UserError(
            "`seeds` does not work with several processes; start the processes once for each `--training.seed`."
        )
    configs.check(config)
    tracking.check(config)


def _train(config: ExperimentConfig) -> outcome.TrainingSummary:
    """Trains one seed in its own process, which prints its own messages and is stopped cleanly if this one is."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / run_directory.CONFIG
        files.write_json(file, knobs.to_dict(config))
        words = ["train", "--config", str(file), "--backend", backend.running()]
        # Results go to standard output, which belongs to this process.
        command = [sys.executable, "-m", "efficientdet", *words]
        with interruption.caught(), subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                status = process.wait()
            except BaseException:
                process.terminate()
                raise
    if status == interruption.STATUS:
        raise interruption.Interrupted
    if status == interruption.STOPPED_STATUS:
        raise interruption.Stopped
    if status != 0:
        raise UserError(
            f"Seed {config.training.seed} failed with status {status}, for the reason above; run the same command to "
            "resume."
        )
    values = json.loads((Path(config.run_dir) / run_directory.SUMMARY).read_text(encoding="utf-8"))
    return outcome.TrainingSummary(**values)


def _sum_up(folder: Path, runs: dict[int, outcome.TrainingSummary]) -> SeedsSummary:
    """Computes mean and standard deviation of each metric."""
    rows = [{**summary.metrics, "best_AP": summary.best_ap} for summary in runs.values()]
    names = [*counting.METRICS, "best_AP", "loss", "class_loss", "box_loss"]
    known = {name: [value for row in rows if (value := row.get(name)) is not None] for name in names}
    return SeedsSummary(
        run_dir=str(folder),
        runs=dict(runs),
        mean={name: statistics.fmean(found) if len(found) == len(rows) else None for name, found in known.items()},
        standard_deviation={
            name: statistics.stdev(found) if len(found) == len(rows) > 1 else None for name, found in known.items()
        },
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _write(folder: Path, summary: SeedsSummary) -> None:
    """Writes the result as JSON, and the table in Markdown."""
    files.write_json(folder / RESULT, summary.to_dict())
    headings, *rows = summary.rows()
    lines = [headings, ["---:"] * len(headings), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    files.write_text(folder / TABLE, text)
