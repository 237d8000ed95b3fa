"""The command `train`: a config -> one run, one run per seed, or a run that ends with an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, overload

import tyro

from efficientdet import backend, progress
from efficientdet.config import ExperimentConfig, ExportFormat
from efficientdet.errors import UserError
from efficientdet.exporters import exports
from efficientdet.training import run
from efficientdet.training.distributed import processes
from efficientdet.training.state import outcome
from efficientdet.training.trials import seeds as several

_FORMATS = f"{{{','.join(get_args(ExportFormat))}}}"
_SEEDS: Any = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="SEEDS",
    instance_from_str=lambda words: several.parse(words[0]),
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=lambda value: [",".join(map(str, value or ()))],
)


@overload
def train(
    config: ExperimentConfig, *, seeds: None = None, export: ExportFormat | None = None
) -> outcome.TrainingSummary: ...


@overload
def train(config: ExperimentConfig, *, seeds: Sequence[int], export: None = None) -> several.SeedsSummary: ...


def train(
    config: Annotated[ExperimentConfig, tyro.conf.arg(name="")],
    *,
    seeds: Annotated[
        Sequence[int] | None, _SEEDS, tyro.conf.arg(help_behavior_hint="(default: one run, from training.seed)")
    ] = None,
    export: Annotated[
        ExportFormat | None, tyro.conf.arg(metavar=_FORMATS, help_behavior_hint="(default: no export)")
    ] = None,
) -> outcome.TrainingSummary | several.SeedsSummary:
    """Trains a preset on a dataset; every knob below can be changed. Running the same command again resumes the run.

    Args:
        config: preset, data, and every knob of the run; calling again with the same `run_dir` resumes the run.
        seeds: train once with each of these seeds, in RUN_DIR/seed-N, and report mean and standard deviation; written
            as 0..4 or 0,1,7.
        export: after training, export the best weights to RUN_DIR/exports in this format; needs TensorFlow.

    Returns:
        Summary of the run, or with `seeds` of each run, with mean and standard deviation of the metrics; everything
        else is in the run folder.

    Raises:
        UserError: a setting or the data cannot be used, the folder belongs to another run, the loss diverged, or the
            export fails.
        Interrupted: a scheduler sent SIGTERM or SIGUSR1; the state was saved (a SystemExit with status 75).
        Stopped: the same after Ctrl-C (a KeyboardInterrupt).
    """
    if export is not None:
        _check_export(export, seeds)
    if seeds is not None:
        return several.train_seeds(config, seeds)
    summary = run.train(config)
    if export is not None:
        _export_run(Path(summary.run_dir), export)
    return summary


def _check_export(format: ExportFormat, seeds: Sequence[int] | None) -> None:
    """Raises a UserError before training if the export would fail after it."""
    if seeds is not None:
        raise UserError("`export` and `seeds` cannot be combined; export the best run afterwards.")
    if format not in exports.PRECISIONS:
        raise UserError(f"`export` is {format}; choose from {', '.join(exports.PRECISIONS)}.")
    if backend.running() != "tensorflow":
        raise UserError(
            "`export` needs the TensorFlow backend; train without it, then run `efficientdet export` on the run folder."
        )
    exports.require(format)


def _export_run(folder: Path, format: ExportFormat) -> None:
    """Exports the best weights of a run into its folder; only in the first process."""
    if processes.is_first():
        made = exports.export(folder, format=format, output=folder / "exports" / format)
        progress.console.print(made.text(), soft_wrap=True, markup=False)
