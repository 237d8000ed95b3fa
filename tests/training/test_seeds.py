"""Several seeds: which are meant, a run each, done ones left alone, mean and standard deviation of a sample."""

import dataclasses
import json
import statistics

import pytest

from efficientdet import cli
from efficientdet import config as configs
from efficientdet.config import DataConfig, ExperimentConfig, OptimizerConfig, TrainingConfig
from efficientdet.errors import UserError
from efficientdet.training import run, seeds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0..4", (0, 1, 2, 3, 4)), ("0,1,7", (0, 1, 7)), ("3", (3,)), ("5..6, 1", (5, 6, 1)), ("2..2", (2,))],
)
def test_seeds_are_numbers_and_ranges_with_both_ends(text, expected):
    assert seeds.parse(text) == expected


@pytest.mark.parametrize("text", ["", "a", "4..0", "0..", "-1", "0-4", "1,,2", "0..99999999"])
def test_other_seeds_are_refused(text):
    with pytest.raises(UserError, match="`seeds` is "):
        seeds.parse(text)


def test_a_seed_is_given_once(tmp_path):
    with pytest.raises(UserError, match="different numbers"):
        seeds.train_seeds(ExperimentConfig(run_dir=str(tmp_path)), (1, 2, 1))


def test_the_folder_of_a_run_is_no_folder_of_seeds(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a run itself"):
        seeds.train_seeds(ExperimentConfig(run_dir=str(tmp_path)), (0, 1))


def test_a_run_that_cannot_be_trained_is_named_by_its_seed(tmp_path):
    with pytest.raises(UserError, match=r"Seed 3: `data\.train` is empty"):
        seeds.train_seeds(ExperimentConfig(run_dir=str(tmp_path / "runs")), (3,))


def _ended(values, best_ap=None):
    return run.TrainingSummary(
        run_dir="r", steps=1, epochs=1.0, best_ap=best_ap, metrics=values, skipped_steps=0, seconds=1.0
    )


def test_nvidia_s_five_seeds_have_the_mean_and_deviation_that_it_publishes(tmp_path):
    published = (0.3438, 0.3456, 0.3430, 0.3434, 0.3440)
    found = seeds._sum_up(tmp_path, {seed: _ended({"AP": ap}, ap) for seed, ap in enumerate(published)})
    assert round(100 * found.mean["AP"], 1) == 34.4
    assert round(100 * found.standard_deviation["AP"], 1) == 0.1
    assert found.standard_deviation["AP"] == pytest.approx(statistics.stdev(published))
    assert [row[:2] for row in found.rows()] == [
        ["seed", "AP"],
        ["0", "34.38"],
        ["1", "34.56"],
        ["2", "34.30"],
        ["3", "34.34"],
        ["4", "34.40"],
        ["mean", "34.40"],
        ["standard deviation", "0.10"],
    ]


def test_one_seed_has_no_deviation_and_a_missing_number_no_mean(tmp_path):
    one = seeds._sum_up(tmp_path, {0: _ended({"AP": 0.5})})
    assert (one.mean["AP"], one.standard_deviation["AP"]) == (0.5, None)
    two = seeds._sum_up(tmp_path, {0: _ended({"AP": 0.5, "APl": None}), 1: _ended({"AP": 0.7, "APl": 0.1})})
    assert (two.mean["APl"], two.standard_deviation["APl"]) == (None, None)


@pytest.mark.slow
def test_the_same_command_trains_only_the_seeds_that_are_missing(tiny, tmp_path, capsys):
    config = ExperimentConfig(
        preset="tiny",
        model=dataclasses.replace(tiny, image_size=(64, 64), batch_norm_momentum=0.9),
        data=DataConfig(train="synthetic", synthetic_examples=4, synthetic_classes=2),
        optimizer=OptimizerConfig(learning_rate=0.02, average_decay=0.9),
        training=TrainingConfig(batch_size=2, epochs=1, log_every=1),
        evaluation=configs.EvaluationConfig(batch_size=8, max_images=8),
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps(configs.to_dict(config)))
    folder = tmp_path / "runs"
    first = seeds.train_seeds(dataclasses.replace(config, run_dir=str(folder)), (0,))
    weights = folder / "seed-0" / "weights" / "last.safetensors"
    made = weights.stat().st_mtime_ns
    capsys.readouterr()
    assert cli.main(["train", "--config", str(file), "--run-dir", str(folder), "--seeds", "0..1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert weights.stat().st_mtime_ns == made, "not trained again"
    assert json.loads((folder / "seeds.json").read_text()) == printed
    assert printed["runs"]["0"] == first.runs[0].to_dict()
    losses = [printed["runs"][seed]["metrics"]["loss"] for seed in ("0", "1")]
    assert losses[0] != losses[1]
    assert printed["mean"]["loss"] == pytest.approx(sum(losses) / 2)
    assert printed["standard_deviation"]["loss"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert configs.load(folder / "seed-1" / "config.json").training.seed == 1
    table = (folder / "seeds.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["seed", "---:", "0", "1", "mean", "standard deviation"]
