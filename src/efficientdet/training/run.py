"""A training run: ExperimentConfig -> a run directory, on one page.

config.json         everything needed to repeat the run
metrics.jsonl       losses, learning rate, speed, memory and AP, one JSON object a line; also tensorboard/, curves.png
                    and what `logging` asks for
checkpoints/        the whole state, for resume
weights/            averaged weights for use: best and last
evaluation/         images with truth and detections, and the metrics of each evaluation
summary.json        how it ended
log.txt             what was said
"""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from keras import tree

from efficientdet import backend, progress
from efficientdet import config as configs
from efficientdet.config import ExperimentConfig
from efficientdet.model import anchors, layers, weights
from efficientdet.storage import files
from efficientdet.training import batch_statistics, initialization, schedule, validation
from efficientdet.training.dataset import Dataset, open_dataset, prepare_source
from efficientdet.training.distributed import engine, processes, replicas, self_check
from efficientdet.training.logs import announcements, memory, metrics, tracking
from efficientdet.training.logs.cautions import Cautions
from efficientdet.training.logs.step_logs import StepLogs
from efficientdet.training.state import checkpoint, interruption, outcome, run_directory
from efficientdet.training.state.checkpoint_writer import CheckpointWriter
from efficientdet.training.state.interruption import Interruption
from efficientdet.training.step import State, first_state, make_step
from efficientdet.training.trials import overfitting


def train(config: ExperimentConfig) -> outcome.TrainingSummary:
    """Trains as `config` says, or goes on where an earlier run in the same folder stopped.

    Returns:
        How it ended; the run directory has the rest.

    Raises:
        UserError: a setting or the data cannot be used, the folder belongs to another run, or the loss diverged.
        Interrupted: a scheduler sent SIGTERM or SIGUSR1; the state is saved (a SystemExit with status 75).
        Stopped: the same after Ctrl-C (a KeyboardInterrupt).
    """
    configs.check(config)
    tracking.check(config)
    if config.training.deterministic:
        backend.use_determinism()
    folder = Path(config.run_dir or f"runs/{config.preset}").expanduser()
    joined = processes.joined(folder, config.training.join_seconds)
    with interruption.caught() as asked, joined, run_directory.released(folder):
        return _train(config, folder, asked)


def _train(config: ExperimentConfig, folder: Path, asked: Interruption) -> outcome.TrainingSummary:
    """Trains until the end, or until a scheduler asked to stop."""
    # 1. What to train on; the number of classes comes from there.
    checked = self_check.check_processes(config)
    processes.first_only(lambda: files.check_writable(folder / run_directory.CONFIG))
    if config.data.source and not config.data.train:  # one process converts
        processes.first_only(lambda: prepare_source(config))
    start = initialization.resumed_start(config, folder) or initialization.find_start(config)
    config = overfitting.adapt(dataclasses.replace(config, model=start.model))
    dataset = open_dataset(config, share=(processes.index(), processes.count()))
    model_config = dataclasses.replace(config.model, num_classes=len(dataset.categories))
    config = dataclasses.replace(config, model=model_config, run_dir=str(folder))
    given, (config, derived) = config, schedule.derive(config, dataset.num_examples)
    facts = run_directory.facts(given, dataset, derived)
    processes.first_only(lambda: run_directory.claim(facts))
    if (ended := outcome.read(folder)) is not None:
        return ended

    # 2. The network and its state, new or resumed.
    from efficientdet.model.efficientdet import EfficientDet

    # Keras draws the seeds of initialisers and of stochastic depth from here. `keras.utils.set_random_seed` would
    # import TensorFlow, wherever it is installed, also to train on JAX.
    random.seed(config.training.seed)
    model = EfficientDet(config.model, precision=backend.use_precision(config.training.precision))
    notes = initialization.assign_start(model, start, dataset.categories)
    initialization.freeze(model, config.training.freeze)
    newest = run_directory.find_checkpoint(folder)
    state, position = checkpoint.load(newest, model) if newest else (first_state(model, config.optimizer.method), {})
    run = _Run(config, dataset, folder, model, state, position, facts)
    asked.say = run.say

    # 3. The loop: steps, with an evaluation and a checkpoint now and then.
    if checked:
        run.say(checked.text())
    run.say(f"{config.model.name}: {run.describe()}")
    for note in notes if newest is None else ():
        run.say(note)
    if derived:
        run.say(announcements.derived(derived))
    run.cautions.start()
    last = run.schedule.total_steps
    run.say(f"resumed at step {run.step} of {last}" if newest else f"{last} steps to {folder}")
    forecast = announcements.Forecast(last, run.batch_size, run.say)
    with (
        run.metrics,
        run.checkpoints,
        progress.track("train", last * run.batch_size, start=run.step * run.batch_size) as bar,
    ):
        if run.evaluation_is_due:  # the run ended inside it
            with run.logs.paused():
                run.evaluate(asked)
        for batch in run.batches():
            run.train_on(batch, is_asked_to_end=asked.is_wanted())
            asked.can_wait = True
            forecast.advance(run.step)
            bar.advance(run.batch_size, run.note())
            run.evaluation_is_due = run.step in run.schedule.evaluation_steps
            is_last = asked.is_wanted() if processes.count() == 1 else run.logs.is_asked_to_end
            if run.step % config.training.checkpoint_every == 0 or run.evaluation_is_due or is_last:
                run.save()
            if is_last:
                raise asked.end(run.step)
            if run.evaluation_is_due:
                with run.logs.paused():
                    run.evaluate(asked)
                forecast.leave_out()

        # 4. What came of it.
        return run.finish()


