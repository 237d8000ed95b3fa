"""Prediction: raw pictures in, boxes in their own pixels out."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from efficientdet import detector as detectors
from efficientdet.data import images, preprocess
from efficientdet.errors import UserError
from efficientdet.model import weights
from efficientdet.model.efficientdet import EfficientDet
from efficientdet.structures import Category

_CATEGORIES = (Category(id=5, name="cat"), Category(id=9, name="dog"), Category(id=11, name="cow"))


@pytest.fixture(scope="module")
def weights_file(tiny, tmp_path_factory):
    """Weights that find something: random, with a class bias that lets many anchors through."""
    model = EfficientDet(tiny)
    rng = np.random.default_rng(0)
    arrays = {weights.variable_name(variable): variable.numpy() for variable in model.weights}
    for name, values in arrays.items():
        if "predict" in name and name.endswith("kernel"):
            arrays[name] = rng.normal(0, 0.5, values.shape).astype(np.float32)
    arrays["class_head/predict/pointwise/bias"] = np.full(27, -1.0, np.float32)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(path, arrays, tiny, _CATEGORIES)
    return path


@pytest.fixture(scope="module")
def detector(weights_file):
    return detectors.Detector(weights_file, score_threshold=0.2)


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)


def test_boxes_lie_inside_the_picture_best_first(detector, picture):
    (found,) = detector.detect([picture])
    assert found.size == (90, 70)
    assert len(found.boxes) == len(found.labels) == len(found.scores) > 0
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() >= 0.2
    assert found.boxes.min() >= 0
    assert (found.boxes <= [90, 70, 90, 70]).all()


def test_a_picture_twice_as_large_has_boxes_twice_as_large(detector, rng):
    small = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)  # as the input: nothing is resampled
    large = small.repeat(2, axis=0).repeat(2, axis=1)  # halving it gives the same pixels
    first, second = detector.detect([small])[0], detector.detect([large])[0]
    np.testing.assert_allclose(2 * first.boxes, second.boxes, atol=1e-3)


def test_a_batch_finds_what_single_pictures_find(detector, rng):
    pictures = [rng.integers(0, 256, (size, 60, 3), dtype=np.uint8) for size in (40, 80)]
    together = detector.detect(pictures)
    for picture, found in zip(pictures, together, strict=True):
        (alone,) = detector.detect([picture])
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_array_equal(found.labels, alone.labels)


@pytest.mark.parametrize("method", ["legacy", "antialiased"])
def test_a_picture_is_resampled_as_the_weights_remember(weights_file, tiny, rng, tmp_path, method):
    """A picture that fits is not resampled: done beforehand, it gives the same boxes."""
    loaded = weights.load(weights_file)
    path = tmp_path / f"{method}.safetensors"
    weights.save(path, loaded.arrays, dataclasses.replace(tiny, resize=method), _CATEGORIES)
    large = rng.integers(0, 256, (128, 192, 3), dtype=np.uint8)
    (found,) = detectors.Detector(path, score_threshold=0.2).detect([large])
    by_default = detectors.Detector(weights_file, score_threshold=0.2)
    (expected,) = by_default.detect([preprocess.resize(large, tiny.image_size, method)])
    np.testing.assert_allclose(found.boxes, 2 * expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    (other,) = by_default.detect([large])
    assert abs(other.scores[0] - found.scores[0]) > 1e-4


def test_predict_writes_pictures_and_json(weights_file, picture, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(picture).save(folder / "one.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: upright it is 70 high and 90 wide
    Image.fromarray(picture).save(folder / "two.jpg", exif=exif)
    result = detectors.predict(weights_file, (folder,), output=tmp_path / "out", score_threshold=0.2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.jpg", "predictions.json", "two.jpg"]
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written == result.pictures
    first, second = written[str(folder / "one.png")], written[str(folder / "two.jpg")]
    assert (first["height"], first["width"]) == (90, 70)
    assert (second["height"], second["width"]) == (70, 90)
    assert images.read_image(tmp_path / "out" / "two.jpg", "two").shape == (70, 90, 3)
    best = first["detections"][0]
    assert best["class"] in {"cat", "dog", "cow"}
    assert best["category_id"] in {5, 9, 11}
    assert 0 <= best["box"]["x1"] <= best["box"]["x2"] <= 70
    assert 0 <= best["box"]["y1"] <= best["box"]["y2"] <= 90


def test_pictures_of_the_same_name_do_not_replace_each_other(weights_file, picture, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / "x.png")
    detectors.predict(weights_file, (tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"), output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.json", "x-2.jpg", "x.jpg"]


def test_one_broken_picture_stops_before_anything_is_written(weights_file, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(UserError, match=r"bad\.jpg"):
        detectors.predict(weights_file, (tmp_path / "good.png", tmp_path / "bad.jpg"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_thresholds_and_sizes_are_checked(weights_file):
    with pytest.raises(UserError, match="`score_threshold` is 2"):
        detectors.Detector(weights_file, score_threshold=2)
    with pytest.raises(UserError, match="`image_size` is 16 x 64"):
        detectors.Detector(weights_file, image_size=(16, 64))


def test_an_original_is_never_replaced(weights_file, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(UserError, match=r"where `a\.jpg` would be replaced"):
        detectors.predict(weights_file, (tmp_path / "a.jpg",), output=tmp_path)
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
