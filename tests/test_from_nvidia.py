"""docs/from-nvidia.md: every command and knob in its tables exists, and each training mode evaluates when it says."""

import importlib
import inspect
import math
import pathlib
import re
import shlex

import little_command_line
import pytest

from efficientdet import cli, presets
from efficientdet import config as configs
from efficientdet.command_line import nvidia
from efficientdet.training import schedule

_TEXT = (pathlib.Path(__file__).resolve().parents[1] / "docs" / "from-nvidia.md").read_text(encoding="utf-8")
_COMMON = {"json", "backend", "help"}

# Every flag of the reference's programs, as their sources declare them.
_TRAIN_FLAGS = (
    "training_mode training_file_pattern val_file_pattern val_json_file model_name model_dir batch_size "
    "eval_batch_size num_examples_per_epoch num_epochs benchmark benchmark_steps use_fake_data use_xla amp "
    "set_num_threads log_filename log_steps lr_tb enable_map_parallelization checkpoint_period pretrained_ckpt "
    "backbone_init hparams lr warmup_epochs warmup_value seed debug time_history validate testdev_dir eval_samples"
)
_EVAL_FLAGS = (
    "eval_samples val_file_pattern val_json_file ckpt_path model_name batch_size only_this_epoch "
    "enable_map_parallelization amp hparams"
)
_INSPECTOR_FLAGS = (
    "model_name mode trace_filename bm_runs tensorrt batch_size ckpt_path export_ckpt hparams amp use_xla input_image "
    "output_image_dir dllogger_path input_video output_video max_boxes_to_draw min_score_thresh nms_method "
    "saved_model_dir tflite_path debug image_path output_dir model_dir"
)


def _section(title):
    """Returns the text under a heading."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", _TEXT, re.MULTILINE | re.DOTALL)[1]


def _rows(text):
    """Reads the rows of the tables in a text, without their heads: lists of cells."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    rules = [number for number, cells in enumerate(lines) if set("".join(cells)) <= set("-|: ")]
    return [cells for number, cells in enumerate(lines) if number not in rules and number + 1 not in rules]


def _spans(cells):
    return [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]


def _commands():
    """Lists everything in the right columns that is a command or the words of a training command."""
    spans = [span for cells in _rows(_TEXT) for span in _spans(cells[1:])]
    return sorted({span for span in spans if span.startswith(("efficientdet ", "--"))})


def _training_words(command):
    """Returns the words of `efficientdet train`; none for another verb."""
    words = shlex.split(command)
    if command.startswith("--"):
        return ["d0", *words]
    return words[2:] if words[1] == "train" else None