class _Run:
    """The state of a run on the host."""

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        folder: Path,
        model: Any,
        state: State,
        position: dict[str, Any],
        facts: dict[str, Any],
    ):
        """Brings the state to the devices and compiles the step.

        Args:
            config: of the run, with derived values.
            dataset: what it trains on.
            folder: the run directory.
            model: EfficientDet.
            state: NumPy arrays.
            position: what `save` wrote; empty at first.
            facts: JSON values that each checkpoint keeps.
        """
        self.config, self.dataset, self.folder, self.model = config, dataset, folder, model
        self.batch_size = config.training.batch_size
        self.schedule = schedule.make_schedule(config, dataset.num_examples)
        self.step = int(state["step"])
        self.best_ap: float | None = position.get("best_ap")
        self.best_step: int | None = position.get("best_step")
        self.evaluation_is_due: bool = position.get("evaluation_is_due", False)
        self.last_metrics: dict[str, float | None] = position.get("last_metrics", {})
        self.worse_evaluations: int = position.get("worse_evaluations", 0)
        self.checkpoints = CheckpointWriter(folder / "checkpoints", model, facts, config.training.keep_checkpoints)
        self._anchors = anchors.anchor_boxes(config.model)
        self._replicas = replicas.make_replicas(config.training, model)
        layers.choose_depthwise(model, devices=self._replicas.count)
        self.state = self._replicas.place_state(state)
        self._step: Callable[..., Any] | None = None
        self._validate = backend.compile_function(
            validation.make_validation(model, self._anchors, config), xla=config.training.xla
        )
        self._recalibrate = batch_statistics.Recalibration(model, config.training, dataset)
        self._began = time.monotonic()
        self.metrics = metrics.open_writer(
            config,
            folder,
            self.step,
            evaluates_again=self.evaluation_is_due,
            num_devices=self._replicas.count,
            say=self.say,
        )
        self.cautions = Cautions(config, dataset, folder, self._replicas.count, self.say)
        self.logs = StepLogs(config.training, self.metrics, self.say, self.checkpoints.newest)

    def describe(self) -> str:
        """Says in one line what is trained on what."""
        parameters = sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables)
        return announcements.describe(self.config, self.dataset, parameters, self._replicas.count)

    def say(self, text: str) -> None:
        """Says something to the person and to log.txt; of several processes, the first does."""
        if not processes.is_first():
            return
        run_directory.log(self.folder, text)
        progress.console.print(text, soft_wrap=True, markup=False)

    def batches(self) -> Iterator[Any]:
        """Goes through the batches that are left, until patience is lost; notes how long the device waits for them."""
        batches = self.dataset.training_batches(self.step, self.schedule.total_steps)
        while not self.has_lost_patience:
            with self.logs.waiting():
                item = next(batches, None)
            if item is None:
                return
            yield item

    def train_on(self, item: tuple[Any, np.ndarray], *, is_asked_to_end: bool) -> None:
        """Makes one step. The logs of the step before are read, so that the device is never idle for the host."""
        batch, ids = item
        if self._step is None or self.step == self.schedule.fixed_from:
            self._begin_phase()
        assert self._step is not None
        if processes.count() > 1:
            batch = {**batch, "is_asked_to_end": np.full(len(batch["images"]), is_asked_to_end)}
        self.state, logs = self._step(self.state, self._replicas.place_batch(batch))
        self.step += 1
        self.logs.add(self.step, self._replicas.first(logs), ids)
        self.checkpoints.check()
        if self.step % self.config.training.log_every == 0 or self.step == self.schedule.total_steps:
            self.cautions.trained(self.logs.write(self.epoch, skipped_steps=self.skipped_steps))

    def _begin_phase(self) -> None:
        """Compiles the step; where batch statistics are to stay from here on, measures what they stay at."""
        is_fixed = self.step >= self.schedule.fixed_from
        if self.step == self.schedule.fixed_from:
            self.say(announcements.fixed(self.step))
            self.state = self._replicas.place_state(self._recalibrate.fix(self._replicas.read_state(self.state)))
        learning_rate = self.schedule.learning_rate
        step = make_step(self.model, self._anchors, self.config, learning_rate, self._replicas, is_fixed=is_fixed)
        self._step = self._replicas.compile(step, xla=self.config.training.xla)

    @property
    def skipped_steps(self) -> int:
        """Steps that changed nothing, because something in them was not finite."""
        return self.step - int(self._replicas.first(self.state["updates"]))

    @property
    def has_lost_patience(self) -> bool:
        """Whether too many evaluations in a row were no better than the best."""
        return 0 < self.config.training.patience <= self.worse_evaluations

    @property
    def epoch(self) -> float:
        """Passes over the training images so far."""
        return self.step / self.schedule.steps_per_epoch

    def note(self) -> str:
        """Says where the run is, for the progress bar."""
        place = f"epoch {self.epoch:.2f}/{self.config.training.epochs:g}"
        return f"{place}, {self.logs.note}" if self.logs.note else place

    def evaluate(self, asked: Interruption) -> None:
        """Evaluates the averaged weights and keeps them if they are the best so far; leaves off when asked to end."""
        trainable, non_trainable = self._averages(asked)
        arrays = weights.named(self.model, engine.to_host([*trainable, *non_trainable]))
        if not self.dataset.num_validation:
            self._save_weights("last", arrays)
            self.metrics.save_curves()
            self._end_evaluation()
            return
        began = time.monotonic()
        batches = asked.guard(self.dataset.validation_batches())
        found = validation.evaluate_averages(
            self._validate,
            trainable,
            non_trainable,
            batches,
            self.dataset.categories,
            self.dataset.num_validation,
        )
        self.last_metrics = {**found.losses, **found.evaluation.metrics}
        values = {**self.last_metrics, "evaluation_seconds": time.monotonic() - began}
        self.metrics.write("validation", step=self.step, epoch=self.epoch, values=values)
        if processes.is_first():
            run_directory.write_evaluation(self.folder, self.step, found, self.dataset.categories, self.metrics)
        ap = found.evaluation.metrics["AP"]
        self.say(f"epoch {self.epoch:.1f}: {found.evaluation.line()}")
        self.cautions.evaluated(found)
        if ap is not None and (self.best_ap is None or ap > self.best_ap):
            self.best_ap, self.best_step, self.worse_evaluations = ap, self.step, 0
            self._save_weights("best", arrays)
        elif ap is not None:
            self.worse_evaluations += 1
        self._save_weights("last", arrays)
        self.metrics.save_curves()
        self._end_evaluation()

    def _end_evaluation(self) -> None:
        """Writes that the evaluation is done; the same checkpoint said before that it was due."""
        self.evaluation_is_due = False
        self.save()
        memory.trim()

    def _save_weights(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes averaged weights as weights/<name>."""
        if not processes.is_first():
            return
        path = self.folder / "weights" / f"{name}{weights.SUFFIX}"
        weights.save(path, arrays, self.config.model, self.dataset.categories, self.config.postprocess)

    def _averages(self, asked: Interruption) -> tuple[list[Any], list[Any]]:
        """Returns the averaged weights, on the device, and the batch statistics to use them with."""
        names = ("average_trainable", "average_non_trainable")
        state = self._replicas.read_state({name: self.state[name] for name in names})
        trainable, averaged = (state[name] for name in names)  # JAX sorts the keys of a dictionary
        if self.step > self.schedule.fixed_from:
            return trainable, averaged
        return trainable, self._recalibrate(trainable, averaged, asked.guard)

    def save(self) -> None:
        """Begins to write a checkpoint."""
        if not processes.is_first():
            return
        position = {
            "best_ap": self.best_ap,
            "best_step": self.best_step,
            "last_metrics": self.last_metrics,
            "worse_evaluations": self.worse_evaluations,
            "evaluation_is_due": self.evaluation_is_due,
        }
        self.checkpoints.write(engine.to_host(self._replicas.read_state(self.state)), position, self.best_step)

    def finish(self) -> outcome.TrainingSummary:
        """Writes summary.json, once the last checkpoint is written."""
        self.checkpoints.wait()
        if same := self_check.check_state(tree.flatten(engine.to_host(self._replicas.read_state(self.state)))):
            self.say(same)
        training = self.config.training
        ended = f"all {training.epochs:g} epochs are done"
        if self.step < self.schedule.total_steps:
            ended = f"no better AP in {self.worse_evaluations} evaluations (`training.patience`)"
        ended += self.cautions.ending()
        summary = outcome.TrainingSummary(
            run_dir=str(self.folder),
            steps=self.step,
            epochs=self.epoch,
            best_ap=self.best_ap,
            metrics=self.last_metrics,
            skipped_steps=self.skipped_steps,
            ended=ended,
            seconds=time.monotonic() - self._began,
            warnings=self.cautions.said,
        )
        if processes.is_first():
            files.write_json(self.folder / run_directory.SUMMARY, summary.to_dict())
        self.metrics.finish(summary.to_dict())
        self.say(f"done after {self.step} steps, {ended}{summary.best()}: {self.folder}")
        return summary
