"""The verb `evaluate` on records: with weights, with detections from a file, and where there is no truth."""

import dataclasses
import json

import little_datasets
import little_detections
import numpy as np
import pytest
from PIL import Image

from efficientdet import cli
from efficientdet.data import conversion, synthetic
from efficientdet.errors import UserError
from efficientdet.evaluation import measuring
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.structures import Category


def _write_weights(path, config, categories, bias=-1.0):
    """Writes weights that find something: random, with a class bias that lets many anchors through."""
    model = EfficientDet(dataclasses.replace(config, num_classes=len(categories)))
    rng = np.random.default_rng(0)
    arrays = {weights.variable_name(variable): variable.numpy() for variable in model.weights}
    for name, values in arrays.items():
        if "predict" in name and name.endswith("kernel"):
            arrays[name] = rng.normal(0, 0.5, values.shape).astype(np.float32)
    name = "class_head/predict/pointwise/bias"
    arrays[name] = np.full_like(arrays[name], bias)
    weights.save(path, arrays, model.config, categories)
    return path


@pytest.fixture(scope="module")
def weights_file(tiny, tmp_path_factory):
    return _write_weights(tmp_path_factory.mktemp("weights") / "six.safetensors", tiny, synthetic.CATEGORIES)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "images"
    synthetic.write_coco_folder(folder, {"train": 1, "val": 5}, (48, 64), seed=0)
    return folder


@pytest.fixture(scope="module")
def converted(images):
    conversion.convert("coco", images, output=images.parent / "records", num_workers=1)
    return images.parent / "records"


@pytest.fixture(scope="module")
def untold(images):
    """The validation images as COCO gives those for testing: without annotations."""
    document = _document(images)
    del document["annotations"]
    (images / "image_info_test-dev.json").write_text(json.dumps(document))
    files = (("test-dev", "image_info_test-dev.json", "val"),)
    output = images.parent / "test-dev"
    result = conversion.convert("coco", images, output=output, files=files, num_workers=1)
    assert (result.splits["test-dev"].num_examples, result.splits["test-dev"].num_boxes) == (5, 0)
    return output


def _numbers(result):
    return [-1 if value is None else value for value in result.metrics.values()]


@pytest.fixture(scope="module")
def evaluated(weights_file, converted):
    """What `evaluate` returns, and the folder that it writes."""
    output = converted.parent / "evaluated"
    return measuring.evaluate(weights_file, data=str(converted), output=output), output


def _document(images):
    return json.loads((images / "annotations" / "instances_val.json").read_text())


def test_detections_that_evaluate_wrote_count_as_pycocotools_counts_them(evaluated, converted, images):
    result, folder = evaluated
    read = measuring.evaluate(folder / "detections.json", data=str(converted))
    stats, _, _ = little_detections.count(_document(images), str(folder / "detections.json"))
    np.testing.assert_allclose(_numbers(read), stats, rtol=0, atol=2**-52)
    assert read.metrics["ARmax100"] > 0, "random weights hit something"
    assert json.loads((folder / "metrics.json").read_text()) == result.to_dict()
    assert read.num_boxes == result.num_boxes == len(_document(images)["annotations"])


def test_the_written_detections_give_the_written_metrics_to_the_last_digit(evaluated, converted, tmp_path, capsys):
    _, folder = evaluated
    words = ["evaluate", str(folder / "detections.json"), "--data", str(converted), "--output", str(tmp_path)]
    assert cli.main([*words, "--json"]) == 0
    written = json.loads((folder / "metrics.json").read_text())
    assert written["metrics"]["AP"] > 0
    assert written["intervals"]["AP"][0] < written["intervals"]["AP"][1]
    assert json.loads(capsys.readouterr().out) == written
    assert (tmp_path / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()


def test_images_full_of_confident_boxes_are_named_and_so_is_a_high_loss(tiny, converted, tmp_path, capsys, evaluated):
    """A run whose class head is sure of everything, and whose last losses are far apart."""
    capsys.readouterr()
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    _write_weights(run / "weights" / "best.safetensors", tiny, synthetic.CATEGORIES, bias=8.0)
    lines = [{"kind": kind, "values": {"loss": loss}} for kind, loss in (("train", 0.5), ("validation", 27.0))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measuring.evaluate(run, data=str(converted))
    said = capsys.readouterr().err
    assert "warning: 5 of 5 images have far more boxes with a score of at least 0.9 than objects: " in said
    assert "000001.jpg (" in said
    assert "warning: the validation loss, 27, is 54 times the training loss, 0.5: activations explode" in said


def test_detections_of_any_detector_count_as_pycocotools_counts_them(tmp_path):
    """Through conversion and records, where boxes are float32 fractions: crowds, subpixel boxes, ties and all."""
    truth, found = little_detections.difficult(0)
    ids = [int(number) for number in np.random.default_rng(0).permutation(10**6)[: len(truth)]]
    document = little_detections.coco_document(ids, truth, little_detections.CATEGORIES)
    source = little_datasets.write_coco(tmp_path / "source", document)
    side = little_detections.SIDE
    for image in document["images"]:
        Image.new("L", (side, side)).save(source / "images" / image["file_name"])
    conversion.convert("coco", source, output=tmp_path / "records", num_workers=1, val_fraction=0)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(little_detections.coco_results(ids, found, little_detections.CATEGORIES)))
    result = measuring.evaluate(path, data=str(tmp_path / "records"), split="train", output=tmp_path / "out")
    stats, _, _ = little_detections.count(document, str(path))
    np.testing.assert_allclose(_numbers(result), stats, rtol=0, atol=2**-52)
    assert result.metrics["AP"] > 0.02
    assert result.num_images == len(truth)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result.to_dict()


def test_the_first_images_alone_can_be_counted(evaluated, converted, images, tmp_path):
    found = json.loads((evaluated[1] / "detections.json").read_text())
    path = tmp_path / "found.json"
    path.write_text(json.dumps([row for row in found if row["image_id"] <= 2]))
    read = measuring.evaluate(path, data=str(converted), max_images=2)
    document = _document(images)
    document["images"] = document["images"][:2]
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] <= 2]
    stats, _, _ = little_detections.count(document, str(path))
    np.testing.assert_allclose(_numbers(read), stats, rtol=0, atol=2**-52)
    with pytest.raises(UserError, match="`image_id` 3, but the data have no such image"):
        measuring.evaluate(evaluated[1] / "detections.json", data=str(converted), max_images=2)
    with pytest.raises(UserError, match="`max_images` is -1"):
        measuring.evaluate(path, data=str(converted), max_images=-1)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["{}", "{}/test-dev-*.tfrecord"])
