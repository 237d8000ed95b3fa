"""The lock of a run directory: held while a run lasts, whatever happens to the process afterwards."""

import dataclasses
import subprocess
import sys

import pytest

from efficientdet.config import DataConfig, ExperimentConfig, TrainingConfig
from efficientdet.errors import UserError
from efficientdet.training.run import train
from efficientdet.training.state import run_directory

pytestmark = pytest.mark.usefixtures("uncompiled")

_TAKE = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def _is_free(folder):
    """Says whether another process could take the folder now."""
    command = [sys.executable, "-c", _TAKE, str(folder / ".lock")]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def config(tiny, tmp_path):
    return ExperimentConfig(
        preset="tiny",
        run_dir=str(tmp_path / "run"),
        model=dataclasses.replace(tiny, image_size=(64, 64)),
        data=DataConfig(train="synthetic", synthetic_examples=2, validation="none"),
        training=TrainingConfig(batch_size=2, epochs=1, recalibrate_images=0),
    )


def test_a_second_run_of_the_same_process_takes_the_folder_and_then_another_process_can(config, tmp_path):
    assert train(config).steps == 1
    assert train(config).steps == 1, "it was done before"
    assert _is_free(tmp_path / "run")


def test_a_run_that_fails_lets_go_of_its_folder(config, tmp_path):
    wrong = dataclasses.replace(config, weights=str(tmp_path / "missing.safetensors"))
    diverging = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e38, warmup_epochs=0.0, clip_norm=0.0),
        training=dataclasses.replace(config.training, max_bad_steps=2, epochs=8),
    )
    with pytest.raises(UserError, match="does not exist"):
        train(wrong)
    with pytest.raises(UserError, match=r"not finite in 2 steps.*; no checkpoint was saved yet"):
        train(diverging)
    assert _is_free(tmp_path / "run")


def test_a_folder_that_a_run_of_this_process_holds_stays_held(tmp_path):
    facts = {"config": {"run_dir": str(tmp_path / "run")}}
    with run_directory.released(tmp_path / "run"):
        run_directory.claim(facts)
        with pytest.raises(UserError, match="is in use"), run_directory.released(tmp_path / "run"):
            run_directory.claim(facts)
        assert not _is_free(tmp_path / "run")
    assert _is_free(tmp_path / "run")
