"""A run: what it writes, that it learns, and what it refuses. That it goes on where it stopped: test_killed_run."""

import dataclasses
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from efficientdet import config as configs
from efficientdet import knobs, presets
from efficientdet.config import DataConfig, ExperimentConfig, OptimizerConfig, TrainingConfig
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.training import dataset
from efficientdet.training.logs import metrics
from efficientdet.training.run import train
from efficientdet.training.state import run_directory


def _config(tiny, folder):
    """Eight images, four steps an epoch."""
    return ExperimentConfig(
        preset="tiny",
        run_dir=str(folder),
        model=dataclasses.replace(tiny, image_size=(64, 64), batch_norm_momentum=None),
        data=DataConfig(train="synthetic", synthetic_examples=8, synthetic_classes=2),
        optimizer=OptimizerConfig(learning_rate=0.02, warmup_epochs=1, average_decay=0.9),
        training=TrainingConfig(batch_size=2, epochs=2, evaluate_every=1, log_every=2, checkpoint_every=3),
        evaluation=configs.EvaluationConfig(batch_size=32),
    )


@pytest.fixture
def config(tiny, tmp_path):
    return _config(tiny, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run from beginning to end: its config, its folder, its summary."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = _config(tiny, folder)
    return config, folder, train(config)


def _with(config, **training):
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


@pytest.mark.slow
def test_a_run_writes_what_the_design_says(finished):
    config, run, summary = finished
    assert summary.steps == 8
    assert summary.skipped_steps == 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000006.safetensors",
        "step-00000008.safetensors",
    ]
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [
        "step-00000004.jpg",
        "step-00000004.json",
        "step-00000008.jpg",
        "step-00000008.json",
    ]
    for name in ("config.json", "summary.json", "log.txt", "curves.png", "weights/last.safetensors"):
        assert (run / name).is_file(), name
    assert list((run / "tensorboard").iterdir())
    lines = metrics.read_lines(run / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2),
        ("train", 4),
        ("validation", 4),
        ("train", 6),
        ("train", 8),
        ("validation", 8),
    ]
    assert {"loss", "class_loss", "box_loss", "l2_loss", "learning_rate", "images_per_second", "input_wait"} <= set(
        lines[0]["values"]
    )
    assert {"AP", "AP50", "loss", "class_loss", "box_loss"} <= set(lines[2]["values"])
    written = json.loads((run / "summary.json").read_text())
    assert (written["steps"], written["ended"]) == (8, "finished all 2 epochs")
    assert configs.load(run / "config.json") == dataclasses.replace(
        config, model=dataclasses.replace(config.model, num_classes=2)
    )


def test_a_knob_that_is_newer_than_a_run_has_its_default_there(tiny, tmp_path):
    config = _config(tiny, tmp_path / "run")
    opened = dataset.open_dataset(config)

    def claim(config):
        with run_directory.released(tmp_path / "run"):
            run_directory.claim(run_directory.facts(config, opened, {}))

    claim(config)
    (tmp_path / "run" / "checkpoints" / "step-00000001.safetensors").touch()
    path = tmp_path / "run" / "config.json"
    before = json.loads(path.read_text())
    del before["model"]["upsampling"]
    path.write_text(json.dumps(before))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, upsampling="half_pixel"))
    with pytest.raises(UserError, match=r"with model\.upsampling = 'legacy', but now it is 'half_pixel'"):
        claim(other)
    claim(config)
    path.write_text("[]")
    with pytest.raises(UserError, match="cannot be read"):
        claim(config)


@pytest.mark.slow
def test_a_run_says_and_notes_what_it_derived_and_leaves_it_open_in_its_config(finished):
    config, run, _ = finished
    assert config.model.batch_norm_momentum is None
    written = json.loads((run / "config.json").read_text())
    assert written["model"]["batch_norm_momentum"] is None
    assert written["derived"] == {
        "optimizer.method": "sgd",
        "model.batch_norm_momentum": 0.9,
        "training.recalibrate_images": 8,
        "training.fixed_statistics": 0.5,
    }
    said = (
        "derived from batch size and steps: optimizer.method sgd, model.batch_norm_momentum 0.9, "
        "training.recalibrate_images 8, training.fixed_statistics 0.5\n"
    )
    log = (run / "log.txt").read_text()
    assert said in log
    assert "compiling the training step" in log
    assert re.search(r"epoch 2\.0: AP \d+\.\d \(\d+\.\d to \d+\.\d\), AP50 \d+\.\d \(", log)
    assert weights.load(run / "weights" / "last.safetensors").model.batch_norm_momentum == 0.9


@pytest.mark.slow
def test_weights_for_use_are_averages_with_the_statistics_of_the_second_half(finished):
    _, run, _ = finished
    written = weights.load(run / "weights" / "last.safetensors").arrays
    early, late = (
        weights.read_safetensors(run / "checkpoints" / f"step-0000000{step}.safetensors")[0] for step in (6, 8)
    )
    for name, value in written.items():
        is_statistic = name.endswith(("/moving_mean", "/moving_variance"))
        np.testing.assert_array_equal(value, late[f"average_{'non_' if is_statistic else ''}trainable/{name}"])
        if is_statistic:
            np.testing.assert_array_equal(value, early[f"non_trainable/{name}"])


