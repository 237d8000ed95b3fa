"""D0, written in each published format by independent code, comes back bit for bit."""

import csv
import dataclasses
import json
import subprocess
import sys
import tarfile
import zipfile

import little_checkpoints
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from efficientdet import presets
from efficientdet.checkpoints import class_tables, importing, names, tensors
from efficientdet.errors import UserError
from efficientdet.model import variables, weights
from efficientdet.model.efficientdet import EfficientDet

_D0 = presets.MODELS["d0"]


def _random_arrays(model, seed=0):
    rng = np.random.default_rng(seed)
    return {weights.variable_name(v): rng.uniform(0.5, 1.5, v.shape).astype(np.float32) for v in model.weights}


@pytest.fixture(scope="module")
def model():
    return EfficientDet(_D0)


@pytest.fixture(scope="module")
def arrays(model):
    """Values of D0's variables, all different, variances above 0."""
    return _random_arrays(model)


@pytest.fixture(scope="module")
def stale(arrays):
    """What the last training step left: other values than the averages."""
    return {path: array + 1 for path, array in arrays.items()}


def _with_91_classes(arrays):
    """Adds NVIDIA's output that is never used to each anchor."""
    changed = dict(arrays)
    for leaf in ("kernel", "bias"):
        array = arrays[f"class_head/predict/pointwise/{leaf}"]
        by_anchor = array.reshape(*array.shape[:-1], 9, 90)
        unused = np.full((*by_anchor.shape[:-1], 1), 7, np.float32)
        wide = np.concatenate([by_anchor, unused], axis=-1).reshape(*array.shape[:-1], 9 * 91)
        changed[f"class_head/predict/pointwise/{leaf}"] = wide
    return changed


def _torch(named):
    counters = {"backbone.bn1.num_batches_tracked": np.array(9, np.int64)}
    return {name: np.ascontiguousarray(array) for name, array in (named | counters).items()}


def _tensorflow1(folder, arrays, stale):
    (folder / "efficientdet-d0").mkdir()
    named, raw = little_checkpoints.automl(arrays), little_checkpoints.automl(stale)
    little_checkpoints.write_tensorflow1(folder / "efficientdet-d0" / "model", named, raw=raw)
    return folder / "efficientdet-d0"


def _tensorflow1_without_averages(folder, arrays, stale):
    little_checkpoints.write_tensorflow1(folder / "model.ckpt-7", little_checkpoints.automl(arrays))
    return folder / "model.ckpt-7.index"


def _hdf5(folder, arrays, stale):
    little_checkpoints.write_hdf5(folder / "efficientdet-d0.h5", little_checkpoints.automl(arrays))
    return folder / "efficientdet-d0.h5"


def _hdf5_of_a_second_network(folder, arrays, stale):
    """Keras counts the layers that google/automl gives no name."""
    named = little_checkpoints.automl(arrays)
    named = {
        name.replace("/stem/", "/stem_1/").replace("stem_1/conv2d", "stem_1/conv2d_1"): a for name, a in named.items()
    }
    little_checkpoints.write_hdf5(folder / "efficientdet-d0.h5", named)
    return folder / "efficientdet-d0.h5"


def _automl_objects(folder, arrays, stale):
    tree = little_checkpoints.tree(little_checkpoints.objects(arrays, "automl"), tf.Variable)
    return tf.train.Checkpoint(model=tree).save(str(folder / "ckpt"))


def _automl_saved_model(folder, arrays, stale):
    named = little_checkpoints.objects(arrays, "automl") | little_checkpoints.automl_head()
    exported = tf.Module()
    exported.model = little_checkpoints.listed(little_checkpoints.tree(named, tf.Variable))
    tf.saved_model.save(exported, str(folder / "exported"))
    return folder / "exported"


def _nvidia_objects(folder, arrays, stale):
    named = little_checkpoints.objects(_with_91_classes(arrays), "nvidia")
    return tf.train.Checkpoint(little_checkpoints.tree(named, tf.Variable)).write(str(folder / "emackpt-300"))