@pytest.mark.parametrize("command", _commands())
def test_a_command_of_the_tables_exists(command):
    words = _training_words(command)
    if words is not None:
        configs.check(little_command_line.training_config([word for word in words if word not in ("--backend", "jax")]))
        return
    _, verb, *words = shlex.split(command)
    found = cli.VERBS[verb].verbs[words[0]] if verb == "benchmark" else cli.VERBS[verb]
    function = getattr(importlib.import_module(found.module), found.function)
    known = {parameter.replace("_", "-") for parameter in inspect.signature(function).parameters} | _COMMON
    assert {word[2:] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize(
    ("title", "flags"),
    [
        ("Flags of train.py", _TRAIN_FLAGS),
        ("Flags of eval.py", _EVAL_FLAGS),
        ("Flags of inspector.py and infer.py", _INSPECTOR_FLAGS),
    ],
    ids=["train.py", "eval.py", "inspector.py and infer.py"],
)
def test_no_flag_of_the_reference_is_left_out(title, flags):
    named = " ".join(span for cells in _rows(_section(title)) for span in _spans(cells[:1]))
    assert not [flag for flag in flags.split() if not re.search(rf"--{flag}\b", named)]


@pytest.mark.parametrize(
    ("title", "rows"),
    [
        ("Flags of train.py", nvidia.TRAIN + nvidia.HPARAMS),
        ("Flags of eval.py", nvidia.EVALUATE),
        ("Flags of inspector.py and infer.py", nvidia.PREDICT),
    ],
    ids=["train.py", "eval.py", "inspector.py and infer.py"],
)
def test_the_document_has_the_rows_that_the_command_line_answers_with(title, rows):
    assert [tuple(cells) for cells in _rows(_section(title))] == list(rows)


# In the form of the scripts in NVIDIA's scripts/D0.
_VERBATIM = """--training_mode=traineval --training_file_pattern=/workspace/coco/train-*
--val_file_pattern=/workspace/coco/val-*
--val_json_file=/workspace/coco/annotations/instances_val2017.json --model_name=efficientdet-d0 --model_dir=/tmp/x
--backbone_init=/workspace/checkpoints/efficientnet-b0-joc --batch_size=200 --eval_batch_size=200 --num_epochs=400
--use_xla=True --amp=True --lr=2.2 --warmup_epochs=25 --hparams=moving_average_decay=0.999,momentum=0.93
--noenable_map_parallelization"""


def test_nvidia_s_command_typed_verbatim_is_answered_with_what_to_type(capsys):
    assert cli.main(["train", *_VERBATIM.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for answer in (
        "`--training_file_pattern` -> `--data.train coco/records`",
        "`--batch_size` -> `--training.batch-size 1600`, over all GPUs",
        "`--num_epochs` -> `--training.epochs 300 --optimizer.schedule-epochs 400`",
        "`--amp` -> `--training.precision mixed_float16`",
        "`moving_average_decay` -> `--optimizer.average-decay 0.999`",
        "`momentum` -> `--optimizer.momentum 0.93`",
        "`--val_json_file` -> none: boxes, areas and crowds are in the records",
        "`--noenable_map_parallelization` -> none: always parallel",
        "docs/from-nvidia.md",
    ):
        assert answer in said
    assert "-> one option each" not in said, "the keys themselves are answered"


@pytest.mark.parametrize(
    ("verb", "flags", "rows"),
    [
        ("train", _TRAIN_FLAGS, nvidia.TRAIN),
        ("evaluate", _EVAL_FLAGS, nvidia.EVALUATE),
        ("predict", _INSPECTOR_FLAGS, nvidia.PREDICT),
    ],
    ids=["train", "evaluate", "predict"],
)
def test_every_flag_of_nvidia_s_is_answered_where_it_is_not_ours(verb, flags, rows, capsys):
    found = cli.VERBS[verb]
    ours = inspect.signature(getattr(importlib.import_module(found.module), found.function)).parameters
    for flag in flags.split():
        if flag in ours and verb != "train":
            continue
        assert cli.main([verb, f"--{flag}=x"]) == 2, flag
        said = capsys.readouterr().err
        assert f"`--{flag}`" in said
        # A flag without an underscore may be a knob's last word, and then is answered by that rule.
        assert nvidia.find(rows, f"--{flag}") in said or "names knobs by section" in said, flag


def test_every_row_says_something():
    rows = _rows(_TEXT)
    assert len(rows) > 80
    assert all(len(cells) >= 2 and all(cells) for cells in rows)


def test_the_recipes_are_as_the_table_says():
    rows = _rows(_section("Recipes"))
    assert len(rows) == 6
    for _, command, batch, rate, length, average in rows:
        config = little_command_line.training_config(_training_words(command.strip("`")))
        optimizer = config.optimizer
        assert config.training.batch_size == math.prod(map(int, batch.split(" x ")))
        assert rate == f"{optimizer.learning_rate}, {optimizer.warmup_epochs:g} epochs"
        assert length == f"{optimizer.schedule_epochs:g} epochs"
        assert average == f"{optimizer.average_decay}, {optimizer.momentum}"


_RECIPES = [name for name in presets.RECIPES if name not in ("d0-1xh200", "d0-cpu")]
_IMAGES = 117_601  # divided by none of the batches
# Epoch after which `train` stops: three quarters of the schedule are over, or 300.
_STOPS = {400: 300, 300: 226, 350: 263}


def _mode(recipe, mode):
    """Returns the config of a recipe in a training mode, made of the words of the table."""
    head, *rows = [line for line in _section("Training modes").splitlines() if line[:1] == "|" and "---" not in line]
    column = [cell.strip(" `") for cell in head.strip("|").split("|")].index(mode)
    row = next(line for line in rows if f"`{recipe}`" in line)
    words = row.strip("|").split("|")[column].strip(" `")
    return little_command_line.training_config([recipe, *(() if words == "nothing" else shlex.split(words))])


def _evaluated_epochs(config):
    """Computes after which epochs the config evaluates, and after which it stops."""
    made = schedule.make_schedule(config, _IMAGES)
    whole = {math.ceil(epoch * made.steps_per_epoch): epoch for epoch in range(1, 401)}
    return sorted(whole[step] for step in made.evaluation_steps), whole[made.total_steps]


@pytest.mark.parametrize("recipe", _RECIPES)
def test_traineval_evaluates_every_ten_epochs_from_200_to_300(recipe):
    evaluated, stop = _evaluated_epochs(_mode(recipe, "traineval"))
    assert evaluated == list(range(200, 301, 10))
    assert stop == 300


@pytest.mark.parametrize("recipe", _RECIPES)
def test_train_evaluates_at_its_end_which_comes_when_three_quarters_of_the_schedule_are_over(recipe):
    config = _mode(recipe, "train")
    evaluated, stop = _evaluated_epochs(config)
    assert evaluated == [stop] == [_STOPS[int(config.optimizer.schedule_epochs)]]


@pytest.mark.parametrize("recipe", _RECIPES)
def test_train300_has_no_validation_images_and_stops_at_300(recipe):
    config = _mode(recipe, "train300")
    assert config.data.validation == "none"
    assert _evaluated_epochs(config)[1] == 300


@pytest.mark.parametrize("recipe", _RECIPES)
def test_a_recipe_has_the_mode_of_its_script(recipe):
    mode = "train" if recipe == "d0-tf32-8xa100" else "traineval"
    assert presets.find_preset(recipe) == _mode(recipe, mode)
