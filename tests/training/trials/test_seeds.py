"""Several seeds: which are meant, a run each, done ones left alone, mean and standard deviation of a sample."""

import dataclasses
import json
import statistics
import subprocess
import sys

import pytest

from efficientdet import cli, knobs
from efficientdet.config import DataConfig, ExperimentConfig, TrainingConfig
from efficientdet.errors import UserError
from efficientdet.training import dataset, schedule
from efficientdet.training.state import interruption, outcome, run_directory
from efficientdet.training.trials import seeds


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
    with pytest.raises(UserError, match="distinct numbers"):
        seeds.train_seeds(ExperimentConfig(run_dir=str(tmp_path)), (1, 2, 1))


def test_the_folder_of_a_run_is_no_folder_of_seeds(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a run itself"):
        seeds.train_seeds(ExperimentConfig(run_dir=str(tmp_path)), (0, 1))


@pytest.mark.slow
def test_a_run_that_cannot_be_trained_is_named_by_its_seed(tmp_path, capfd):
    with pytest.raises(UserError, match="Seed 3 failed with status 1"):
        seeds.train_seeds(ExperimentConfig(run_dir=str(tmp_path / "runs")), (3,))
    assert "`data.train` is empty" in capfd.readouterr().err


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    with pytest.raises(UserError, match="does not work with several processes"):
        seeds.train_seeds(ExperimentConfig(run_dir=str(tmp_path)), (0, 1))


@pytest.mark.slow
def test_a_signal_reaches_the_run_and_both_end_with_its_status(tiny, tmp_path):
    """The run is stopped while it compiles; later it would have saved its state."""
    config = ExperimentConfig(model=tiny, data=DataConfig(train="synthetic", synthetic_examples=2))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(knobs.to_dict(config)))
    words = [
        "-m",
        "efficientdet",
        "train",
        "--config",
        str(file),
        "--run-dir",
        str(tmp_path / "runs"),
        "--seeds",
        "0,1",
    ]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True) as process:
        while "classes" not in (line := process.stderr.readline()):  # the run describes itself
            assert line, process.wait()
        process.terminate()
        said = process.stderr.read()
    assert process.returncode == interruption.STATUS
    assert said.count("SIGTERM: stopped") == 2, "the run and the command"
    assert not (tmp_path / "runs" / "seed-1").exists()


def _ended(values, best_ap=None):
    return outcome.TrainingSummary(
        run_dir="r", steps=1, epochs=1.0, best_ap=best_ap, metrics=values, skipped_steps=0, ended="done", seconds=1.0
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


def _end(config, folder, seed, values):
    """Makes what a run leaves that is done, but for weights."""
    training = dataclasses.replace(config.training, seed=seed)
    config = dataclasses.replace(config, run_dir=str(folder), training=training)
    opened = dataset.open_dataset(config)
    model = dataclasses.replace(config.model, num_classes=len(opened.categories))
    given = dataclasses.replace(config, model=model)
    facts = run_directory.facts(given, opened, schedule.derive(given, opened.num_examples)[1])
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000001.safetensors").touch()
    (folder / "config.json").write_text(json.dumps(facts["config"]))
    (folder / "summary.json").write_text(json.dumps(_ended(values).to_dict()))


@pytest.mark.slow
def test_runs_that_are_done_are_summed_up_and_not_trained_again(tiny, tmp_path, capsys):
    config = ExperimentConfig(
        preset="tiny",
        model=tiny,
        data=DataConfig(train="synthetic", synthetic_examples=2, synthetic_classes=2),
        training=TrainingConfig(batch_size=2, epochs=1),
    )
    file, folder = tmp_path / "config.json", tmp_path / "runs"
    file.write_text(json.dumps(knobs.to_dict(config)))
    _end(config, folder / "seed-4", 4, {"AP": 0.5})
    _end(config, folder / "seed-7", 7, {"AP": 0.7})
    assert cli.main(["train", "--config", str(file), "--run-dir", str(folder), "--seeds", "4,7", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "seeds.json").read_text()) == printed
    assert [printed["runs"][seed]["metrics"]["AP"] for seed in ("4", "7")] == [0.5, 0.7]
    assert printed["mean"]["AP"] == pytest.approx(0.6)
    assert printed["standard_deviation"]["AP"] == pytest.approx(0.2 / 2**0.5)
    assert not list(folder.glob("*/weights/*"))
    table = (folder / "seeds.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["seed", "---:", "4", "7", "mean", "standard deviation"]
