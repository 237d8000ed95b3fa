"""The command line: fast help, exit statuses, JSON on standard output, one line for a mistake."""

import importlib
import inspect
import json
import subprocess
import sys

import little_command_line
import little_datasets
import pytest

import efficientdet
from efficientdet import cli, knobs


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["--json"]], ids=" ".join)
def test_help_names_every_verb(words, capsys):
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"  {verb} " in shown


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == efficientdet.__version__


def _verbs(verbs=cli.VERBS, path=()):
    """Lists the words of each verb, and the verb."""
    for name, verb in verbs.items():
        if isinstance(verb, cli.Group):
            yield from _verbs(verb.verbs, (*path, name))
        else:
            yield pytest.param([*path, name], verb, id=" ".join([*path, name]))


@pytest.mark.parametrize(("words", "verb"), list(_verbs()))
def test_help_lists_every_parameter_of_a_verb_s_function_and_what_each_verb_takes(words, verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--help"])
    assert caught.value.code == 0
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    parameters = inspect.signature(getattr(importlib.import_module(verb.module), verb.function)).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY]
    options += ["json"] if verb.backend == "tensorflow" else ["json", "backend"]
    for option in options:
        flag = f"--{option.replace('_', '-')}"
        assert any(line == flag or line.startswith((f"{flag} ", f"{flag},", f"{flag}.")) for line in lines), option


def test_the_options_of_a_training_are_those_of_its_preset(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "d3", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert shown.startswith("usage: efficientdet train [-h] [OPTIONS] PRESET Trains a preset")
    assert "--model.image-size INT INT Height and width" in shown
    assert "(default: 896 896)" in shown


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_benchmark_says_what_it_takes(words, capsys):
    assert cli.main(["benchmark", *words]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in cli.VERBS["benchmark"].verbs)


def test_an_unknown_benchmark_is_wrong_usage(capsys):
    assert cli.main(["benchmark", "everything"]) == 2
    said = capsys.readouterr().err
    assert "unknown command `benchmark everything`; choose from input, train, inference, exports." in said


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
    config = little_command_line.training_config([*words.split(), "--training.precision", "mixed_bfloat16"])
    assert config.model.image_size == (256, 128)
    assert config.optimizer.learning_rate == 0.02
    assert config.training.precision == "mixed_bfloat16"
    assert config.model.feature_channels == 64, "the preset's other values stay"
    assert (config.data.train, config.run_dir) == ("x", "y")


def test_the_config_of_a_run_can_start_another(tmp_path):
    from efficientdet import presets

    path = tmp_path / "config.json"
    path.write_text(json.dumps({**knobs.to_dict(presets.PRESETS["lite0"]), "dataset": {"num_examples": 3}}))
    assert little_command_line.training_config(["--config", str(path)]) == presets.PRESETS["lite0"]


def test_a_preset_and_a_config_file_are_one_too_many(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["train", "d0", "--config", str(tmp_path / "config.json")]) == 1
    assert "pass only one of them" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["train d0 d1", "train d0 --training.epochs 3 d1", "preview records --columns 2 d1"])
def test_a_preset_in_another_place_is_wrong_usage(words, capsys):
    assert cli.main(words.split()) == 2
    assert "unexpected argument `d1`; pass one preset, before any option." in capsys.readouterr().err


def test_a_training_without_a_preset_says_which_there_are(capsys):
    assert cli.main(["train", "--training.epochs", "3"]) == 1
    assert "`train` needs a preset or `--config FILE`; choose from d0, d1, " in capsys.readouterr().err


def test_json_and_backend_may_stand_anywhere(capsys):
    assert cli.main(["--json", "describe", "--backend=tensorflow", "d0", "--backend", "tensorflow"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 3_880_067


def test_an_option_without_its_value_is_named(capsys):
    assert cli.main(["describe", "d0", "--backend"]) == 1
    assert "`--backend` has no value." in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_bug():
    words = [sys.executable, "-m", "efficientdet", "train", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert b"Broken" not in said
    assert b"Traceback" not in said
    assert process.returncode == 1
