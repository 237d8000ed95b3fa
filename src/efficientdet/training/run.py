"""A training run: ExperimentConfig -> a run directory, on one page.

config.json         everything needed to repeat the run
metrics.jsonl       losses, learning rate, speed, memory and AP, one JSON object a line; also tensorboard/, curves.png
                    and what `logging` asks for
checkpoints/        the whole state, for resume
weights/            averaged weights for use: best and last
evaluation/         images with truth and detections, and the metrics of each evaluation
summary.json        how it ended
log.txt             what was said

`beginning.opening` has what comes before, `trainer` what happens between two steps, `step` the step.
"""

from efficientdet import progress
from efficientdet.config import ExperimentConfig
from efficientdet.training.beginning import opening
from efficientdet.training.logs import announcements
from efficientdet.training.state import outcome
from efficientdet.training.trainer import Trainer


def train(config: ExperimentConfig) -> outcome.TrainingSummary:
    """Trains as `config` says, or goes on where an earlier run in the same folder stopped.

    Returns:
        How it ended; the run directory has the rest.

    Raises:
        UserError: a setting or the data cannot be used, the folder belongs to another run, or the loss diverged.
        Interrupted: a scheduler sent SIGTERM or SIGUSR1; the state is saved (a SystemExit with status 75).
        Stopped: the same after Ctrl-C (a KeyboardInterrupt).
    """
    with opening.opened(config) as (folder, asked):
        # 1. What to train on, from which weights, with which settings.
        plan = opening.prepare(config, folder)
        if (ended := outcome.read(folder)) is not None:
            return ended

        # 2. The network and its state, new or resumed.
        trainer = Trainer(plan)
        asked.say = trainer.say

        # 3. The loop: steps, with an evaluation and a checkpoint now and then.
        size, last = trainer.batch_size, trainer.schedule.total_steps
        forecast = announcements.Forecast(last, size, trainer.say)
        bar = progress.track("train", last * size, start=trainer.step * size)
        with trainer.metrics, trainer.checkpoints, bar as shown:
            if trainer.evaluation_is_due:  # the run ended inside it
                trainer.evaluate(asked)
            for batch in trainer.batches():
                trainer.train_on(batch, is_asked_to_end=asked.is_wanted())
                asked.can_wait = True
                forecast.advance(trainer.step)
                shown.advance(size, trainer.note())
                is_last = trainer.must_end(asked)
                trainer.save_if_due(is_last=is_last)
                if is_last:
                    raise asked.end(trainer.step)
                if trainer.evaluation_is_due:
                    trainer.evaluate(asked)
                    forecast.leave_out()

            # 4. What came of it.
            return trainer.finish()
