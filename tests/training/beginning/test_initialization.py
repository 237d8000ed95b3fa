"""What a run starts from: nothing, a backbone, weights of the same or other classes; and what is frozen."""

import dataclasses

import numpy as np
import pytest

from efficientdet import config as configs
from efficientdet.config import DataConfig, ExperimentConfig, OptimizerConfig, TrainingConfig
from efficientdet.data import synthetic
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.structures import Category
from efficientdet.training.beginning import initialization
from efficientdet.training.run import train

pytestmark = pytest.mark.usefixtures("uncompiled")

_TWO = synthetic.CATEGORIES[:2]
_KERNEL = "backbone/stem/kernel"
_OTHERS = (Category(id=1, name="cat"), Category(id=2, name="dog"), Category(id=3, name="eel"))


def _config(model, folder, **fields):
    return ExperimentConfig(
        preset="tiny",
        run_dir=str(folder),
        model=model,
        data=DataConfig(train="synthetic", synthetic_examples=4, synthetic_classes=2),
        optimizer=OptimizerConfig(learning_rate=0.05, warmup_epochs=0),
        training=TrainingConfig(batch_size=2, epochs=1, freeze=fields.pop("freeze", "none")),
        evaluation=configs.EvaluationConfig(batch_size=4, max_images=4),
        **fields,
    )


@pytest.fixture(scope="module")
def small(tiny):
    return dataclasses.replace(tiny, image_size=(64, 64), num_classes=2)


def _save(path, model_config, categories):
    """Writes weights whose values are all different from those of a new model."""
    model = EfficientDet(dataclasses.replace(model_config, num_classes=len(categories)))
    rng = np.random.default_rng(3)
    arrays = {weights.variable_name(v): v.numpy() + rng.uniform(0.01, 0.1, v.shape) for v in model.weights}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    weights.save(path, arrays, model.config, categories)
    return arrays


def _started(config, categories):
    start = initialization.find_start(config)
    model = EfficientDet(dataclasses.replace(start.model, num_classes=len(categories)))
    before = {weights.variable_name(v): v.numpy().copy() for v in model.weights}
    notes = initialization.assign_start(model, start, categories)
    return model, before, {weights.variable_name(v): v.numpy() for v in model.weights}, notes


def test_weights_of_the_same_classes_are_taken_whole(small, tmp_path):
    arrays = _save(tmp_path / "start.safetensors", small, _TWO)
    config = _config(small, tmp_path / "run", weights=str(tmp_path / "start.safetensors"))
    _, _, after, _ = _started(config, _TWO)
    for name, array in arrays.items():
        np.testing.assert_array_equal(after[name], array)


@pytest.mark.parametrize("others", [_OTHERS, _OTHERS[:2]], ids=["another number", "other names"])
def test_for_other_classes_the_class_predictor_starts_afresh(others, small, tmp_path):
    arrays = _save(tmp_path / "start.safetensors", small, others)
    config = _config(small, tmp_path / "run", weights=str(tmp_path / "start.safetensors"))
    _, before, after, notes = _started(config, _TWO)
    for name, array in after.items():
        expected = before if name.startswith("class_head/predict/") else arrays
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert any("is reinitialized for 2" in note for note in notes)


def test_of_more_classes_those_of_the_dataset_are_kept(small, tmp_path):
    three = (_TWO[1], _OTHERS[2], _TWO[0])
    arrays = _save(tmp_path / "start.safetensors", small, three)
    config = _config(small, tmp_path / "run", weights=str(tmp_path / "start.safetensors"))
    _, _, after, notes = _started(config, _TWO)
    for leaf in ("kernel", "bias"):
        name = f"class_head/predict/pointwise/{leaf}"
        by_anchor = arrays[name].reshape(*arrays[name].shape[:-1], 9, 3)
        expected = by_anchor[..., [2, 0]].reshape(after[name].shape)
        np.testing.assert_array_equal(after[name], expected)
    assert any("of the 3 classes in the weights, the 2 in the dataset are kept" in note for note in notes)


def test_a_run_goes_on_without_the_weights_it_started_from(small, tmp_path):
    _save(tmp_path / "start.safetensors", dataclasses.replace(small, resize="legacy"), _TWO)
    config = _config(small, tmp_path / "run", weights=str(tmp_path / "start.safetensors"))
    train(config)
    (tmp_path / "start.safetensors").unlink()
    assert train(config).steps == 2


def test_a_backbone_leaves_the_rest_random(small, tmp_path):
    arrays = _save(tmp_path / "start.safetensors", small, _OTHERS)
    config = _config(small, tmp_path / "run", backbone=str(tmp_path / "start.safetensors"))
    _, before, after, _ = _started(config, _TWO)
    for name, array in after.items():
        expected = arrays if name.startswith("backbone/") else before
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_the_habits_of_weights_are_taken_over(small, tmp_path):
    habits = {"fusion_relu": False, "normalize_twice": True, "resize": "legacy", "padding": "black"}
    habits |= {"upsampling": "half_pixel"}
    _save(tmp_path / "start.safetensors", dataclasses.replace(small, **habits), _TWO)
    start = initialization.find_start(_config(small, tmp_path, weights=str(tmp_path / "start.safetensors")))
    assert start.model == dataclasses.replace(small, **habits)
    assert any("model.resize legacy" in note for note in start.notes)


