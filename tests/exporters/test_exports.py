"""Every format answers what Keras answers, or is not written."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientdet import cli
from efficientdet.benchmarks import drawn_weights, inference
from efficientdet.config import DataConfig, ExperimentConfig, OptimizerConfig, PostprocessConfig, TrainingConfig
from efficientdet.data import conversion, synthetic
from efficientdet.errors import UserError
from efficientdet.evaluation import measuring
from efficientdet.exporters import exports
from efficientdet.formats import calibration, loading
from efficientdet.formats import manifest as manifests
from efficientdet.formats import onnx as onnx_exporter
from efficientdet.formats.keras import KerasRuntime
from efficientdet.formats.manifest import Manifest
from efficientdet.inference import detector
from efficientdet.model import weights
from efficientdet.training.run import train

_PROGRAMS = {"saved_model": "tensorflow", "onnx": "onnxruntime", "litert": "ai_edge_litert", "openvino": "openvino"}
_OPTIONS = {
    "saved_model": {"letterbox": "included"},
    "onnx": {"answer": "detections"},
    "litert": {"precision": "float16"},
    "openvino": {"batch_size": 2},
}

each_format = pytest.mark.parametrize(
    "format",
    [
        pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(program), reason="not installed"))
        for name, program in _PROGRAMS.items()
    ],
)


@pytest.fixture(scope="module")
def weights_file(tiny, tmp_path_factory):
    """Weights whose activations do not fade, so that every tensor counts, and that are sure of a few boxes."""
    config = dataclasses.replace(tiny, num_classes=6)
    arrays = drawn_weights.random_weights(config)
    bias = "class_head/predict/pointwise/bias"
    arrays[bias] = np.full_like(arrays[bias], -3.0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(path, arrays, config, synthetic.CATEGORIES, PostprocessConfig(max_detections=20))
    return path


@pytest.fixture(scope="module")
def made(weights_file):
    """Makes each export once: format -> what `export` returned."""
    found = {}

    def make(format):
        if format not in found:
            output = weights_file.parent / "exports" / format
            found[format] = exports.export(weights_file, format=format, output=output, **_OPTIONS[format])
        return found[format]

    return make


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    synthetic.write_coco_folder(folder / "images", {"train": 3, "val": 4}, (64, 96), seed=0)
    conversion.convert("coco", folder / "images", output=folder / "records", num_workers=1)
    return str(folder / "records")


def _batch(rng, image_size, count):
    """Draws images of which some do not fill the input."""
    images = rng.integers(0, 256, (count, *image_size, 3), dtype=np.uint8)
    valid_size = np.array([(image_size[0] - 7 * i, image_size[1] - 5 * i) for i in range(count)], np.int32)
    for image, (height, width) in zip(images, valid_size, strict=True):
        image[height:] = image[:, width:] = 0
    return images, valid_size


@each_format
def test_an_export_finds_what_keras_finds(made, weights_file, rng, format):
    export = made(format)
    assert export.agreement["detections"] > 20
    assert export.precision == "float16" or export.agreement["apart"] == 0
    tolerance = 0.02 if export.precision == "float16" else 1e-3
    ours = loading.load_runtime(export.path)
    keras = KerasRuntime(weights_file)
    assert (ours.categories, ours.image_size, ours.resize) == (keras.categories, keras.image_size, keras.resize)
    batch = _batch(rng, ours.image_size, 3)  # of more images than a static batch has
    found, expected = ours.detect(*batch), keras.detect(*batch)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=tolerance)
    if export.precision == "float32":
        np.testing.assert_array_equal(found["num_detections"], expected["num_detections"])
        np.testing.assert_array_equal(found["labels"], expected["labels"])
        np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.5)
    if export.answer == "raw":
        raw, expected_raw = ours.predict(*batch), keras.predict(*batch)
        largest = np.abs(expected_raw["class_logits"]).max() if export.precision == "float16" else 1.0
        np.testing.assert_allclose(raw["class_logits"], expected_raw["class_logits"], atol=tolerance * largest)
    else:
        with pytest.raises(UserError, match="returns detections, not raw predictions"):
            ours.predict(*batch)


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")
@pytest.mark.parametrize("batch_size", [0, 1, 3])
def test_openvino_s_own_suppression_finds_what_keras_finds_again_and_again(weights_file, rng, tmp_path, batch_size):
    """OpenVINO 2026.4.1 takes numbers from other memory where a batch of one is gathered from."""
    output = tmp_path / "export"
    made = exports.export(weights_file, format="openvino", answer="detections", output=output, batch_size=batch_size)
    assert (made.agreement["apart"], made.agreement["extra"]) == (0, 0)
    ours, keras = loading.load_runtime(made.path), KerasRuntime(weights_file)
    batch = _batch(rng, ours.image_size, 3)
    expected = keras.detect(*batch)
    for _ in range(5):
        found = ours.detect(*batch)
        np.testing.assert_array_equal(found["labels"], expected["labels"])
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-3)
        np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.5)


@each_format
def test_detector_takes_the_folder_or_the_graph_in_it(made, weights_file, rng, format):
    export = made(format)
    photo = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    (expected,) = detector.Detector(weights_file, score_threshold=0.2, runtime="keras").detect([photo])
    graph = f"{export.path}/{manifests.GRAPHS[format]}"
    (found,) = detector.Detector(graph, score_threshold=0.2).detect([photo])
    assert len(found.scores) == len(expected.scores) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=0.02 if export.precision == "float16" else 1e-3)


def test_evaluate_takes_an_export(made, weights_file, records):
    found = measuring.evaluate(made("openvino").path, data=records)
    expected = measuring.evaluate(weights_file, data=records)
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-3)


def test_the_benchmark_of_inference_takes_an_export(made):
    result = inference.benchmark_inference(made("openvino").path, rounds=1, turn_seconds=0.01)
    assert {row["by"] for row in result.rows if row["part"] == "network"} == {"openvino"}


def _zero_onnx(folder):
    import onnx

    path = folder / "model.onnx"
    model = onnx.load_model(path)
    kernels = [value for value in model.graph.initializer if len(value.dims) == 4]
    kernels[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros(kernels[0].dims, np.float32), kernels[0].name))
    onnx.save_model(model, path)


def _zero_openvino(folder):
    import openvino

    constants = [
        node
        for node in openvino.Core().read_model(folder / "model.xml").get_ops()
        if node.get_type_name() == "Constant" and len(node.output(0).shape) == 4
    ]
    values = max((np.array(node.data) for node in constants), key=np.size).tobytes()
    content = (folder / "model.bin").read_bytes()
    place = content.index(values)
    (folder / "model.bin").write_bytes(content[:place] + bytes(len(values)) + content[place + len(values) :])


@pytest.mark.parametrize(("format", "zero"), [("onnx", _zero_onnx), ("openvino", _zero_openvino)])
def test_an_export_with_one_tensor_zeroed_is_refused(made, weights_file, tmp_path, capsys, format, zero):
    folder = tmp_path / "export"
    shutil.copytree(made(format).path, folder)
    _, manifest = manifests.read(folder)
    assert cli.main(["export", str(weights_file), "--verify", str(folder)]) == 0
    zero(folder)
    assert cli.main(["export", str(weights_file), "--verify", str(folder)]) == 1
    assert "was damaged or changed" in capsys.readouterr().err
    manifests.write(folder, manifest)  # and whoever changes a file may change its sum
    assert cli.main(["export", str(weights_file), "--verify", str(folder)]) == 1
    assert f"The {format} export of `{weights_file}` disagrees with Keras" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`format` is missing; choose from saved_model, onnx, litert, openvino."),
        (["--verify", "there", "--format", "onnx"], "`format` is onnx, but `verify` only compares an existing"),
        (["--verify", "there", "--calibration-images", "3"], "`calibration_images` is 3, but `verify` only compares"),
    ],
)
def test_an_export_is_either_made_or_verified(words, message, capsys):
    assert cli.main(["export", "no.safetensors", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_export_that_answers_otherwise_is_not_written(made, weights_file, tmp_path, monkeypatch):
    """A converter with a fault, played by one that gives what another export has, without a tensor."""
    source = Path(made("onnx").path)

    def write(folder, *_):
        shutil.copy(source / "model.onnx", folder)
        _zero_onnx(folder)

    monkeypatch.setattr(exports, "_write", write)
    with pytest.raises(UserError, match="disagrees with Keras: "):
        exports.export(weights_file, format="onnx", answer="detections", output=tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_tensorflow_alone_runs_the_saved_model_on_files_of_images(made, weights_file, rng, tmp_path):
    """As TensorFlow Serving does: `serving_default`, nothing of ours."""
    import tensorflow as tf

    signatures = tf.saved_model.load(made("saved_model").path).signatures
    photos = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((90, 70, 3), (40, 200, 3))]
    files = []
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
        files.append((tmp_path / f"{number}.png").read_bytes())
    found = signatures["serving_default"](encoded=tf.constant(files))
    assert {name: value.dtype.name for name, value in found.items()} == {
        "boxes": "float32",
        "labels": "int32",
        "scores": "float32",
        "num_detections": "int32",
    }
    expected = detector.Detector(weights_file, score_threshold=0.0, runtime="keras").detect(photos)
    for row, one in enumerate(expected):
        count = int(found["num_detections"][row])
        np.testing.assert_allclose(found["scores"][row, :count], one.scores, atol=1e-4)
        np.testing.assert_allclose(found["boxes"][row, :count], one.boxes, atol=0.02)
        alone = signatures["images"](images=tf.constant(photos[row][None]))
        np.testing.assert_allclose(alone["scores"][0], found["scores"][row], atol=1e-5)


@pytest.fixture(scope="module")
def learnt(tiny, tmp_path_factory):
    """A detector that has memorized eight images, and their records: random weights have no AP to lose."""
    root = tmp_path_factory.mktemp("learnt")
    synthetic.write_coco_folder(root / "images", {"train": 8}, (64, 96), seed=0)
    conversion.convert("coco", root / "images", output=root / "records", num_workers=1)
    model = dataclasses.replace(tiny, feature_channels=16, anchor_scale=3.0, max_level=6, batch_norm_momentum=0.9)
    config = ExperimentConfig(
        run_dir=str(root / "run"),
        model=model,
        data=DataConfig(train=str(root / "records")),
        optimizer=OptimizerConfig(learning_rate=0.1),
        training=TrainingConfig(batch_size=8, epochs=160, evaluate_every=0),
        overfit=8,
    )
    best_ap = train(config).best_ap
    assert best_ap > 0.5  # 0.57 to 0.86 with four seeds
    return root / "run", str(root / "records"), best_ap


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="ONNX Runtime is not installed")
def test_int8_of_a_detector_that_has_learnt_stays_within_its_loss_of_ap(learnt, tmp_path):
    """A fifth of its AP, which is the most that may be allowed: how much this one loses depends on what it has learnt.

    It does not depend on the processor: see the next test. Detectors from four seeds lost 0.03 to 0.10.
    """
    run, records, ap = learnt
    gate = {"data": records, "split": "train"}
    loss = 0.99 * ap / 5
    made = exports.export(
        run, format="onnx", precision="int8", output=tmp_path / "int8", calibration=records, max_ap_loss=loss, **gate
    )
    assert made.agreement["keras_ap"] == pytest.approx(ap, abs=0.01)
    assert made.agreement["keras_ap"] - made.agreement["ap"] <= loss
    assert b"QuantizeLinear" in (tmp_path / "int8" / "model.onnx").read_bytes()
    assert json.loads((tmp_path / "int8" / "export.json").read_text())["agreement"] == made.agreement
    with pytest.raises(UserError, match=r"onnx in int8 loses too much AP: .* `max_ap_loss` is -1"):
        exports.export(run, verify=tmp_path / "int8", max_ap_loss=-1.0, **gate)
    with pytest.raises(
        UserError, match=r"too low to measure what int8 loses; it must be at least 5 times `max_ap_loss`"
    ):
        exports.export(run, verify=tmp_path / "int8", max_ap_loss=0.25, **gate)


@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="ONNX Runtime is not installed")
def test_int8_is_as_exact_on_this_processor_as_its_graph_is(weights_file, tmp_path):
    """What the kernels for integers add to the error of 8 bits is smaller than that error.

    The graph as it is written, computed in float32, has no integers to overflow. With weights of 8 bits instead of 7,
    processors without VNNI add ten times the error.
    """
    import onnxruntime

    loaded = weights.load(weights_file)
    manifest = Manifest(
        target="onnx",
        precision="int8",
        answer="raw",
        batch_size=0,
        has_letterbox=False,
        model=loaded.model,
        categories=loaded.categories,
        postprocess=loaded.postprocess,
    )
    samples = list(calibration.generated(loaded.model, 8))
    onnx_exporter.write(tmp_path, loaded, manifest, samples)
    as_written = onnxruntime.SessionOptions()
    as_written.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def logits(options):
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
        inputs = [{"images": sample.images, "valid_size": sample.valid_size} for sample in samples]
        return np.concatenate([session.run(["class_logits"], one)[0] for one in inputs])

    keras = KerasRuntime(weights_file)
    exact = np.concatenate([keras.predict(sample.images, sample.valid_size)["class_logits"] for sample in samples])
    written = logits(as_written)
    by_bits, by_kernels = written - exact, logits(onnxruntime.SessionOptions()) - written
    assert np.square(by_kernels).mean() < np.square(by_bits).mean()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("nncf"), reason="NNCF is not installed")
def test_int8_that_loses_more_is_not_written(learnt, tmp_path, monkeypatch):
    """How much it loses depends on what it has learnt; it can never gain a whole."""
    run, records, _ = learnt
    gate = {"data": records, "split": "train", "calibration": records, "max_ap_loss": -1.0}
    verify, has_integers = exports._verify, []

    def look(loaded, keras, folder, *rest):
        has_integers.append("FakeQuantize" in (folder / "model.xml").read_text())
        return verify(loaded, keras, folder, *rest)

    monkeypatch.setattr(exports, "_verify", look)
    with pytest.raises(UserError, match=r"openvino in int8 loses too much AP: 0\.\d+ on .*, 0\.\d+ in Keras;"):
        exports.export(run, format="openvino", precision="int8", output=tmp_path / "int8", **gate)
    assert has_integers == [True]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not importlib.util.find_spec("nncf"), reason="NNCF is not installed")
def test_int8_of_a_detector_that_has_learnt_nothing_is_refused(weights_file, records, tmp_path):
    with pytest.raises(UserError, match=r"`max_ap_loss` is 0\.01, but Keras's AP on .* \(val\) is 0\.00"):
        exports.export(weights_file, format="openvino", precision="int8", output=tmp_path / "int8", data=records)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"format": "coreml"}, "`format` is 'coreml'; choose from saved_model, onnx, litert, openvino"),
        (
            {"format": "saved_model", "precision": "int8"},
            "`precision` is int8; for saved_model, choose from float32, float16",
        ),
        ({"format": "onnx", "precision": "bfloat16"}, "`precision` is bfloat16; for onnx, choose from"),
        (
            {"format": "onnx", "precision": "float16", "answer": "detections"},
            "`answer` is detections, but onnx in float16 supports only raw",
        ),
        (
            {"format": "litert", "letterbox": "included"},
            "`letterbox` is included, which is supported only by a saved_model",
        ),
        ({"format": "litert", "precision": "int8"}, "needs labeled records"),
        ({"format": "litert", "batch_size": -1}, "`batch_size` is -1"),
        ({"format": "saved_model", "image_size": (16, 64)}, "`image_size` is 16 x 64"),
        ({"format": "saved_model", "images": "missing"}, "`images` is `missing`, which is not a folder"),
    ],
)
def test_impossible_wishes_are_one_line(weights_file, tmp_path, monkeypatch, knobs, words):
    monkeypatch.setattr(exports, "_write", lambda folder, *_: (folder / "saved_model.pb").write_bytes(b""))
    if "images" in knobs:
        knobs = {**knobs, "images": Path(knobs["images"])}
    with pytest.raises(UserError, match=words):
        exports.export(weights_file, output=tmp_path / "export", **knobs)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_else_in_it_is_left_alone(weights_file, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(UserError, match="which contains files that are not an export"):
        exports.export(weights_file, format="saved_model", output=tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "Dear"


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [
        ("onnx", "onnxruntime", "onnx"),
        ("litert", "ai_edge_litert", "litert"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_without_the_program_there_is_one_line(weights_file, tmp_path, monkeypatch, format, package, extra):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(UserError, match=rf"not installed; run `pip install 'efficientdet-keras\[{extra}\]'`"):
        exports.export(weights_file, format=format, output=tmp_path / "export")


@each_format
def test_an_export_keeps_what_it_was_made_for(made, format):
    export = made(format)
    with pytest.raises(UserError, match=r"`image_size` is \(64, 64\), but"):
        loading.load_runtime(export.path, image_size=(64, 64))
    with pytest.raises(UserError, match=f"`runtime` is keras, but .* is an export for {format}"):
        loading.load_runtime(export.path, runtime="keras")
    with pytest.raises(UserError, match="`xla` is on, but"):
        loading.load_runtime(export.path, xla="on")
    if export.answer == "detections":
        with pytest.raises(UserError, match="`postprocess` differs from the settings in the graph"):
            loading.load_runtime(export.path, postprocess=PostprocessConfig(max_detections=3))
    if format != "openvino":
        with pytest.raises(UserError, match="`precision` is mixed_float16, but"):
            loading.load_runtime(export.path, precision="mixed_float16")
