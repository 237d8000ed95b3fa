"""Prediction: raw images in, boxes in their own pixels out."""

import concurrent.futures
import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientdet.data import preprocess
from efficientdet.errors import UserError
from efficientdet.inference import detector as detectors
from efficientdet.model import weights
from efficientdet.structures import Category

_ROOT = Path(__file__).resolve().parents[2]
_CATEGORIES = (Category(id=5, name="cat"), Category(id=9, name="dog"), Category(id=11, name="cow"))


@pytest.fixture(scope="module")
def detector(finding_weights):
    return detectors.Detector(finding_weights, score_threshold=0.2)


@pytest.fixture
def photo(rng):
    return rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)


def test_boxes_lie_inside_the_image_best_first(detector, photo):
    (found,) = detector.detect([photo])
    assert found.size == (90, 70)
    assert len(found.boxes) == len(found.labels) == len(found.scores) > 0
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() >= 0.2
    assert found.boxes.min() >= 0
    assert (found.boxes <= [90, 70, 90, 70]).all()


def test_an_image_twice_as_large_has_boxes_twice_as_large(detector, rng):
    small = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)  # as the input: nothing is resampled
    large = small.repeat(2, axis=0).repeat(2, axis=1)  # halving it gives the same pixels
    first, second = detector.detect([small])[0], detector.detect([large])[0]
    np.testing.assert_allclose(2 * first.boxes, second.boxes, atol=1e-3)


def test_a_batch_finds_what_single_images_find(detector, rng):
    photos = [rng.integers(0, 256, (size, 60, 3), dtype=np.uint8) for size in (40, 80)]
    together = detector.detect(photos)
    for photo, found in zip(photos, together, strict=True):
        (alone,) = detector.detect([photo])
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_array_equal(found.labels, alone.labels)


@pytest.mark.parametrize("method", ["legacy", "antialiased"])
def test_an_image_is_resampled_as_the_weights_remember(finding_weights, tiny, rng, tmp_path, method):
    """An image that fits is not resampled: done beforehand, it gives the same boxes."""
    loaded = weights.load(finding_weights)
    path = tmp_path / f"{method}.safetensors"
    weights.save(path, loaded.arrays, dataclasses.replace(tiny, resize=method), _CATEGORIES)
    large = rng.integers(0, 256, (128, 192, 3), dtype=np.uint8)
    (found,) = detectors.Detector(path, score_threshold=0.2).detect([large])
    by_default = detectors.Detector(finding_weights, score_threshold=0.2)
    (expected,) = by_default.detect([preprocess.resize(large, tiny.image_size, method)])
    np.testing.assert_allclose(found.boxes, 2 * expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    (other,) = by_default.detect([large])
    assert abs(other.scores[0] - found.scores[0]) > 1e-4


def test_thresholds_and_sizes_are_checked(finding_weights):
    with pytest.raises(UserError, match="`score_threshold` is 2"):
        detectors.Detector(finding_weights, score_threshold=2)
    with pytest.raises(UserError, match="`image_size` is 16 x 64"):
        detectors.Detector(finding_weights, image_size=(16, 64))
    with pytest.raises(UserError, match="`batch_size` is 0"):
        detectors.Detector(finding_weights, batch_size=0)


def _same(found, expected):
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert found.size == expected.size
    return len(expected) > 0


def test_one_image_has_one_answer_however_it_is_given(detector, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    (expected,) = detector.detect([photo])
    for given in (photo, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(photo)):
        assert _same(detector(given), expected)
        assert _same(detector.detect([given, given])[1], expected)
    assert detector([]) == []


def test_files_and_images_of_pillow_are_turned_upright(detector, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise makes it upright
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    expected = detector(np.ascontiguousarray(np.rot90(photo, -1)))
    assert expected.size == (70, 90)
    assert _same(detector(tmp_path / "a.png"), expected)
    with Image.open(tmp_path / "a.png") as opened:
        assert _same(detector(opened), expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), r"`image` is float32\[8, 8, 3\]; expected uint8\[height, width, 3\]"),
        (np.zeros((8, 8), np.uint8), r"`image` is uint8\[8, 8\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "pass several images as a list"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8\[0, 8, 3\]"),
        ([3], "`image` is of type int"),
        ("no.jpg", r"`no\.jpg` is missing"),
    ],
)
def test_what_is_no_image_is_refused(detector, given, said):
    with pytest.raises(UserError, match=said):
        detector(given)


