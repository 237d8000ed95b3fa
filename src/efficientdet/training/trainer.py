"""The work between two steps of a run: feed the next batch, validate, keep the best weights, write checkpoints.

The loop that decides when is in `run`; the step itself, a pure function, is in `step`.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from keras import tree

from efficientdet import backend, progress
from efficientdet.model import anchors, weights
from efficientdet.storage import files
from efficientdet.training import batch_statistics, schedule, validation
from efficientdet.training.beginning import initialization
from efficientdet.training.beginning.opening import Plan
from efficientdet.training.distributed import engine, processes, replicas, self_check
from efficientdet.training.logs import announcements, memory, metrics
from efficientdet.training.logs.cautions import Cautions
from efficientdet.training.logs.step_logs import StepLogs
from efficientdet.training.state import checkpoint, outcome, run_directory
from efficientdet.training.state.checkpoint_writer import CheckpointWriter
from efficientdet.training.state.interruption import Interruption
from efficientdet.training.step import first_state, make_step


class Trainer:
    """A run in progress: the network and its state, the position in the run, its results, and its outputs."""

    def __init__(self, plan: Plan):
        """Creates network and state, new or resumed, moves the state to the devices, and prints what is trained."""
        config, folder, dataset = plan.config, plan.folder, plan.dataset
        self.config, self.dataset, self.folder = config, dataset, folder
        self.batch_size = config.training.batch_size
        self.schedule = schedule.make_schedule(config, dataset.num_examples)
        self.model, self._replicas, notes = self._make_network(plan)
        newest = run_directory.find_checkpoint(folder)
        if newest is None:
            state, position = first_state(self.model, config.optimizer.method), dict[str, Any]()
        else:
            state, position = checkpoint.load(newest, self.model)
        self.step = int(state["step"])
        self.best_ap: float | None = position.get("best_ap")
        self.best_step: int | None = position.get("best_step")
        self.evaluation_is_due: bool = position.get("evaluation_is_due", False)
        self.last_metrics: dict[str, float | None] = position.get("last_metrics", {})
        self.worse_evaluations: int = position.get("worse_evaluations", 0)
        self.checkpoints = CheckpointWriter(
            folder / "checkpoints", self.model, plan.facts, config.training.keep_checkpoints
        )
        self._anchors = anchors.anchor_boxes(config.model)
        self.state = self._replicas.place_state(state)
        self._step: Callable[..., Any] | None = None
        self._validate = backend.compile_function(
            validation.make_validation(self.model, self._anchors, config), xla=config.training.xla
        )
        self._recalibrate = batch_statistics.Recalibration(self.model, config.training, dataset)
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
        self._introduce(plan, [] if newest else notes, is_resumed=newest is not None)

    @staticmethod
    def _make_network(plan: Plan) -> tuple[Any, replicas.Replicas, Sequence[str]]:
        """Creates the network with its initial weights for the devices of the run.

        Returns:
            EfficientDet, the devices, and notes about the weights.
        """
        from efficientdet.model.efficientdet import EfficientDet

        training = plan.config.training
        # Keras draws the seeds of initializers and stochastic depth from `random`. `keras.utils.set_random_seed` would
        # import TensorFlow if it is installed, even to train on JAX.
        random.seed(training.seed)
        policy, devices = backend.use_precision(training.precision), replicas.make_replicas(training)
        model = EfficientDet(plan.config.model, precision=policy, kernels=devices.kernels())
        notes = initialization.assign_start(model, plan.start, plan.dataset.categories)
        initialization.freeze(model, training.freeze)
        devices.keep_state_of(model)
        return model, devices, notes

    def _introduce(self, plan: Plan, notes: Sequence[str], *, is_resumed: bool) -> None:
        """Prints what is trained, on what data, for how long."""
        parameters = sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables)
        described = announcements.describe(self.config, self.dataset, parameters, self._replicas.count)
        for line in [*plan.notes, f"{self.config.model.name}: {described}", *notes]:
            self.say(line)
        if plan.derived:
            self.say(announcements.derived(plan.derived))
        self.cautions.start()
        last = self.schedule.total_steps
        self.say(f"resumed at step {self.step} of {last}" if is_resumed else f"{last} steps, run folder {self.folder}")

    def say(self, text: str) -> None:
        """Prints a line and appends it to log.txt; only in the first process."""
        if processes.is_first():
            run_directory.log(self.folder, text)
            progress.console.print(text, soft_wrap=True, markup=False)

    def batches(self) -> Iterator[Any]:
        """Yields the remaining batches until patience runs out; measures how long the device waits for them."""
        batches = self.dataset.training_batches(self.step, self.schedule.total_steps)
        while not self.has_lost_patience:
            with self.logs.waiting():
                item = next(batches, None)
            if item is None:
                return
            yield item

    def train_on(self, item: tuple[Any, np.ndarray], *, is_asked_to_end: bool) -> None:
        """Runs one step and reads the logs of the step before, so that the device never waits for the host.

        Args:
            item: batch, and the ids of its images, int64[B].
            is_asked_to_end: whether this process was asked to stop; the step passes it on to the others.
        """
        batch, ids = item
        if self._step is None or self.step == self.schedule.fixed_from:
            self._begin_phase()
        assert self._step is not None
        if processes.count() > 1:
            batch = {**batch, "is_asked_to_end": np.full(len(batch["images"]), is_asked_to_end)}
        self.state, logs = self._step(self.state, self._replicas.place_batch(batch))
        self.step += 1
        self.evaluation_is_due = self.step in self.schedule.evaluation_steps
        self.logs.add(self.step, self._replicas.first(logs), ids)
        self.checkpoints.check()
        if self.step % self.config.training.log_every == 0 or self.step == self.schedule.total_steps:
            self.cautions.trained(self.logs.write(self.epoch, skipped_steps=self.skipped_steps))

    def _begin_phase(self) -> None:
        """Compiles the step; if batch statistics are constant from here on, measures them first."""
        is_fixed = self.step >= self.schedule.fixed_from
        if self.step == self.schedule.fixed_from:
            self.say(announcements.fixed(self.step))
            self.state = self._replicas.place_state(self._recalibrate.fix(self._replicas.read_state(self.state)))
        learning_rate = self.schedule.learning_rate
        step = make_step(self.model, self._anchors, self.config, learning_rate, self._replicas, is_fixed=is_fixed)
        self._step = self._replicas.compile(step, xla=self.config.training.xla)

    @property
    def skipped_steps(self) -> int:
        """Number of steps that changed nothing because something in them was not finite."""
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
        """Returns epoch, losses and learning rate for the progress bar."""
        place = f"epoch {self.epoch:.2f}/{self.config.training.epochs:g}"
        return f"{place}, {self.logs.note}" if self.logs.note else place

    def must_end(self, asked: Interruption) -> bool:
        """Returns whether the run was asked to stop early; the same in all processes."""
        return asked.is_wanted() if processes.count() == 1 else self.logs.is_asked_to_end

    def save_if_due(self, *, is_last: bool) -> None:
        """Starts writing a checkpoint at regular steps, before an evaluation, and at the end."""
        if is_last or self.evaluation_is_due or self.step % self.config.training.checkpoint_every == 0:
            self.save()

    def evaluate(self, asked: Interruption) -> None:
        """Evaluates the averaged weights and keeps them if they are the best so far; stops early if interrupted."""
        with self.logs.paused():
            self._evaluate(asked)

    def _evaluate(self, asked: Interruption) -> None:
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
        """Saves a checkpoint that marks the evaluation as done; the previous one marked it as due."""
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
        """Starts writing a checkpoint."""
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
        """Writes summary.json after the last checkpoint is written."""
        self.checkpoints.wait()
        if same := self_check.check_state(tree.flatten(engine.to_host(self._replicas.read_state(self.state)))):
            self.say(same)
        training = self.config.training
        ended = f"finished all {training.epochs:g} epochs"
        if self.step < self.schedule.total_steps:
            ended = f"stopped early: no better AP in {self.worse_evaluations} evaluations (`training.patience`)"
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
