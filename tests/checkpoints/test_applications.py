"""ImageNet weights of `keras.applications`: the same features from the same image, whatever the files' form."""

import dataclasses
import hashlib

import h5py
import keras
import numpy as np
import pytest
from keras.src import backend as keras_backend
from keras.src.applications import efficientnet as keras_efficientnet
from keras.src.legacy.saving import legacy_h5_format

from efficientdet import presets
from efficientdet.checkpoints import applications
from efficientdet.config import BackboneConfig, ModelConfig
from efficientdet.errors import UserError
from efficientdet.model.efficientdet import Normalize
from efficientdet.model.efficientnet import EfficientNet

# Keras 3.15 writes files so; nothing of ours does.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

_B0 = BackboneConfig()
_MEAN = np.array([0.485, 0.456, 0.406])
_STD = np.array([0.229, 0.224, 0.225])  # which the published files keep as the variance
_BACKBONES = {model.backbone.name: model.backbone for model in presets.MODELS.values()}


def _network(rng, mean=_MEAN, variance=_STD):
    """Makes a B0 without classifier whose weights all matter, normalising as the published files do."""
    keras.utils.set_random_seed(0)
    network = keras.applications.EfficientNetB0(weights=None, include_top=False)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([np.asarray(mean), np.asarray(variance), np.array(0)])
            layer.finalize_state()
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return network


def _write_as_published(network, path):
    """Writes a file as Keras 2 did, which is the form of the published ones."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return path


@pytest.fixture
def keras_cache(tmp_path, monkeypatch):
    """Points Keras's cache to an empty folder."""
    monkeypatch.setattr(keras_backend.config, "_KERAS_DIR", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def _features(arrays, images):
    """Runs our normalisation and backbone."""
    backbone = EfficientNet(_B0, activation="swish", momentum=0.99, name="backbone")
    backbone.build((None, None, None, 3))
    for variable in backbone.weights:
        variable.assign(arrays[variable.path])
    return backbone(Normalize(ModelConfig())(images))


@pytest.mark.parametrize("name", [f"efficientnet-b{number}" for number in range(8)])
def test_every_variable_has_a_name_of_its_own(name):
    found = applications.applications_names(_BACKBONES[name])
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("stem/kernel", ("stem_conv", "kernel"), id="stem"),
        pytest.param("stem_norm/beta", ("stem_bn", "beta"), id="its normalisation"),
        pytest.param("block_0/depthwise/kernel", ("block1a_dwconv", "kernel"), id="first block, which expands nothing"),
        pytest.param("block_4/expand/kernel", ("block3b_expand_conv", "kernel"), id="second of stage 3"),
        pytest.param("block_4/depthwise_norm/moving_mean", ("block3b_bn", "moving_mean"), id="unlike the other norms"),
        pytest.param("block_15/squeeze_excite/reduce/bias", ("block7a_se_reduce", "bias"), id="last block"),
    ],
)
def test_a_variable_is_named_by_stage_and_letter(path, expected):
    assert applications.applications_names(_B0)[f"backbone/{path}"] == expected
    assert "backbone/block_0/expand/kernel" not in applications.applications_names(_B0)


@pytest.mark.parity
@pytest.mark.parametrize(
    "variance",
    [
        pytest.param(_STD, id="as published: nothing is left to fold"),
        pytest.param(np.array([0.5, 0.05, 0.9]), id="another one is folded into the stem"),
    ],
)
def test_features_equal_those_of_keras_with_imagenet_weights(variance, keras_cache, monkeypatch, rng):
    path = _write_as_published(_network(rng, variance=variance), keras_cache / "efficientnetb0_notop.h5")
    # Keras takes a file of this name for its own if its hash is known.
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(keras_efficientnet.WEIGHTS_HASHES, "b0", ("", digest))
    theirs = keras.applications.EfficientNetB0(weights="imagenet", include_top=False, input_shape=(64, 67, 3))
    outputs = [theirs.get_layer(name).output for name in ("block3b_add", "block5c_add", "block7a_project_bn")]
    images = rng.integers(0, 256, (2, 64, 67, 3), np.uint8)
    expected = keras.Model(theirs.input, outputs)(images.astype(np.float32))

    downloaded, given = applications.imagenet_backbone(_B0), applications.imagenet_backbone(_B0, weights=path)
    assert all(np.array_equal(downloaded[name], given[name]) for name in downloaded)
    for our, their in zip(_features(given, images), expected, strict=True):
        assert np.std(np.array(their)) > 0.01
        np.testing.assert_allclose(our, their, atol=1e-5 * np.abs(np.array(their)).max())


def test_the_stem_of_a_published_file_is_taken_as_it_is(tmp_path, rng):
    network = _network(rng)
    arrays = applications.imagenet_backbone(_B0, weights=_write_as_published(network, tmp_path / "b0.h5"))
    np.testing.assert_array_equal(arrays["backbone/stem/kernel"], network.get_layer("stem_conv").get_weights()[0])


