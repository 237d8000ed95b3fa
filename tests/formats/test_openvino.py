"""OpenVINO answers what Keras answers."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from efficientdet.config import PostprocessConfig
from efficientdet.errors import UserError
from efficientdet.exporters import exports
from efficientdet.formats import loading, openvino, openvino_cache, openvino_runtime
from efficientdet.formats.keras import KerasRuntime
from efficientdet.inference import detector
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.storage import web
from efficientdet.structures import Category

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")

_CATEGORIES = (Category(id=5, name="cat"), Category(id=9, name="dog"), Category(id=11, name="cow"))


@pytest.fixture(scope="module")
def weights_file(tiny, tmp_path_factory):
    """Weights whose predictions differ from place to place."""
    model = EfficientDet(tiny)
    rng = np.random.default_rng(0)
    arrays = {weights.variable_name(variable): variable.numpy() for variable in model.weights}
    for name, values in arrays.items():
        if "predict" in name and name.endswith("kernel"):
            arrays[name] = rng.normal(0, 0.5, values.shape).astype(np.float32)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(path, arrays, tiny, _CATEGORIES, PostprocessConfig(max_detections=20))
    return path


def _batch(rng, image_size, count):
    """Draws images of which some do not fill the input."""
    images = rng.integers(0, 256, (count, *image_size, 3), dtype=np.uint8)
    valid_size = np.array([(image_size[0] - 7 * i, image_size[1] - 5 * i) for i in range(count)], np.int32)
    for image, (height, width) in zip(images, valid_size, strict=True):
        image[height:] = image[:, width:] = 0
    return images, valid_size


@pytest.mark.parametrize(
    ("image_size", "count"),
    [
        pytest.param((64, 96), 1, id="as trained"),
        pytest.param((64, 96), 3, id="a batch"),
        pytest.param((72, 200), 2, id="a size that most levels do not divide"),
    ],
)
def test_openvino_finds_what_keras_finds(weights_file, rng, image_size, count):
    ours = openvino_runtime.OpenVinoRuntime(weights_file, image_size=image_size)
    keras = KerasRuntime(weights_file, image_size=image_size)
    for name in ("categories", "image_size", "resize"):
        assert getattr(ours, name) == getattr(keras, name)
    batch = _batch(rng, image_size, count)
    found, expected = ours.detect(*batch), keras.detect(*batch)
    assert found["num_detections"].min() == 20
    np.testing.assert_array_equal(found["num_detections"], expected["num_detections"])
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    # Rounding of float32 in another order of sums.
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=2e-3)


def test_batch_sizes_may_change(weights_file, rng):
    runtime = openvino_runtime.OpenVinoRuntime(weights_file)
    images, valid_size = _batch(rng, runtime.image_size, 2)
    together = runtime.detect(images, valid_size)
    for i in range(2):
        alone = runtime.detect(images[i : i + 1], valid_size[i : i + 1])
        np.testing.assert_array_equal(alone["labels"][0], together["labels"][i])
        np.testing.assert_allclose(alone["scores"][0], together["scores"][i], atol=1e-6)


def test_an_export_answers_as_its_weights_and_remembers_what_belongs_to_them(weights_file, rng, tmp_path):
    result = exports.export(weights_file, format="openvino", output=tmp_path / "export", image_size=(96, 64))
    assert result.agreement["score_difference"] < 1e-4
    exported = loading.load_runtime(tmp_path / "export" / "model.xml")
    assert isinstance(exported, openvino_runtime.OpenVinoRuntime)
    assert (exported.categories, exported.image_size) == (_CATEGORIES, (96, 64))
    batch = _batch(rng, (96, 64), 1)
    found = exported.detect(*batch)
    assert found["scores"].shape == (1, 20)
    expected = KerasRuntime(weights_file, image_size=(96, 64)).detect(*batch)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)


def test_weights_are_converted_once(weights_file, monkeypatch):
    first = openvino_cache.find_converted(weights_file)
    assert first.is_relative_to(web.cache_dir())
    monkeypatch.setattr(openvino, "convert", None)
    assert openvino_cache.find_converted(weights_file) == first


def test_the_cache_keeps_the_newest_graphs(tmp_path):
    for number in range(18):
        (tmp_path / str(number)).mkdir()
        graph = tmp_path / str(number) / "model.xml"
        graph.touch()
        os.utime(graph, (number, number))
    openvino_cache._forget_oldest(tmp_path)
    assert sorted(int(folder.name) for folder in tmp_path.iterdir()) == list(range(2, 18))


def test_other_weights_are_converted_again(weights_file, tmp_path):
    loaded = weights.load(weights_file)
    arrays = dict(loaded.arrays) | {"class_head/predict/pointwise/bias": np.full(27, -1.0, np.float32)}
    weights.save(tmp_path / "other.safetensors", arrays, loaded.model, _CATEGORIES)
    first, second = (openvino_cache.find_converted(path) for path in (weights_file, tmp_path / "other.safetensors"))
    assert first != second


def _answer(folder, rng):
    images, valid_size = _batch(rng, (64, 96), 1)
    return openvino_runtime.OpenVinoRuntime(folder).detect(images, valid_size)["scores"]


def test_what_was_compiled_is_kept_and_made_again_where_it_is_damaged(weights_file, tmp_path, monkeypatch):
    folder = openvino_cache.find_converted(weights_file)
    monkeypatch.setattr(web, "cache_dir", lambda: tmp_path)
    first = _answer(folder, np.random.default_rng(0))
    (kept,) = tmp_path.glob("openvino-compiled/*/*.blob")
    written = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(_answer(folder, np.random.default_rng(0)), first)
    assert kept.stat().st_mtime_ns == written
    kept.chmod(0o600)
    kept.write_bytes(kept.read_bytes()[:1000])
    np.testing.assert_array_equal(_answer(folder, np.random.default_rng(0)), first)


def test_a_cache_that_cannot_be_written_keeps_nothing(weights_file, tmp_path, monkeypatch):
    folder = openvino_cache.find_converted(weights_file)
    (tmp_path / "file").touch()
    monkeypatch.setattr(web, "cache_dir", lambda: tmp_path / "file")
    assert _answer(folder, np.random.default_rng(0)).size


def test_the_detector_takes_openvino_where_it_is_installed(weights_file, rng):
    image = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    (by_default,) = detector.Detector(weights_file, score_threshold=0.05).detect([image])
    (by_keras,) = detector.Detector(weights_file, score_threshold=0.05, runtime="keras").detect([image])
    assert isinstance(loading.load_runtime(weights_file), openvino_runtime.OpenVinoRuntime)
    assert isinstance(loading.load_runtime(weights_file, runtime="keras"), KerasRuntime)
    np.testing.assert_array_equal(by_default.labels, by_keras.labels)
    np.testing.assert_allclose(by_default.boxes, by_keras.boxes, atol=2e-3)


def test_without_openvino_keras_runs_and_a_wish_for_openvino_is_one_line(weights_file, monkeypatch):
    find_spec = loading.importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name)
    )
    assert isinstance(loading.load_runtime(weights_file), KerasRuntime)
    with pytest.raises(UserError, match=r"not installed; run `pip install 'efficientdet-keras\[openvino\]'`"):
        loading.load_runtime(weights_file, runtime="openvino")


def test_what_is_no_export_is_refused(weights_file, tmp_path):
    with pytest.raises(UserError, match=r"missing\.xml` does not exist"):
        openvino_runtime.OpenVinoRuntime(tmp_path / "missing.xml")
    with pytest.raises(UserError, match=r"`image_size` is \(64, 64\), but"):
        openvino_runtime.OpenVinoRuntime(openvino_cache.find_converted(weights_file), image_size=(64, 64))
    with pytest.raises(UserError, match="`image_size` is 16 x 64"):
        openvino_runtime.OpenVinoRuntime(weights_file, image_size=(16, 64))


def test_a_precision_without_hardware_is_said(weights_file, monkeypatch):
    runtime = openvino_runtime.OpenVinoRuntime(weights_file)
    has_bfloat16 = "BF16" in runtime._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if has_bfloat16:
        pytest.skip("this processor computes in bfloat16")
    with pytest.warns(UserWarning, match="mixed_bfloat16, which this CPU does not support"):
        openvino_runtime.OpenVinoRuntime(weights_file, precision="mixed_bfloat16")


@pytest.mark.parametrize("answer", ["raw", "detections"])
def test_arithmetic_is_float32_unless_asked_otherwise(weights_file, rng, tmp_path, answer):
    """OpenVINO itself chooses bfloat16 where the processor has it."""
    exports.export(weights_file, format="openvino", answer=answer, output=tmp_path / "export")
    runtime = openvino_runtime.OpenVinoRuntime(tmp_path / "export")
    runtime.detect(*_batch(rng, (64, 96), 1))
    runtime.detect(*_batch(rng, (64, 96), 3))
    hints = [one.get_property("INFERENCE_PRECISION_HINT").get_type_name() for one in runtime._compiled.values()]
    assert hints == ["f32", "f32"]


def test_nothing_is_reported_to_the_makers_of_openvino(weights_file):
    openvino_runtime.OpenVinoRuntime(weights_file)
    assert sys.modules["openvino_telemetry"] is None


def test_a_model_with_other_pixels_keeps_its_own(weights_file, rng, tmp_path):
    """Padding, pixel range and fusion are part of the graph."""
    loaded = weights.load(weights_file)
    config = dataclasses.replace(loaded.model, padding="black", normalize_twice=True, resize="legacy")
    weights.save(tmp_path / "w.safetensors", loaded.arrays, config, _CATEGORIES)
    ours, keras = openvino_runtime.OpenVinoRuntime(tmp_path / "w.safetensors"), KerasRuntime(tmp_path / "w.safetensors")
    assert ours.resize == "legacy"
    batch = _batch(rng, (64, 96), 2)
    np.testing.assert_allclose(ours.detect(*batch)["scores"], keras.detect(*batch)["scores"], atol=1e-5)


_RELEASE_IN_A_THREAD = """
import gc, os, signal, threading
import numpy as np
from efficientdet.formats import openvino as runtime
core = runtime.find_core()
import openvino
from openvino import opset13
source = opset13.parameter([1, 4], np.float32)
held = [core.compile_model(openvino.Model([opset13.relu(source)], [source], "relu"), "CPU")]
del core
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("came"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the fault is Linux's")
def test_a_signal_is_survived_after_another_thread_let_a_network_go():
    """With a core of its own each, the process is gone: status -11."""
    done = subprocess.run([sys.executable, "-c", _RELEASE_IN_A_THREAD], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "came\n"), done.stderr