def test_a_damaged_image_of_pillow_is_one_line(detector, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with Image.open(tmp_path / "a.jpg") as opened, pytest.raises(UserError, match=r"a\.jpg` cannot be decoded"):
        detector(opened)


def test_long_lists_go_through_in_batches(finding_weights, rng):
    photos = [rng.integers(0, 256, (40 + size, 60, 3), dtype=np.uint8) for size in range(5)]
    small = detectors.Detector(finding_weights, score_threshold=0.2, batch_size=2)
    sizes = []
    detect = small.runtime.detect
    small.runtime.detect = lambda images, valid_size: (sizes.append(len(images)), detect(images, valid_size))[1]
    asked = iter(photos)
    answers = small.detect_each(asked)
    first = next(answers)
    assert len(list(asked)) == 3, "only the first batch has been read"
    assert _same(first, small(photos[0]))
    sizes.clear()
    assert all(_same(found, small(photo)) for found, photo in zip(small(photos), photos, strict=True))
    assert sizes[:3] == [2, 2, 1]


def test_classes_are_chosen_by_name_or_id(finding_weights, detector, photo):
    everything = detector(photo)
    dogs = detector(photo, classes=["dog"])
    assert set(everything.names) == {"cat", "dog", "cow"}
    assert set(dogs.names) == {"dog"}
    np.testing.assert_array_equal(dogs.scores, everything.scores[everything.labels == 1])
    for classes in ([9], ["9"]):
        assert _same(detector(photo, classes=classes), dogs)
    chosen = detectors.Detector(finding_weights, score_threshold=0.2, classes=("cow", 5))
    assert set(chosen(photo).names) == {"cow", "cat"}
    assert set(chosen(photo, classes=["dog"]).names) == {"dog"}
    unknown = r"`classes` has the unknown class 'god'; choose from cat \(5\), dog \(9\), cow \(11\)"
    with pytest.raises(UserError, match=unknown):
        detector(photo, classes=["god"])
    for classes in ([], "dog"):
        with pytest.raises(UserError, match="expected a list"):
            detector(photo, classes=classes)


def test_a_call_may_have_a_threshold_of_its_own(detector, photo):
    everything = detector(photo)
    threshold = float(np.median(everything.scores))
    best = detector(photo, score_threshold=threshold)
    np.testing.assert_array_equal(best.scores, everything.scores[everything.scores >= threshold])
    assert len(detector(photo, score_threshold=0.0)) > len(everything) > len(best) > 0
    with pytest.raises(UserError, match="`score_threshold` is -1"):
        detector(photo, score_threshold=-1)


def test_a_limit_thresholds_of_classes_and_one_box_an_object(finding_weights, detector, photo):
    everything = detector(photo)
    assert len(detector(photo, max_detections=2)) == 2
    sure = detector(photo, class_thresholds={"dog": 1.0, 11: 0.0})
    assert "dog" not in sure.names
    assert sure.names.count("cow") >= everything.names.count("cow")
    agnostic = detector(photo, class_agnostic=True)
    assert 0 < len(agnostic) < len(everything)
    for place, box in enumerate(agnostic.boxes):
        sides = np.minimum(agnostic.boxes[:place, 2:], box[2:]) - np.maximum(agnostic.boxes[:place, :2], box[:2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        areas = np.prod(agnostic.boxes[:, 2:] - agnostic.boxes[:, :2], axis=1)
        assert (shared < 0.5 * (areas[:place] + areas[place] - shared) + 1e-3).all()
    options = {"class_agnostic": True, "max_detections": 3, "class_thresholds": {"cat": 0.9}}
    made = detectors.Detector(finding_weights, score_threshold=0.2, **options)
    assert _same(made(photo), detector(photo, **options))
    with pytest.raises(UserError, match="`class_thresholds` has the unknown class 'god'"):
        detectors.Detector(finding_weights, class_thresholds={"god": 0.5})


@pytest.mark.parametrize("weights", [None, 3, [Path("a")]])
def test_weights_that_are_no_path_are_refused(weights):
    with pytest.raises(UserError, match=r"`weights` is of type .*; expected the path of a weights file"):
        detectors.Detector(weights)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, r"`image` is None \(`cv2\.imread`"),
        (3, "`image` is of type int; expected a path"),
        ({"a.jpg": 1}, "`image` is of type dict"),
        (b"hello", "`image` is not a supported image"),
        ("ftp://host/a.jpg", "is not a supported URL"),
    ],
)
def test_what_is_neither_an_image_nor_several_is_refused(detector, given, said):
    with pytest.raises(UserError, match=said):
        detector(given)