def _nvidia_saved_model(folder, arrays, stale):
    named = little_checkpoints.objects(_with_91_classes(arrays), "nvidia")
    tree = little_checkpoints.tree(named, tf.Variable)
    tf.saved_model.save(little_checkpoints.listed(tree), str(folder / "emackpt-final"))
    return folder / "emackpt-final"


def _effdet_zip(folder, arrays, stale):
    state = _torch(little_checkpoints.effdet(arrays))
    little_checkpoints.write_pytorch(folder / "tf_efficientdet_d0.pth", state)
    return folder / "tf_efficientdet_d0.pth"


def _effdet_legacy(folder, arrays, stale):
    state = _torch(little_checkpoints.effdet(arrays))
    little_checkpoints.write_pytorch(folder / "tf_efficientdet_d0.pth", state, legacy=True)
    return folder / "tf_efficientdet_d0.pth"


def _effdet_training_checkpoint(folder, arrays, stale):
    """With the prefixes of DataParallel and of the training bench, averages and anchors."""
    own = {f"module.model.{name}": array for name, array in _torch(little_checkpoints.effdet(stale)).items()}
    own["module.anchors.boxes"] = np.zeros((49104, 4), np.float32)
    average = {f"model.{name}": array for name, array in _torch(little_checkpoints.effdet(arrays)).items()}
    saved = {"epoch": 3, "arch": "tf_efficientdet_d0", "state_dict": own, "state_dict_ema": average, "metric": 0.3}
    little_checkpoints.write_pytorch(folder / "model_best.pth.tar", saved)
    return folder / "model_best.pth.tar"


def _effdet_safetensors(folder, arrays, stale):
    save_file(_torch(little_checkpoints.effdet(arrays)), folder / "model.safetensors")
    return folder / "model.safetensors"


_WRITERS = [
    _tensorflow1,
    _tensorflow1_without_averages,
    _hdf5,
    _hdf5_of_a_second_network,
    _automl_objects,
    _automl_saved_model,
    _nvidia_objects,
    _nvidia_saved_model,
    _effdet_zip,
    _effdet_legacy,
    _effdet_training_checkpoint,
    _effdet_safetensors,
]


@pytest.mark.parametrize("write", _WRITERS, ids=lambda write: write.__name__.strip("_"))
def test_d0_comes_back_bit_for_bit(write, arrays, stale, tmp_path):
    result = importing.import_weights(write(tmp_path, arrays, stale), output=tmp_path / "ours.safetensors")
    assert (result.model, result.num_variables, result.initialized) == ("efficientdet-d0", 709, [])
    loaded = weights.load(tmp_path / "ours.safetensors")
    assert loaded.categories == class_tables.CATEGORIES
    assert loaded.arrays.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(loaded.arrays[path], array, err_msg=path)


@pytest.mark.parametrize("write", [_tensorflow1, _automl_saved_model, _effdet_zip], ids=["folder", "saved", "file"])
def test_an_archive_is_imported_as_it_was_downloaded(write, arrays, stale, tmp_path):
    (tmp_path / "inside").mkdir()
    write(tmp_path / "inside", arrays, stale)
    archive = tmp_path / "efficientdet-d0.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "inside", "efficientdet-d0")
    result = importing.import_weights(archive, output=tmp_path / "ours.safetensors")
    assert (result.model, result.num_variables) == ("efficientdet-d0", 709)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        "efficientdet-d0.tar.gz",
        "inside",
        "ours.safetensors",
    ]


