"""A training run on one page: ExperimentConfig -> run folder.

config.json         everything needed to repeat the run
metrics.jsonl       losses, learning rate, speed, memory and AP, one JSON object per line; also tensorboard/,
                    curves.png and the services enabled in `logging`
checkpoints/        the whole state, to resume from
weights/            averaged weights for inference: best and last
evaluation/         images with ground truth and detections, and the metrics of each evaluation
summary.json        how the run ended
log.txt             the printed messages

`beginning.opening` prepares the run, `trainer` does the work between two steps, `step` is the step itself.
"""

from efficientdet import progress
from efficientdet.config import ExperimentConfig
from efficientdet.training.beginning import opening
from efficientdet.training.logs import announcements
from efficientdet.training.state import outcome
from efficientdet.training.trainer import Trainer


def train(config: ExperimentConfig) -> outcome.TrainingSummary:
    """Trains according to `config`, or resumes an earlier run in the same folder.

    Returns:
        Summary of the run; everything else is in the run folder.

    Raises:
        UserError: a setting or the data cannot be used, the folder belongs to another run, or the loss diverged.
        Interrupted: a scheduler sent SIGTERM or SIGUSR1; the state was saved (a SystemExit with status 75).
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

        # 3. The loop: steps, with regular evaluations and checkpoints.
        size, last = trainer.batch_size, trainer.schedule.total_steps
        forecast = announcements.Forecast(last, size, trainer.say)
        bar = progress.track("train", last * size, start=trainer.step * size)
        with trainer.metrics, trainer.checkpoints, bar as shown:
            if trainer.evaluation_is_due:  # the run was interrupted during an evaluation
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

            # 4. The summary.
            return trainer.finish()