def test_bytes_and_open_files_can_be_drawn_on_afterwards(detector, photo, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    expected = np.asarray(detector(path).draw())
    with path.open("rb") as file:
        found = detector(file)
    np.testing.assert_array_equal(np.asarray(found.draw()), expected)
    np.testing.assert_array_equal(np.asarray(detector(path.read_bytes()).draw()), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_fork_is_refused_at_once(detector, photo):
    detector(photo)
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            detector(photo)
            said = "found something"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(sending, said.encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(child, 0)
    assert said.startswith(
        f"UserError: This Detector was created in process {os.getpid()} and cannot be used in {child}"
    )


def test_an_image_of_one_tile_has_the_answer_it_has_without(detector, photo):
    for tiles in ((90, 70), (200, 300)):
        found, expected = detector(photo, tiles=tiles), detector(photo)
        assert _same(found, expected)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        assert found.boxes.dtype == np.float32


def test_tiles_are_looked_at_in_their_own_pixels(detector, rng):
    """Two unlike halves, each as large as the network input: what a half alone has is found where that half lies."""
    image = rng.integers(0, 256, (64, 192, 3), dtype=np.uint8)
    found = detector(image, tiles="input", tile_overlap=0)
    for left in (0, 96):
        alone = detector(np.ascontiguousarray(image[:, left : left + 96]))
        moved = alone.boxes + np.array([0, left, 0, left], np.float32)
        inside = moved[(moved[:, 1] > 3) & (moved[:, 3] < 189) & (abs(moved[:, [1, 3]] - 96).min(axis=1) > 3)]
        distances = abs(found.boxes[:, None] - inside[None]).max(axis=-1).min(axis=0)
        assert (distances < 1e-2).mean() > 0.4, "most that was not cut is there; the rest lost to another tile"
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tiles": (16, 64)}, "`tiles` is 16 x 64; both numbers must be at least 32 px"),
        ({"tiles": (64, 64), "tile_overlap": 1.0}, "`tile_overlap` is 1; it must be between 0 and 0.9"),
    ],
)
def test_tiles_that_cannot_work_are_refused(detector, photo, options, said):
    with pytest.raises(UserError, match=said):
        detector(photo, **options)


def _answer_in_threads(weights_file, runtime, most):
    """Asks one detector from eight threads at once, from its first call on, and counts the answers that are right."""
    rng = np.random.default_rng(1)
    photos = [rng.integers(0, 256, (40 + 9 * number, 60, 3), dtype=np.uint8) for number in range(6)]
    shared = detectors.Detector(weights_file, score_threshold=0.2, runtime=runtime)

    def ask(number):
        return shared.detect([photos[(number + place) % 6] for place in range(1 + number % most)])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(48)))
    expected = [shared.detect([photo])[0] for photo in photos]
    return sum(
        all(_same(one, expected[(number + place) % 6]) for place, one in enumerate(found))
        for number, found in enumerate(answers)
    )


@pytest.mark.parametrize(
    "runtime",
    [
        "keras",
        pytest.param(
            "openvino", marks=pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="not installed")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*retracing")
def test_threads_share_a_detector(finding_weights, runtime):
    assert _answer_in_threads(finding_weights, runtime, most=2) == 48


@pytest.mark.slow
def test_threads_share_a_detector_on_jax(finding_weights, quick_jax):
    environment = os.environ | quick_jax | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(_ROOT / "src")}
    words = [sys.executable, str(Path(__file__)), str(finding_weights)]
    asked = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=True)
    assert asked.stdout.split() == ["jax", "48"]


if __name__ == "__main__":
    from efficientdet import backend

    print(backend.choose(), _answer_in_threads(sys.argv[1], "keras", most=1))
