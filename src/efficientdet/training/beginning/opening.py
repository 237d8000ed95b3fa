"""Before a run: settings that fit each other, its folder, the processes beside this one, its data and its start."""

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
    """What a run will do.

    Attributes:
        config: with the number of classes, and with values for all that was left open.
        folder: the run directory.
        dataset: what it trains on.
        start: the weights that it starts from.
        derived: the values that were left open, by dotted name.
        facts: JSON values that the folder and each checkpoint keep.
        notes: what there is to say beforehand.
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
    """Joins the other processes of a run and catches signals; at the end of the block its folder is free again.

    Raises:
        UserError: settings do not fit each other, or another process does not come.
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
        UserError: something of it cannot be used, or the folder belongs to another run.
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
