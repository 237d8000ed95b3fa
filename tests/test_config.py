"""Configs: JSON and back without loss, and errors that name the knob."""

import dataclasses
import json

import numpy as np
import pytest

from efficientdet import config as configs
from efficientdet import knobs, presets
from efficientdet.errors import UserError


def _changed(name, value):
    """Returns the default experiment with the knob of the dotted `name` set."""
    section, field = name.split(".")
    experiment = configs.ExperimentConfig()
    changed = dataclasses.replace(getattr(experiment, section), **{field: value})
    return dataclasses.replace(experiment, **{section: changed})


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_survives_json_and_back(name):
    preset = presets.PRESETS[name]
    values = json.loads(json.dumps(knobs.to_dict(preset)))
    assert knobs.from_dict(configs.ExperimentConfig, values, "config.json") == preset


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_passes_its_own_check(name):
    configs.check(presets.PRESETS[name])


def test_missing_fields_keep_their_defaults():
    loaded = knobs.from_dict(configs.ExperimentConfig, {"training": {"batch_size": 8}}, "config.json")
    assert loaded == _changed("training.batch_size", 8)


@pytest.mark.parametrize("values", [pytest.param({"dataset": {"examples": 3}}, id="a run's own"), {}])
def test_a_config_file_is_read_without_the_facts_about_its_data(tmp_path, values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"preset": "d0", **values}))
    assert configs.load(path) == configs.ExperimentConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(b"{", "is not valid JSON", id="cut short"),
        pytest.param(b"\xff\xfe{}", "cannot be read", id="not text"),
        pytest.param(b"[1, 2]", "expected a JSON object", id="not an object"),
        pytest.param(None, "cannot be read", id="missing"),
    ],
)
def test_a_damaged_config_file_is_named(tmp_path, text, words):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=words) as error:
        configs.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        pytest.param({"trainning": {}}, "unknown field `trainning`", id="unknown section"),
        pytest.param(
            {"training": {"batchsize": 8}},
            "field `batchsize`. Did you mean `batch_size`?",
            id="a knob written otherwise",
        ),
        pytest.param({"zzz": 8}, "unknown field `zzz`. Choose from preset, ", id="unknown section"),
        pytest.param({"training": 8}, "training` is 8; expected a JSON object", id="a number for a section"),
        pytest.param({"training": {"batch_size": 8.5}}, "batch_size` is 8.5; expected int", id="float for int"),
        pytest.param({"training": {"batch_size": True}}, "batch_size` is True; expected int", id="bool for int"),
        pytest.param({"training": {"batch_size": "8"}}, "batch_size` is '8'; expected int", id="text for int"),
        pytest.param({"training": {"epochs": "9"}}, "epochs` is '9'; expected float", id="text for float"),
        pytest.param({"training": {"epochs": True}}, "epochs` is True; expected float", id="bool for float"),
        pytest.param(
            {"training": {"precision": "half"}}, "precision` is 'half'; expected one of 'float32'", id="choice"
        ),
        pytest.param({"training": {"epochs": None}}, "epochs` is None; expected float", id="null for float"),
        pytest.param({"model": {"name": 3}}, "name` is 3; expected str", id="number for text"),
        pytest.param({"model": {"image_size": [512]}}, "image_size` is [512]", id="one number for two"),
        pytest.param({"model": {"image_size": 512}}, "image_size` is 512", id="a number for a pair"),
        pytest.param({"model": {"aspect_ratios": [[1.0]]}}, "aspect_ratios` is [1.0]", id="inside a list"),
        pytest.param({"model": {"backbone": {"width": "wide"}}}, "backbone: width` is 'wide'", id="two levels down"),
        pytest.param({"model": {"name": ["x" * 999]}}, "...; expected str", id="a long value is cut"),
        pytest.param([], "config.json` is []; expected a JSON object", id="a list for the whole"),
    ],
)
def test_a_wrong_value_is_named(values, words):
    with pytest.raises(UserError) as error:
        knobs.from_dict(configs.ExperimentConfig, values, "config.json")
    assert words in str(error.value)
    assert len(str(error.value)) < 300


def test_whole_numbers_are_good_floats():
    loaded = knobs.from_dict(configs.ExperimentConfig, {"training": {"epochs": 3}}, "config.json")
    assert isinstance(loaded.training.epochs, float)


def test_what_follows_from_batch_and_dataset_may_be_left_open():
    values = {"optimizer": {"learning_rate": None, "warmup_epochs": None}}
    assert knobs.from_dict(configs.ExperimentConfig, values, "config.json") == configs.ExperimentConfig()


_NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.num_classes", 0),
        ("model.feature_channels", 0),
        ("model.num_cells", 0),
        ("model.head_repeats", -1),
        ("model.num_octaves", 0),
        ("model.feature_channels", 10**6),
        ("model.num_cells", 21),
        ("model.head_repeats", 21),
        ("model.anchor_scale", 1e4),
        ("model.anchor_scale", _NAN),
        ("model.image_size", (31, 512)),
        ("model.image_size", (512, 31)),
        ("model.image_size", (100_001, 32)),
        ("model.image_size", (10**4000, 32)),
        ("model.min_level", 2),
        ("model.max_level", 4),
        ("model.max_level", 9),
        ("data.synthetic_examples", 0),
        ("data.synthetic_classes", 0),
        ("augmentation.scale_min", 0.0),
        ("augmentation.scale_min", _NAN),
        ("augmentation.scale_max", 0.05),
        ("augmentation.scale_max", 17.0),
        ("augmentation.randaugment_layers", 0),
        ("augmentation.randaugment_magnitude", 31.0),
        ("augmentation.grid_mask", 1.1),
        ("augmentation.brightness", -0.1),
        ("augmentation.contrast", 1.1),
        ("augmentation.saturation", _NAN),
        ("augmentation.hue", 0.6),
        ("augmentation.mosaic", -0.1),
        ("augmentation.mixup", 1.1),
        ("augmentation.mixup_alpha", 0.0),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", _NAN),
        ("optimizer.momentum", -0.1),
        ("optimizer.momentum", 1.0),
        ("optimizer.momentum", _NAN),
        ("optimizer.warmup_epochs", -1.0),
        ("optimizer.clip_norm", -1.0),
        ("optimizer.weight_decay", -1.0),
        ("optimizer.average_decay", -0.1),
        ("optimizer.average_decay", 1.0),
        ("training.batch_size", 0),
        ("training.accumulate_steps", 0),
        ("training.patience", -1),
        ("training.epochs", 0.0),
        ("training.epochs", _NAN),
        ("training.seed", -1),
        ("training.seed", 2**31),
        ("training.epochs", float("inf")),
        ("model.anchor_scale", 0.0),
        ("model.pixel_std", (0.2, 0.0, 0.2)),
        ("model.aspect_ratios", ()),
        ("model.aspect_ratios", ((1.0, -1.0),)),
        ("model.aspect_ratios", ((1.0, _NAN),)),
        ("model.aspect_ratios", ((1e3, 1.0),)),
        ("model.batch_norm_momentum", 1.5),
        ("loss.match_iou", -1.0),
        ("loss.focal_gamma", -5.0),
        ("loss.huber_delta", 0.0),
        ("training.evaluate_every", -1.0),
        ("training.log_every", 0),
        ("training.checkpoint_every", 0),
        ("training.keep_checkpoints", 0),
        ("training.max_bad_steps", 0),
        ("postprocess.max_candidates", 0),
        ("postprocess.max_candidates", 1_000_001),
        ("postprocess.max_detections", 0),
        ("postprocess.max_detections", 10_001),
        ("postprocess.nms_sigma", 0.0),
        ("evaluation.batch_size", 0),
        ("evaluation.max_images", -1),
        ("training.batch_size", np.int64(-3)),
        ("training.batch_size", "8"),
        ("training.seed", 10**400),
        ("model.pixel_mean", (np.float32(0.5), np.float32(2.0), np.float32(0.5))),
    ],
)
def test_check_names_the_knob(name, value):
    with pytest.raises(UserError, match=name.split(".")[1]):
        configs.check(_changed(name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.image_size", (32, 32)),
        ("model.head_repeats", 0),
        ("model.max_level", 5),
        ("augmentation.scale_max", 16.0),
        ("optimizer.momentum", 0.0),
        ("optimizer.clip_norm", 0.0),
        ("training.evaluate_every", 0.0),
        ("postprocess.score_threshold", 0.0),
        ("training.batch_size", np.int64(8)),
    ],
)
def test_check_lets_the_limit_itself_pass(name, value):
    configs.check(_changed(name, value))


@pytest.mark.parametrize("value", [0.0, 20.1])
@pytest.mark.parametrize("name", ["width", "depth", "survival"])
def test_check_looks_into_the_backbone(name, value):
    model = dataclasses.replace(configs.ModelConfig(), backbone=configs.BackboneConfig(**{name: value}))
    with pytest.raises(UserError, match=rf"model\.backbone\.{name}` is {value:g}"):
        configs.check(dataclasses.replace(configs.ExperimentConfig(), model=model))


@pytest.mark.parametrize(
    ("values", "part"),
    [
        pytest.param({"image_size": (8192, 8192)}, "backbone", id="4096^2 places with 96 channels"),
        pytest.param(
            {"image_size": (4096, 4096), "num_octaves": 100, "num_classes": 1},
            "list of anchors",
            id="300 anchors a place",
        ),
        pytest.param({"num_classes": 10**6}, "class head", id="a million classes"),
        pytest.param({"image_size": (1024, 1024), "feature_channels": 10**5}, "feature network", id="wide features"),
    ],
)
def test_an_image_that_would_not_fit_into_memory_is_refused(values, part):
    model = dataclasses.replace(configs.ModelConfig(), **values)
    with pytest.raises(UserError, match=rf"`model\.image_size` is .*; the {part} would need"):
        configs.check(dataclasses.replace(configs.ExperimentConfig(), model=model))


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_has_values_that_can_work(name):
    configs.check(presets.PRESETS[name])
