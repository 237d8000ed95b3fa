"""Options that are not the verb's are answered with the one that was meant."""

import pytest

from efficientdet import cli, knobs
from efficientdet.command_line import options
from efficientdet.config import ExperimentConfig

_KNOBS = [name for name in knobs.flatten(knobs.to_dict(ExperimentConfig())) if "." in name]


@pytest.mark.parametrize("verb", options.BY_SECTION)
@pytest.mark.parametrize("knob", _KNOBS)
def test_a_knob_without_its_section_is_answered_with_its_whole_name(verb, knob):
    section, _, last = knob.replace("_", "-").rpartition(".")
    said = options.explain(verb, ("columns",), ["d0", f"--{last}", "1"])
    assert f"`--{section}.{last}`" in said
    assert said.endswith(f"here: `{verb}` names knobs by section.")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            "train d0 --image-size 256 256",
            "`--image-size` is `--model.image-size` here: `train` names knobs by section.",
        ),
        ("train --image-size=256 --help", "`--image-size` is `--model.image-size` here"),
        ("train d0 --batch-size 8", "is `--training.batch-size` or `--evaluation.batch-size` here"),
        ("train d0 --backbone.width 2", "`--backbone.width` is `--model.backbone.width` here"),
        ("train d0 --no-horizontal-flip", "is `--augmentation.no-horizontal-flip` here"),
        ("preview records --scale_min 1", "`--scale_min` is `--augmentation.scale-min` here: `preview` names"),
        (
            "evaluate runs/d0 --data x --model.image-size 256 256",
            "`evaluate` takes `--image-size`, not `--model.image-size`: only `train` and `preview` name knobs by",
        ),
        ("describe d0 --model.image_size 256 256", "`describe` takes `--image-size`, not `--model.image_size`"),
        ("predict runs/d0 x.jpg --optimizer.momentum 1", "`predict` has no `--optimizer.momentum`: only `train` and"),
        (
            "evaluate found.json --data x --training.precision tf32",
            "`evaluate` takes `--precision`, not ",
        ),
        ("evaluate found.json --data x --training.epochs 2", "`evaluate` has no `--training.epochs`"),
        ("export runs/d0 --format onnx --pictures x", "`--pictures` is called `--images` now."),
        ("serve runs/d0 --limits.max-pictures 3", "`--limits.max-pictures` is called `--limits.max-images` now."),
    ],
)
def test_the_command_line_says_in_a_line_what_was_meant(words, answer, capsys):
    assert cli.main(words.split()) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "parameters", "words"),
    [
        (
            "train",
            ("config", "seeds", "export"),
            "d0 --model.image-size 256 256 --model.image_size=3 --run-dir x --seeds 0..4 --export onnx",
        ),
        ("train", ("config",), "--config runs/d0 --augmentation.no-horizontal-flip --help"),
        ("preview", ("output", "num_images"), "records --output x --num-images 4 --augmentation.hue 0.1"),
        ("evaluate", ("data", "batch_size"), "x --data y --batch_size 4 --batch-size=3"),
        ("evaluate", ("data",), "x --data y --colour red"),
        ("train", (), "d0 --colour red"),
    ],
)
def test_what_is_right_or_unknown_is_left_to_the_parser(verb, parameters, words):
    assert options.explain(verb, parameters, words.split()) is None
