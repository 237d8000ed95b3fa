"""Preparation of a run: checks its settings, connects its processes, and opens its folder, data and weights."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientdet import backend
from efficientdet import config as configs
from efficientdet.config import ExperimentConfig
from efficientdet.training import schedule
from efficientdet.training.beginning import initialization
from efficientdet.training.dataset import Dataset, open_dataset, prepare_source
from efficientdet.training.distributed import processes, self_check
from efficientdet.training.logs import tracking
from efficientdet.training.state import interruption, run_directory
from efficientdet.training.state.interruption import Interruption
from efficientdet.training.trials import overfitting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run needs.

    Attributes:
        config: the config with the number of classes and all derived values.
        folder: run folder.
        dataset: the data it trains on.
        start: the initial weights.
        derived: the derived values, by dotted name.
        facts: JSON values stored in the folder and in each checkpoint.
        notes: lines to print at the start.
    """

    config: ExperimentConfig
    folder: Path
    dataset: Dataset
    start: initialization.Start
    derived: dict[str, float | str]
    facts: dict[str, Any]
    notes: list[str]


@contextlib.contextmanager
def opened(config: ExperimentConfig) -> Iterator[tuple[Path, Interruption]]:
    """Joins the other processes of a run and catches signals; releases the run folder at the end of the block.

    Raises:
        UserError: settings contradict each other, or another process does not start.
    """
    configs.check(config)
    tracking.check(config)
    if config.training.deterministic:
        backend.use_determinism()
    folder = Path(config.run_dir or f"runs/{config.preset}").expanduser()
    joined = processes.joined(folder, config.training.join_seconds)
    with interruption.caught() as asked, joined, run_directory.released(folder):
        yield folder, asked


def prepare(config: ExperimentConfig, folder: Path) -> Plan:
    """Opens the data, finds the weights to start from, and claims the folder.

    Raises:
        UserError: data or weights cannot be used, or the folder belongs to another run.
    """
    checked = self_check.check_processes(config)
    processes.first_only(lambda: run_directory.check_writable(folder))
    if config.data.source and not config.data.train:  # one process converts
        processes.first_only(lambda: prepare_source(config))
    start = initialization.resumed_start(config, folder) or initialization.find_start(config)
    config = overfitting.adapt(dataclasses.replace(config, model=start.model))
    dataset = open_dataset(config, share=(processes.index(), processes.count()))
    # The number of classes comes from the data.
    model = dataclasses.replace(config.model, num_classes=len(dataset.categories))
    given = dataclasses.replace(config, model=model, run_dir=str(folder))
    config, derived = schedule.derive(given, dataset.num_examples)
    facts = run_directory.facts(given, dataset, derived)
    processes.first_only(lambda: run_directory.claim(facts))
    return Plan(
        config=config,
        folder=folder,
        dataset=dataset,
        start=start,
        derived=derived,
        facts=facts,
        notes=[checked.text()] if checked else [],
    )