def test_weights_of_another_model_do_not_fit(small, tmp_path):
    _save(tmp_path / "start.safetensors", dataclasses.replace(small, feature_channels=16), _TWO)
    config = _config(small, tmp_path / "run", weights=str(tmp_path / "start.safetensors"))
    with pytest.raises(UserError, match=r"`weights` does not match tiny: `box_head/.* has the shape .*; and \d+ more"):
        _started(config, _TWO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update({_KERNEL: a[_KERNEL] * np.nan}), f"`{_KERNEL}` has values that are not finite"),
        (lambda a: a.update({_KERNEL: a[_KERNEL].astype("f2")}), f"`{_KERNEL}` has the type float16"),
        (lambda a: a.pop("class_head/predict/pointwise/bias"), "`class_head/predict/pointwise/bias` is missing"),
        (lambda a: [a.pop(name) for name in list(a) if name.startswith("box_head/")], r"`box_head/.*; and \d+ more"),
    ],
    ids=["not finite", "half precision", "no predictor", "no box head"],
)
def test_a_start_is_taken_whole_or_refused(change, message, small, tmp_path):
    _save(tmp_path / "start.safetensors", small, _TWO)
    start = initialization.find_start(_config(small, tmp_path, weights=str(tmp_path / "start.safetensors")))
    change(start.arrays)
    with pytest.raises(UserError, match=f"`weights` does not match tiny: {message}"):
        initialization.assign_start(EfficientDet(small), start, _TWO)


def test_weights_that_know_other_anchors_are_taken_with_a_word(small, tmp_path):
    _save(tmp_path / "start.safetensors", dataclasses.replace(small, anchor_scale=5.0), _TWO)
    start = initialization.find_start(_config(small, tmp_path, weights=str(tmp_path / "start.safetensors")))
    assert start.model == small
    assert any("model.anchor_scale 5.0, but this run uses" in note for note in start.notes)


def test_a_backbone_that_knows_other_pixels_is_refused(small, tmp_path):
    other = dataclasses.replace(small, normalize_twice=True)
    _save(tmp_path / "start.safetensors", other, _TWO)
    path = str(tmp_path / "start.safetensors")
    with pytest.raises(UserError, match=r"was trained with `model.normalize_twice` True, but this model has False"):
        initialization.find_start(_config(small, tmp_path, backbone=path))
    initialization.find_start(_config(other, tmp_path, backbone=path))


def test_weights_and_a_backbone_are_one_too_many(small, tmp_path):
    with pytest.raises(UserError, match="`weights` is a and `backbone` is b"):
        initialization.find_start(_config(small, tmp_path, weights="a", backbone="b"))


@pytest.mark.parametrize(
    ("frozen", "parts"),
    [("none", ()), ("backbone", ("backbone/",)), ("all_but_heads", ("backbone/", "feature_network/"))],
)
def test_what_is_frozen_stays_to_the_last_bit(frozen, parts, small, tmp_path):
    """Kernels and batch statistics; everything else that learns moves."""
    # Stochastic depth in a frozen backbone would change what the heads see.
    model = dataclasses.replace(small, backbone=dataclasses.replace(small.backbone, survival=0.5))
    arrays = _save(tmp_path / "start.safetensors", model, _TWO)
    config = _config(model, tmp_path / "run", weights=str(tmp_path / "start.safetensors"), freeze=frozen)
    train(config)
    after = weights.load(tmp_path / "run" / "weights" / "last.safetensors").arrays
    assert after.keys() == arrays.keys()
    for name, array in arrays.items():
        if name.startswith(parts or "nothing"):
            np.testing.assert_array_equal(after[name], array, err_msg=name)
        elif name.endswith(("kernel", "moving_mean", "moving_variance")):
            assert (after[name] != array).any(), name


def test_a_frozen_backbone_answers_in_training_as_in_inference(small, rng):
    model_config = dataclasses.replace(small, backbone=dataclasses.replace(small.backbone, survival=0.5))
    model = EfficientDet(model_config)
    initialization.freeze(model, "all_but_heads")
    seen = []
    original = model.box_head.call
    object.__setattr__(model.box_head, "call", lambda features, **k: seen.append(features) or original(features, **k))
    images = {"images": rng.integers(0, 256, (2, 64, 64, 3), np.uint8)}
    model(images, training=True)
    model(images, training=False)
    for in_training, in_inference in zip(*seen, strict=True):
        np.testing.assert_array_equal(in_training, in_inference)


def test_a_resumed_run_stays_frozen(small, tmp_path):
    _save(tmp_path / "start.safetensors", small, _TWO)
    config = _config(small, tmp_path / "run", weights=str(tmp_path / "start.safetensors"), freeze="backbone")
    first = dataclasses.replace(config, training=dataclasses.replace(config.training, checkpoint_every=1))
    summary = train(first)
    again = train(first)
    assert (summary.steps, again.steps) == (2, 2)