def test_an_archive_without_a_checkpoint_or_with_several_names_what_it_holds(arrays, tmp_path):
    (tmp_path / "inside").mkdir()
    archive = tmp_path / "weights.tgz"
    for files, expected in (
        ((), "contains no checkpoint"),
        (("a.pth", "b.pth"), "contains `a.pth`, `b.pth`; expected one"),
    ):
        for name in files:
            (tmp_path / "inside" / name).write_bytes(b"x")
        (tmp_path / "inside" / "readme.txt").write_bytes(b"x")
        with tarfile.open(archive, "w:gz") as file:
            file.add(tmp_path / "inside", ".")
        with pytest.raises(UserError, match=expected):
            importing.import_weights(archive, output=tmp_path / "ours.safetensors")


def test_a_whole_model_of_keras_is_named_as_what_it_is(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            file.writestr(name, b"{}")
    with pytest.raises(UserError, match=r"is a complete Keras model \(\.keras\)"):
        importing.import_weights(path, output=tmp_path / "ours.safetensors")


def test_what_exporting_adds_is_set_aside(arrays, stale, tmp_path):
    result = importing.import_weights(_automl_saved_model(tmp_path, arrays, stale), output=tmp_path / "a.safetensors")
    assert result.set_aside["tensors of the classifier"] == len(little_checkpoints.automl_head()) == 7


@pytest.mark.parametrize("write", [_tensorflow1, _effdet_training_checkpoint], ids=["automl", "effdet"])
def test_raw_takes_the_values_of_the_last_step(write, arrays, stale, tmp_path):
    file = write(tmp_path, arrays, stale)
    result = importing.import_weights(file, output=tmp_path / "raw.safetensors", raw=True)
    assert result.num_averaged == 0
    loaded = weights.load(tmp_path / "raw.safetensors").arrays
    for path, array in stale.items():
        np.testing.assert_array_equal(loaded[path], array, err_msg=path)


class _Untracked:
    """Hides a dictionary from TensorFlow, which would follow it."""

    def __init__(self, values):
        self.values = values


def test_an_optimizer_s_averages_are_found(arrays, stale, tmp_path):
    """NVIDIA's `ckpt` has the averages as slot variables of its optimizer."""
    made = []

    def variable(array):
        made.append(tf.Variable(array + 1))
        return made[-1]

    tree = little_checkpoints.tree(little_checkpoints.objects(arrays, "nvidia"), variable)

    class Optimizer(tf.Module):
        """Keeps one slot a variable, outside of itself: an optimizer's graph does not reach them."""

        def __init__(self, name, variables):
            super().__init__()
            self._kind = name
            self._slots = _Untracked({id(v): tf.Variable(v - 1) for v in variables})

        def get_slot_names(self):
            return [self._kind]

        def get_slot(self, original, name):
            return self._slots.values.get(id(original))

    optimizer = Optimizer("average", made)
    optimizer.iter = tf.Variable(7, dtype=tf.int64)
    optimizer.awg_optimizer = Optimizer("momentum", made[:9])
    optimizer.awg_optimizer.decay = tf.Variable(0.0)
    tree.optimizer = optimizer
    prefix = tf.train.Checkpoint(tree).write(str(tmp_path / "ckpt"))
    result = importing.import_weights(prefix, output=tmp_path / "ours.safetensors")
    loaded = weights.load(tmp_path / "ours.safetensors").arrays
    assert result.num_averaged == 709
    assert result.set_aside == {"optimizer slots": 9, "counters": 2, "tensors of the classifier": 0}
    for path, array in arrays.items():
        np.testing.assert_allclose(loaded[path], array, rtol=1e-6, err_msg=path)


def test_the_name_map_is_covered(shared, model):
    """All 709 rows: google/automl's name and shape, effdet's name."""
    with (shared / "reference" / "d0_name_map.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    automl, effdet = (names.variable_sources(_D0, naming) for naming in ("automl", "effdet"))
    path_of = {source.name: path for path, source in automl.items()}
    shapes = {weights.variable_name(v): tuple(v.shape) for v in model.weights}
    assert len(rows) == len(path_of) == len(shapes) == 709
    for row in rows:
        path = path_of[row["automl_name"]]
        source = effdet[path]
        assert source.name + ("" if source.entry is None else f"[{source.entry}]") == row["effdet_name"]
        assert str(shapes[path]) == row["automl_shape"]


def test_the_tests_own_names_are_those_of_the_map(shared, arrays):
    with (shared / "reference" / "d0_name_map.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {little_checkpoints.automl_name(path) for path in arrays} == {row["automl_name"] for row in rows}
    assert little_checkpoints.effdet(arrays).keys() == {row["effdet_name"].split("[")[0] for row in rows}


@pytest.mark.parametrize("name", ["d1", "d6", "d7x", "lite3x"])
def test_each_kind_of_model_s_variables_have_a_place(name):
    config = presets.MODELS[name]
    paths = {weights.variable_name(v) for v in EfficientDet(config).weights}
    for naming in ("automl", "automl_objects", "nvidia_objects", "effdet"):
        sources = names.variable_sources(config, naming)
        assert sources.keys() == paths
        assert len({(source.name, source.entry) for source in sources.values()}) == len(paths)


def test_nvidia_s_habits_travel_with_its_weights(arrays, stale, tmp_path):
    importing.import_weights(_nvidia_objects(tmp_path, arrays, stale), output=tmp_path / "ours.safetensors")
    loaded = weights.load(tmp_path / "ours.safetensors").model
    habits = {"normalize_twice": True, "fusion_relu": False, "resize": "legacy", "upsampling": "half_pixel"}
    expected = dataclasses.replace(_D0, **habits)
    assert loaded == expected


def test_advprop_is_known_from_the_file_s_name(arrays, stale, tmp_path):
    path = tmp_path / "tf_efficientdet_d0_ap-d0cdbd0a.pth"
    little_checkpoints.write_pytorch(path, _torch(little_checkpoints.effdet(arrays)))
    result = importing.import_weights(path, output=tmp_path / "ours.safetensors")
    loaded = weights.load(tmp_path / "ours.safetensors").model
    assert (loaded.pixel_mean, loaded.pixel_std, loaded.padding) == ((0.5,) * 3, (0.5,) * 3, "black")
    assert any("AdvProp" in note for note in result.notes)


def test_other_classes_begin_with_a_new_class_predictor_when_asked(arrays, stale, tmp_path):
    path = _effdet_safetensors(tmp_path, arrays, stale)
    (tmp_path / "classes.txt").write_text("platelet\nred\nwhite\n")
    options = {"output": tmp_path / "ours.safetensors", "classes": tmp_path / "classes.txt"}
    with pytest.raises(UserError, match="--reset-classes"):
        importing.import_weights(path, **options)
    assert not options["output"].exists()
    result = importing.import_weights(path, **options, reset_classes=True)
    loaded = weights.load(options["output"])
    assert [category.name for category in loaded.categories] == ["platelet", "red", "white"]
    assert set(result.initialized) == {p for p in arrays if p.startswith("class_head/predict/")}
    assert loaded.arrays["class_head/predict/pointwise/bias"].shape == (27,)
    np.testing.assert_allclose(loaded.arrays["class_head/predict/pointwise/bias"], -np.log(99), rtol=1e-6)
    for path, array in arrays.items():
        if path not in result.initialized:
            np.testing.assert_array_equal(loaded.arrays[path], array)


@pytest.mark.parametrize(("folder", "is_advprop"), [("my_ap.v2/given", False), ("advprop", True)])
def test_only_the_nearest_folder_tells_advprop(folder, is_advprop, arrays, stale, tmp_path):
    (tmp_path / folder).mkdir(parents=True)
    path = _effdet_safetensors(tmp_path / folder, arrays, stale)
    importing.import_weights(path, output=tmp_path / "ours.safetensors")
    assert (weights.load(tmp_path / "ours.safetensors").model.padding == "black") == is_advprop


def test_as_many_other_classes_begin_afresh_too(arrays, stale, tmp_path):
    """90 classes that are not COCO's must not get the outputs of COCO's."""
    path = _effdet_safetensors(tmp_path, arrays, stale)
    rows = [{"id": number, "name": f"kind {number}"} for number in range(90, 0, -1)]
    (tmp_path / "classes.json").write_text(json.dumps({"categories": rows}))
    options = {"output": tmp_path / "ours.safetensors", "reset_classes": True}
    with pytest.raises(UserError, match="`classes` is not set"):
        importing.import_weights(path, **options)
    importing.import_weights(path, **options, classes=tmp_path / "classes.json")
    loaded = weights.load(options["output"])
    np.testing.assert_allclose(loaded.arrays["class_head/predict/pointwise/bias"], -np.log(99), rtol=1e-6)
    assert [category.id for category in loaded.categories] == list(range(1, 91))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        pytest.param("weights/efficientdet-d6.h5", "efficientdet-d6", id="name of the file"),
        pytest.param("tf_efficientdet_d7_53-6d1d7a95/model.h5", "efficientdet-d7", id="name of its folder"),
        pytest.param("fred7/model.h5", None, id="a name that ends so"),
        pytest.param("d7/weights/model.h5", None, id="a folder further up"),
        pytest.param("d7x/model.h5", None, id="another model"),
        pytest.param("d6/d7.h5", None, id="both"),
    ],
)
def test_d6_and_d7_are_told_apart_by_their_name_alone(place, expected, tmp_path):
    config = presets.MODELS["d6"]
    shapes = variables.variable_shapes(config)
    described = {
        source.name: tensors.Tensor(key=source.name, shape=shapes[path], dtype="float32", read=lambda: None)
        for path, source in names.variable_sources(config, "automl").items()
    }
    checkpoint = tensors.Checkpoint(
        path=tmp_path / place, format="", naming="automl", tensors=described, averages={}, set_aside={}
    )
    assert importing.recognize(checkpoint, any_twin=True).feature_channels == config.feature_channels
    if expected is None:
        with pytest.raises(UserError, match="may be d6 or d7; set `--model`"):
            importing.recognize(checkpoint)
    else:
        assert importing.recognize(checkpoint).name == expected


def test_lite3_and_lite3x_are_told_apart_by_their_channels(tmp_path):
    for name in ("lite3", "lite3x"):
        made = EfficientDet(presets.MODELS[name])
        sources = names.variable_sources(presets.MODELS[name], "automl")
        named = {sources[weights.variable_name(v)].name: v.numpy() for v in made.weights}
        little_checkpoints.write_hdf5(tmp_path / f"{name[-1]}.h5", named)
        result = importing.import_weights(tmp_path / f"{name[-1]}.h5", output=tmp_path / f"{name}.safetensors")
        assert result.model == f"efficientdet-{name}"


def test_the_model_of_the_import_answers_as_the_original(model, arrays, stale, tmp_path, rng):
    for variable in model.weights:
        variable.assign(arrays[weights.variable_name(variable)] * 0.1)
    scaled = {weights.variable_name(v): v.numpy() for v in model.weights}
    importing.import_weights(_effdet_legacy(tmp_path, scaled, stale), output=tmp_path / "ours.safetensors")
    loaded = weights.load(tmp_path / "ours.safetensors")
    other = EfficientDet(loaded.model)
    weights.assign(other, loaded)
    images = {"images": rng.integers(0, 256, (1, 128, 128, 3), np.uint8)}
    for name, value in model(images).items():
        np.testing.assert_array_equal(other(images)[name], value)


def test_no_pytorch_is_imported(arrays, stale, tmp_path):
    """In a process of its own: where PyTorch is installed, another test may have imported it."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from efficientdet.checkpoints import importing\n"
        "importing.import_weights(Path(sys.argv[1]), output=Path(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules"
    )
    words = [_effdet_zip(tmp_path, arrays, stale), tmp_path / "ours.safetensors"]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)
