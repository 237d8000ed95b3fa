"""Early stopping: after so many evaluations without a better AP, interrupted or not, and not again."""

import dataclasses
import json
from pathlib import Path

import pytest

from efficientdet import config as configs
from efficientdet.config import DataConfig, ExperimentConfig, OptimizerConfig, TrainingConfig
from efficientdet.errors import UserError
from efficientdet.training import dataset
from efficientdet.training.logs import metrics
from efficientdet.training.run import train

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
    """Eight epochs of two steps, each evaluated, that change not one bit: no AP is better than the first."""
    return ExperimentConfig(
        preset="tiny",
        run_dir=str(tmp_path_factory.mktemp("patience") / "run"),
        model=dataclasses.replace(tiny, image_size=(64, 64), batch_norm_momentum=0.9999999),
        data=DataConfig(train="synthetic", synthetic_examples=4, synthetic_classes=2),
        optimizer=OptimizerConfig(method="sgd", learning_rate=1e-30, warmup_epochs=0),
        training=TrainingConfig(
            batch_size=2,
            epochs=8,
            evaluate_every=1,
            patience=2,
            log_every=1,
            recalibrate_images=0,
            fixed_statistics=1.0,
        ),
        evaluation=configs.EvaluationConfig(batch_size=32),
    )


@pytest.fixture(scope="module")
def stopped(config):
    """A run that was interrupted after its second evaluation, and then resumed."""
    from efficientdet.training import trainer

    original = trainer.Trainer.train_on

    def stop_at_step_5(self, item, **asked):
        if self.step == 5:
            raise KeyboardInterrupt
        original(self, item, **asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_on", stop_at_step_5)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    return train(config)


def _lines(config):
    return metrics.read_lines(Path(config.run_dir) / "metrics.jsonl")


@pytest.mark.slow
def test_a_run_ends_after_so_many_evaluations_without_a_better_ap_also_if_it_was_interrupted(config, stopped):
    # The first evaluation is the best so far, whatever it finds; the second and the third are no better.
    assert stopped.steps == 6
    evaluated = [line for line in _lines(config) if line["kind"] == "validation"]
    assert [line["step"] for line in evaluated] == [2, 4, 6]
    assert len({line["values"]["AP"] for line in evaluated}) == 1
    assert stopped.best_ap == evaluated[0]["values"]["AP"]


@pytest.mark.slow
def test_the_summary_says_why(config, stopped):
    assert stopped.ended == "stopped early: no better AP in 2 evaluations (`training.patience`)"
    assert json.loads((Path(config.run_dir) / "summary.json").read_text())["ended"] == stopped.ended


@pytest.mark.slow
def test_the_learning_rate_is_that_of_the_whole_run(config, stopped):
    from efficientdet.training import optimizer, schedule

    options = schedule.make_schedule(schedule.derive(config, 4)[0], 4).learning_rate
    assert options["total_steps"] == 16
    logged = [line["values"]["learning_rate"] for line in _lines(config) if line["kind"] == "train"]
    assert logged == pytest.approx([float(optimizer.learning_rate(step, **options)) for step in range(6)], rel=1e-6)


@pytest.mark.slow
def test_the_same_command_again_does_nothing_more(config, stopped):
    before = _lines(config)
    again = train(config)
    assert (again.steps, again.ended) == (stopped.steps, stopped.ended)
    assert _lines(config) == before


def test_patience_without_validation_images_is_refused(config):
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, validation="none"))
    with pytest.raises(UserError, match=r"`training\.patience` is 2, but there are no validation images with boxes"):
        dataset.open_dataset(without)
