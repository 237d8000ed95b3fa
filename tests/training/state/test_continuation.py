"""More epochs for a finished run: the refusal is the command that goes on from its weights."""

import dataclasses
import json
import re
import shlex

import little_command_line
import pytest

from efficientdet import config as configs
from efficientdet import presets
from efficientdet.command_line import grammars
from efficientdet.config import DataConfig
from efficientdet.errors import UserError
from efficientdet.training import dataset
from efficientdet.training.state import run_directory


@pytest.fixture
def config(tmp_path):
    """A run whose knobs are not all the preset's, of every form: pairs, yes and no, none, and a name with a space."""
    d0 = presets.find_preset("d0")
    return dataclasses.replace(
        d0,
        run_dir=str(tmp_path / "my run"),
        backbone="imagenet",
        model=dataclasses.replace(d0.model, image_size=(64, 96), aspect_ratios=((1.0, 1.0), (2.0, 0.5)), num_classes=6),
        data=DataConfig(train="synthetic", synthetic_examples=8),
        augmentation=dataclasses.replace(d0.augmentation, horizontal_flip=False),
        optimizer=dataclasses.replace(d0.optimizer, learning_rate=0.02),
        training=dataclasses.replace(d0.training, batch_size=2, epochs=4, deterministic=True),
    )


def _claim(config):
    run_directory.claim(run_directory.facts(config, dataset.open_dataset(config), {"model.batch_norm_momentum": 0.9}))


def _finish(config, steps=16):
    """Leaves what a run has when it is done."""
    _claim(config)
    folder = run_directory.Path(config.run_dir)
    (folder / "checkpoints" / "step-00000016.safetensors").touch()
    (folder / "summary.json").write_text(json.dumps({"steps": steps}))


def _longer(config, epochs=10.0, **training):
    return dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=epochs, **training))


def _refusal(config):
    with pytest.raises(UserError) as caught:
        _claim(config)
    return str(caught.value)


def test_the_refusal_of_more_epochs_is_a_command_that_trains_them_from_the_weights(config):
    _finish(config)
    said = _refusal(_longer(config))
    assert said.startswith(
        f"`{config.run_dir}` has finished its 4 epochs, and its learning rate schedule ends there. To train 6 more "
        "from its weights, run `effic"
    )
    assert said.endswith("`.")
    program, verb, *words = shlex.split(re.search(r"`(efficientdet .*)`", said)[1])
    assert (program, verb) == ("efficientdet", "train")
    expected = dataclasses.replace(
        _longer(config, 6.0), weights=config.run_dir, backbone="", run_dir=f"{config.run_dir}-more"
    )
    expected = dataclasses.replace(expected, model=dataclasses.replace(expected.model, num_classes=90))
    assert little_command_line.training_config(words) == expected


def test_the_command_names_a_folder_that_is_free(config, tmp_path):
    _finish(config)
    (tmp_path / "my run-more").mkdir()
    assert f"--run-dir '{config.run_dir}-more-2'" in _refusal(_longer(config))


def test_a_config_of_somebody_s_own_is_named_by_its_run(config):
    own = dataclasses.replace(config, preset="mine")
    _finish(own)
    assert f"`efficientdet train --config '{config.run_dir}' --weights '{config.run_dir}'" in _refusal(_longer(own))


@pytest.mark.parametrize(
    ("steps", "epochs", "training"),
    [
        pytest.param(8, 10.0, {}, id="the run is not done"),
        pytest.param(16, 2.0, {}, id="fewer epochs"),
        pytest.param(16, 10.0, {"seed": 3}, id="something else is asked for too"),
    ],
)
def test_otherwise_the_knob_that_differs_is_named(config, steps, epochs, training):
    _finish(config, steps)
    said = _refusal(_longer(config, epochs, **training))
    assert "is a run with training." in said
    assert "another `--run-dir` for a new one" in said


def test_another_preset_is_named_before_the_knobs_that_it_brings(config):
    _finish(config)
    other = dataclasses.replace(presets.find_preset("lite0"), run_dir=config.run_dir, data=config.data)
    assert "is a run with preset = 'd0', but now it is 'lite0'; use the same value" in _refusal(other)


def test_the_folder_of_a_run_is_its_config(config):
    _finish(config)
    assert little_command_line.training_config(["--config", config.run_dir]) == config
    reading = grammars.preview(["records", "--config", config.run_dir, "--columns", "2"])
    assert (reading.defaults, reading.words) == ({"config": config}, ["records", "--columns", "2"])
    assert configs.load(run_directory.Path(config.run_dir) / "config.json") == config
