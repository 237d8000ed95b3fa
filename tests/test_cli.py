"""The command line: fast help, exit statuses, JSON on standard output, one line for a mistake."""

import json
import subprocess
import sys

import little_datasets
import pytest

import efficientdet
from efficientdet import cli, knobs


def test_help_names_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"  {verb} " in shown


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == efficientdet.__version__


_EXPLAINED = [*(verb for verb in cli.VERBS if verb != "benchmark"), *(f"benchmark {each}" for each in cli.BENCHMARKS)]


@pytest.mark.parametrize("verb", _EXPLAINED)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*verb.split(), "--help"])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_benchmark_says_what_it_takes(words, capsys):
    assert cli.main(["benchmark", *words]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in cli.BENCHMARKS)


def test_an_unknown_benchmark_is_wrong_usage(capsys):
    assert cli.main(["benchmark", "everything"]) == 2
    assert "`benchmark` takes input, train, inference, exports, not `everything`" in capsys.readouterr().err


def test_an_unknown_verb_is_wrong_usage(capsys):
    assert cli.main(["fly"]) == 2
    assert "unknown command `fly`; choose from convert, " in capsys.readouterr().err


def test_an_unknown_option_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["describe", "d0", "--colour", "red"])
    assert caught.value.code == 2


def test_describe_prints_the_published_figures_of_d0(capsys):
    assert cli.main(["describe", "d0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 3_880_067
    assert found["anchors"] == 49_104
    assert (found["variables"], found["trainable_variables"]) == (709, 493)
    assert found["multiply_adds"] == 2_492_331_520
    assert found["published_multiply_adds"] == 2_550_618_821
    assert cli.main(["describe", "d0"]) == 0
    printed = capsys.readouterr().out
    assert "3,880,067" in printed
    assert "2,550,618,821" in printed


def test_a_verb_takes_an_image_size(capsys):
    assert cli.main(["describe", "d0", "--image-size", "511", "513", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["anchors"] == 50_220


def test_convert_prints_a_summary_or_json(tmp_path, capsys):
    little_datasets.write_coco(tmp_path / "images")
    words = ["convert", "coco", str(tmp_path / "images"), "--num-workers", "1", "--output"]
    assert cli.main([*words, str(tmp_path / "one")]) == 0
    assert "train" in capsys.readouterr().out
    assert cli.main([*words, str(tmp_path / "two"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["num_examples"] == 2


def test_training_knobs_reach_the_config():
    words = "d0 --model.image-size 256 128 --optimizer.learning-rate 0.02 --data.train x --run-dir y"
    config = cli._training_config([*words.split(), "--training.precision", "mixed_bfloat16"])
    assert config.model.image_size == (256, 128)
    assert config.optimizer.learning_rate == 0.02
    assert config.training.precision == "mixed_bfloat16"
    assert config.model.feature_channels == 64, "the preset's other values stay"
    assert (config.data.train, config.run_dir) == ("x", "y")


def test_the_config_of_a_run_can_start_another(tmp_path):
    from efficientdet import presets

    path = tmp_path / "config.json"
    path.write_text(json.dumps({**knobs.to_dict(presets.PRESETS["lite0"]), "dataset": {"num_examples": 3}}))
    assert cli._training_config(["--config", str(path)]) == presets.PRESETS["lite0"]


def test_a_preset_and_a_config_file_are_one_too_many(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["train", "d0", "--config", str(tmp_path / "config.json")]) == 1
    assert "give one of them" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_bug():
    words = [sys.executable, "-m", "efficientdet", "train", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert b"Broken" not in said
    assert b"Traceback" not in said
    assert process.returncode == 1