def test_images_without_truth_give_detections_and_no_metrics(
    weights_file, untold, evaluated, tmp_path, capsys, data, monkeypatch
):
    """Records of others have no class table without a box; then all classes of the model are written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = "detections_test-dev2017_tiny_results.json"
    words = ["evaluate", str(weights_file), "--data", data.format(untold), "--split", "test-dev"]
    assert cli.main([*words, "--output", str(tmp_path), "--results-name", name]) == 0
    assert capsys.readouterr().out.splitlines() == ["The 5 images have no ground truth boxes, so there are no metrics."]
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [name, "metrics.json"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["metrics"].values()) == {None}
    assert (metrics["num_images"], metrics["num_boxes"]) == (5, 0)
    found = json.loads((tmp_path / name).read_text())
    assert found == json.loads((evaluated[1] / "detections.json").read_text()), "the same images, with truth"
    assert {row["image_id"] for row in found} == {1, 2, 3, 4, 5}
    for row in found:
        assert list(row) == ["image_id", "category_id", "bbox", "score"]
        assert len(row["bbox"]) == 4


def test_images_without_truth_are_for_output_only(weights_file, untold):
    with pytest.raises(UserError, match=r"but no boxes.* with an `output`"):
        measuring.evaluate(weights_file, data=str(untold), split="test-dev")
    with pytest.raises(UserError, match="but no boxes"):
        measuring.evaluate("found.json", data=str(untold), split="test-dev")


@pytest.mark.parametrize("name", ["metrics.json", "found.txt", "../found.json", "", "a/b.json"])
def test_the_results_have_a_name_of_their_own(weights_file, converted, tmp_path, name):
    with pytest.raises(UserError, match=f"`results_name` is `{name}`; expected"):
        measuring.evaluate(weights_file, data=str(converted), output=tmp_path, results_name=name)
    with pytest.raises(UserError, match="nothing is written without `output`"):
        measuring.evaluate(weights_file, data=str(converted), results_name="found.json")


@pytest.mark.slow
def test_a_model_with_90_outputs_is_counted_on_the_classes_of_the_dataset(tiny, converted, images, tmp_path):
    named = {category.id: category for category in synthetic.CATEGORIES}
    outputs = tuple(named.get(number, Category(id=number, name=f"unused {number}")) for number in range(1, 91))
    path = _write_weights(tmp_path / "ninety.safetensors", tiny, outputs)
    result = measuring.evaluate(path, data=str(converted), output=tmp_path)
    assert list(result.per_class) == [category.name for category in synthetic.CATEGORIES]
    found = json.loads((tmp_path / "detections.json").read_text())
    assert found
    assert {row["category_id"] for row in found} <= set(named)
    read = measuring.evaluate(tmp_path / "detections.json", data=str(converted))
    stats, _, _ = little_detections.count(_document(images), found)
    np.testing.assert_allclose(_numbers(read), stats, rtol=0, atol=2**-52)


def test_the_command_line_tells_detections_from_weights_by_their_suffix(converted, tmp_path, capsys):
    path = tmp_path / "found.json"
    path.write_text("[]")
    data = str(converted)
    for words in (
        ["evaluate", str(path), "--data", data],
        ["evaluate", "--data", data, str(path)],
        ["evaluate", f"--data={data}", str(path)],
    ):
        assert cli.main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["AP"] == 0
    path.write_text("[{}]")
    assert cli.main(["evaluate", str(path), "--data", str(converted)]) == 1
    assert "found.json`: detection 0 has no `image_id`" in capsys.readouterr().err
    assert cli.main(["evaluate", str(path), "--data", str(converted), "--precision", "tf32"]) == 2
    assert f"`precision` is tf32, but `{path}` contains detections, so no model runs." in capsys.readouterr().err
    options = ["--data", str(converted), "--output", str(tmp_path / "out"), "--results-name", "found.json"]
    assert cli.main(["evaluate", str(tmp_path / "no.safetensors"), *options]) == 1
    assert "no.safetensors" in capsys.readouterr().err