@pytest.mark.slow
def test_while_statistics_move_weights_for_use_have_measured_ones(config, tmp_path):
    train(_with(config, fixed_statistics=0.0))
    written = weights.load(tmp_path / "run" / "weights" / "last.safetensors").arrays
    state, _ = weights.read_safetensors(tmp_path / "run" / "checkpoints" / "step-00000008.safetensors")
    for name, value in written.items():
        is_statistic = name.endswith(("/moving_mean", "/moving_variance"))
        average = state[f"average_{'non_' if is_statistic else ''}trainable/{name}"]
        assert np.array_equal(value, average) != is_statistic, name


@pytest.mark.slow
def test_the_same_command_again_changes_nothing_when_done(finished):
    config, run, _ = finished
    before = (run / "weights" / "last.safetensors").read_bytes()
    lines = metrics.read_lines(run / "metrics.jsonl")
    assert train(config).steps == 8
    assert (run / "weights" / "last.safetensors").read_bytes() == before
    assert metrics.read_lines(run / "metrics.jsonl") == lines


@pytest.mark.slow
def test_the_demo_preset_shrunken_learns(tmp_path):
    """The end-to-end test: a real preset on smaller images; the loss falls."""
    demo = presets.find_preset("demo")
    backbone = dataclasses.replace(demo.model.backbone, width=0.25, depth=0.25)
    config = dataclasses.replace(
        demo,
        run_dir=str(tmp_path / "run"),
        model=dataclasses.replace(demo.model, image_size=(64, 64), backbone=backbone, num_cells=1, head_repeats=1),
        data=DataConfig(train="synthetic", synthetic_examples=160, synthetic_classes=1, validation="none"),
        training=dataclasses.replace(demo.training, epochs=6, log_every=10, batch_size=8),
    )
    summary = train(config)
    assert summary.best_ap is None
    assert (tmp_path / "run" / "curves.png").is_file()
    losses = [line["values"] for line in metrics.read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1]["box_loss"] < 0.8 * losses[0]["box_loss"]
    assert losses[-1]["class_loss"] < 0.95 * losses[0]["class_loss"]


_REFUSED = {
    "no data": (lambda c: dataclasses.replace(c, data=DataConfig()), "`data.train` is empty"),
    "both data": (
        lambda c: dataclasses.replace(c, data=DataConfig(train="a", source="b")),
        "`data.train` is a and `data.source` is b",
    ),
    "no such folder": (lambda c: dataclasses.replace(c, data=DataConfig(train="/no/such")), "/no/such"),
    "too many classes": (
        lambda c: dataclasses.replace(c, data=DataConfig(train="synthetic", synthetic_classes=7)),
        "`data.synthetic_classes` is 7",
    ),
    "no batch": (lambda c: _with(c, batch_size=0), "`training.batch_size` is 0"),
}


@pytest.mark.parametrize("kind", _REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(config, tmp_path, kind):
    change, expected = _REFUSED[kind]
    with pytest.raises(UserError) as caught:
        train(change(config))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_refused_by_the_knob_that_differs(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    values = knobs.to_dict(dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=2)))
    values["dataset"] = {
        "num_examples": 8,
        "categories": [{"id": 1, "name": "disk"}, {"id": 2, "name": "square"}],
        "train": "synthetic",
        "validation": "synthetic",
    }
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000003.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"a run with training\.batch_size = 2, but now it is 4"):
        train(_with(config, batch_size=4))


def test_the_seed_decides_the_first_weights(tiny):
    def first_weights(seed):
        random.seed(seed)
        return [variable.numpy() for variable in EfficientDet(tiny).trainable_variables]

    first, again, other = first_weights(1), first_weights(1), first_weights(2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_a_folder_in_use_is_refused(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    command = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(); time.sleep(60)"
    )
    words = [sys.executable, "-c", command, str(folder / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="is in use by another process"):
            train(config)
        other.kill()


def test_a_folder_with_other_files_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "holiday.jpg").write_text("")
    with pytest.raises(UserError, match="it is not a run"):
        train(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["holiday.jpg"]


@pytest.mark.slow
def test_a_run_that_diverges_says_so_and_keeps_the_last_good_state(config, tmp_path):
    config = _with(config, max_bad_steps=3, epochs=20, evaluate_every=0)
    config = dataclasses.replace(
        config, optimizer=OptimizerConfig(learning_rate=1e30, warmup_epochs=0, clip_norm=0), loss=configs.LossConfig()
    )
    with pytest.raises(UserError, match="not finite in 3 steps in a row"):
        train(config)
    said = (tmp_path / "run" / "log.txt").read_text().splitlines()
    told = [line for line in said if "the loss or a gradient is not finite" in line]
    assert len(told) == 3, "when it happens, not only at the end"
    assert re.search(r" step \d+: .* \(2 in a row\); images \d+, \d+$", told[1])


@pytest.mark.slow
def test_a_run_whose_loss_diverges_says_so_in_its_last_line(config, tmp_path):
    config = _with(config, epochs=10, log_every=5)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, validation="none"),
        optimizer=OptimizerConfig(learning_rate=30.0, warmup_epochs=2.5),
    )
    summary = train(config)
    said = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert "finished all 10 epochs; the loss diverged: " in said[-1]
    assert "Start a new run with `--optimizer.learning-rate 10`" in summary.warnings[-1]
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "the loss diverged" in written["ended"]
    assert written["warnings"] == summary.warnings