def test_a_file_of_keras_3_is_read_too(tmp_path, rng):
    network = _network(rng)
    network.save_weights(tmp_path / "b0.weights.h5")
    found = applications.imagenet_backbone(_B0, weights=tmp_path / "b0.weights.h5")
    published = applications.imagenet_backbone(_B0, weights=_write_as_published(network, tmp_path / "b0.h5"))
    assert found.keys() == published.keys()
    assert all(np.array_equal(found[name], published[name]) for name in found)


@pytest.mark.parity
def test_a_network_that_never_normalised_fits_a_model_that_does_not_either(tmp_path, rng):
    network = _network(rng, mean=np.zeros(3), variance=np.ones(3))
    path = _write_as_published(network, tmp_path / "b0.h5")
    arrays = applications.imagenet_backbone(_B0, weights=path, pixel_mean=(0, 0, 0), pixel_std=(0.5, 0.25, 0.125))
    kernel = network.get_layer("stem_conv").get_weights()[0]
    np.testing.assert_allclose(arrays["backbone/stem/kernel"][0, 0, :, 0], kernel[0, 0, :, 0] * [0.5, 0.25, 0.125])
    with pytest.raises(UserError, match=r"b0.h5` was trained with the pixel mean \[0.0, 0.0, 0.0\], but `model.pix"):
        applications.imagenet_backbone(_B0, weights=path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(_BACKBONES["efficientnet-lite0"], "`backbone` is efficientnet-lite0 with width 1", id="Lite"),
        pytest.param(_BACKBONES["efficientnet-demo"], "`backbone` is efficientnet-demo with width 0.75", id="demo"),
        pytest.param(dataclasses.replace(_B0, width=2.0), "`backbone` is efficientnet-b0 with width 2", id="changed"),
    ],
)
def test_a_backbone_without_such_weights_is_refused(config, message):
    with pytest.raises(UserError, match=message) as caught:
        applications.imagenet_backbone(config)
    assert "EfficientNet-B0 to B7" in str(caught.value)
    assert "\n" not in str(caught.value)


def _missing(folder, rng):
    return folder / "b0.h5"


def _no_hdf5(folder, rng):
    path = folder / "b0.h5"
    path.write_bytes(b"no HDF5")
    return path


def _cut(folder, rng):
    path = _write_as_published(_network(rng), folder / "b0.h5")
    path.write_bytes(path.read_bytes()[:100_000])
    return path


def _pytorch(folder, rng):
    path = folder / "b0.pth"
    path.write_bytes(b"PK")
    return path


def _with_classifier(folder, rng):
    return _write_as_published(keras.applications.EfficientNetB0(weights=None), folder / "b0.h5")


def _of_b1(folder, rng):
    return _write_as_published(keras.applications.EfficientNetB1(weights=None, include_top=False), folder / "b1.h5")


def _of_b1_in_keras_3(folder, rng):
    keras.applications.EfficientNetB1(weights=None, include_top=False).save_weights(folder / "b1.weights.h5")
    return folder / "b1.weights.h5"


def _with_a_huge_tensor(folder, rng):
    """HDF5 stores nothing for values that were never written; Keras would read 4 TB."""
    path = _write_as_published(_network(rng), folder / "b0.h5")
    with h5py.File(path, "a") as file:
        (name,) = [name for name in _names_of_datasets(file) if name.endswith("stem_conv/kernel")]
        del file[name]
        file.create_dataset(name, shape=(2**40,), dtype="float32", chunks=(1024,))
    return path


def _names_of_datasets(file):
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def _without_a_block_in_keras_3(folder, rng):
    network = _network(rng)
    path = folder / "b0.weights.h5"
    network.save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/conv2d_7"]
    return path


@pytest.mark.parametrize(
    ("make_file", "message"),
    [
        pytest.param(_missing, "does not exist", id="missing"),
        pytest.param(_no_hdf5, "does not match efficientnetb0", id="no HDF5"),
        pytest.param(_cut, "does not match efficientnetb0", id="cut short"),
        pytest.param(_pytorch, "is not an .h5 file", id="another kind"),
        pytest.param(_with_classifier, "does not match efficientnetb0", id="with its classifier"),
        pytest.param(_with_a_huge_tensor, r"kernel` has the shape \(1099511627776,\)", id="a huge tensor"),
        pytest.param(_of_b1, "does not match efficientnetb0", id="of B1"),
        pytest.param(_of_b1_in_keras_3, "does not match efficientnetb0", id="of B1, Keras 3"),
        pytest.param(_without_a_block_in_keras_3, "does not match efficientnetb0", id="a layer is missing, Keras 3"),
    ],
)
def test_a_file_that_does_not_fit_is_named_in_one_line(make_file, message, tmp_path, rng):
    path = make_file(tmp_path, rng)
    with pytest.raises(UserError, match=message) as caught:
        applications.imagenet_backbone(_B0, weights=path)
    assert str(caught.value).startswith(f"`{path}`")
    assert "efficientnetb0_notop.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_is_one_line_with_the_file_to_bring(keras_cache, monkeypatch, capsys):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing listens
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        UserError, match=r"`efficientnetb0_notop.h5` \(ImageNet weights\) cannot be downloaded"
    ) as caught:
        applications.imagenet_backbone(_B0)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert not list(keras_cache.iterdir())
