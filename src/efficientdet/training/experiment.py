"""The verb `train`: a config -> one run, one a seed, or one that ends with an export."""

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
    """Trains a preset on a dataset, with any knob below changed. Running the same command again resumes.

    Args:
        config: preset, data, and every knob of the run; its `run_dir` is the folder that a second call resumes.
        seeds: train once from each of these, each in RUN_DIR/seed-N, and report mean and standard deviation; typed as
            0..4 or 0,1,7.
        export: end the run with an export of its best weights, in RUN_DIR/exports; needs TensorFlow.

    Returns:
        How the run ended, or with `seeds` how each did, with mean and standard deviation of their metrics; the run
        directory has the rest.

    Raises:
        UserError: a setting or the data cannot be used, the folder belongs to another run, the loss diverged, or the
            export cannot be made.
        Interrupted: a scheduler sent SIGTERM or SIGUSR1; the state is saved (a SystemExit with status 75).
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
    """Raises a UserError for an export that would fail after hours of training."""
    if seeds is not None:
        raise UserError("`export` and `seeds` do not go together; export the best run afterwards.")
    if format not in exports.PRECISIONS:
        raise UserError(f"`export` is {format}; expected one of {', '.join(exports.PRECISIONS)}.")
    if backend.running() != "tensorflow":
        raise UserError("`export` converts on TensorFlow; train without it, then `efficientdet export` the run.")
    exports.require(format)


def _export_run(folder: Path, format: ExportFormat) -> None:
    """Ends a run with an export of its best weights, in its folder; of several processes the first does."""
    if processes.is_first():
        made = exports.export(folder, format=format, output=folder / "exports" / format)
        progress.console.print(made.text(), soft_wrap=True, markup=False)
