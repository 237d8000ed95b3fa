"""Records to batches: a pure function of (seed, step), nothing dropped, nothing twice."""

import itertools
import typing
from pathlib import Path

import little_datasets
import numpy as np
import pytest

from efficientdet.config import AugmentationConfig, Resize
from efficientdet.data import conversion, pipeline, preprocess, synthetic
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.media import images
from efficientdet.structures import Category

_COUNT = 10


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    synthetic.write_coco_folder(root / "images", {"train": _COUNT, "val": 5}, (48, 64), seed=0)
    conversion.convert("coco", root / "images", output=root / "records", num_workers=1)
    return str(root / "records")


def _training(location, start, stop, *, batch_size=4, seed=0, augmentation=None, split="train", **options):
    return list(
        pipeline.training_batches(
            store.open_records(location, split),
            batch_size=batch_size,
            seed=seed,
            augmentation=augmentation or AugmentationConfig(),
            start_step=start,
            stop_step=stop,
            **{"image_size": (64, 64), "resize": "half_pixel", "decode": "fast"} | options,
        )
    )


def _assert_equal(first, second):
    for (batch, ids), (other, other_ids) in zip(first, second, strict=True):
        np.testing.assert_array_equal(ids, other_ids)
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_a_stream_may_start_anywhere(converted):
    _assert_equal(_training(converted, 3, 7), _training(converted, 0, 7)[3:])


def test_another_seed_gives_another_order(converted):
    first = np.concatenate([ids for _, ids in _training(converted, 0, 5)])
    second = np.concatenate([ids for _, ids in _training(converted, 0, 5, seed=1)])
    assert first.tolist() != second.tolist()


def test_each_epoch_has_every_image_once_in_an_order_of_its_own(converted):
    ids = np.concatenate([ids for _, ids in _training(converted, 0, 10)])
    epochs = ids.reshape(4, _COUNT)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(1, _COUNT + 1))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_an_image_is_augmented_afresh_each_epoch(converted):
    batches = _training(converted, 0, 2 * _COUNT, batch_size=1)
    seen = [batch["images"] for batch, ids in batches if ids[0] == 1]
    assert len(seen) == 2
    assert (seen[0] != seen[1]).any()


def test_batches_have_the_shapes_and_types_of_the_contract(converted):
    batch, ids = _training(converted, 0, 1)[0]
    room = pipeline.box_room(store.open_records(converted, "train"))
    assert room % 8 == 0
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "images": ((4, 64, 64, 3), "uint8"),
        "valid_size": ((4, 2), "int32"),
        "boxes": ((4, room, 4), "float32"),
        "labels": ((4, room), "int32"),
        "num_boxes": ((4,), "int32"),
    }
    assert ids.dtype == np.int64


def test_boxes_have_area_inside_the_input(converted):
    for batch, _ in _training(converted, 0, 20):
        for boxes, count in zip(batch["boxes"], batch["num_boxes"], strict=True):
            assert (boxes[:count, :2] < boxes[:count, 2:]).all()
            assert boxes.min() >= 0
            assert boxes.max() <= 63
            assert not boxes[count:].any()


def _evaluation(location, split="val", **options):
    opened = store.open_records(location, split)
    options = {
        "categories": opened.categories,
        "image_size": (64, 64),
        "resize": "half_pixel",
        "batch_size": 4,
    } | options
    return list(pipeline.evaluation_batches(opened, **options))


def test_evaluation_reads_every_image_once_in_order(converted):
    batches = _evaluation(converted)
    ids = np.concatenate([originals["ids"] for _, originals in batches])
    assert ids.tolist() == [1, 2, 3, 4, 5, -1, -1, -1]
    assert all(len(batch["images"]) == 4 for batch, _ in batches)


def _letterboxed(converted, split, number, method):
    """Resamples the image `number` of a split with the form that prediction uses, to 40 x 40 px."""
    path = Path(converted).parent / "images" / split / f"{number:06d}.jpg"
    return preprocess.letterbox(images.read_image(path, path.name), (40, 40), method)[0].astype(int)


@pytest.mark.parametrize("method", typing.get_args(Resize))
def test_images_are_resampled_as_prediction_does(converted, method):
    """Scaled to fit and not mirrored, a training image is the letterboxed one too."""
    fixed = AugmentationConfig(scale_min=1.0, scale_max=1.0, horizontal_flip=False)
    batch, originals = _evaluation(converted, image_size=(40, 40), resize=method)[0]
    options = {"image_size": (40, 40), "resize": method, "decode": "exact"}
    training, ids = _training(converted, 0, 1, augmentation=fixed, **options)[0]
    photos = [("val", number, image) for number, image in zip(originals["ids"], batch["images"], strict=True)]
    photos += [("train", number, image) for number, image in zip(ids, training["images"], strict=True)]
    for split, number, image in photos:
        differences = {
            other: np.abs(image - _letterboxed(converted, split, number, other)).max()
            for other in typing.get_args(Resize)
        }
        assert differences.pop(method) <= 1
        assert min(differences.values()) > 3, "the methods differ visibly"


def test_evaluation_can_stop_early(converted):
    batches = _evaluation(converted, max_images=2)
    assert np.concatenate([originals["ids"] for _, originals in batches]).tolist() == [1, 2, -1, -1]


def test_inputs_and_originals_tell_the_same_boxes(converted):
    for batch, originals in _evaluation(converted):
        scaled = originals["boxes"] * originals["scales"][:, None, None]
        # Sizes are whole pixels, so the letterbox scales each axis a little differently.
        np.testing.assert_allclose(batch["boxes"], scaled, atol=1.0)
        np.testing.assert_array_equal(batch["num_boxes"], originals["num_boxes"])


def test_the_truth_alone_is_that_of_evaluation(converted):
    opened = store.open_records(converted, "val")
    (alone,) = pipeline.truth_batches(opened)
    assert alone["ids"].tolist() == [1, 2, 3, 4, 5] + [-1] * 59
    batches = [originals for _, originals in _evaluation(converted)]
    for name, values in alone.items():
        if name != "scales":
            expected = np.concatenate([batch[name] for batch in batches])
            assert values.dtype == expected.dtype
            np.testing.assert_array_equal(values[:5], expected[:5], err_msg=name)
    assert set(alone["scales"].tolist()) == {1}
    (first,) = pipeline.truth_batches(opened, max_images=2)
    assert first["ids"].tolist() == [1, 2] + [-1] * 62


def test_crowds_are_no_targets_but_evaluation_knows_them(tmp_path):
    little_datasets.write_coco(tmp_path / "images")
    conversion.convert("coco", tmp_path / "images", output=tmp_path / "records", num_workers=1)
    (batch, originals), *_ = _evaluation(str(tmp_path / "records"), "train", batch_size=2)
    row = originals["ids"].tolist().index(7)
    assert batch["num_boxes"][row] == 1
    assert originals["num_boxes"][row] == 2
    assert originals["is_crowd"][row, :2].tolist() == [False, True]
    assert originals["area"][row, :2].tolist() == [123.5, 2000.0]
    training = _training(str(tmp_path / "records"), 0, 4, batch_size=2)
    assert max(batch["num_boxes"].max() for batch, _ in training) == 1
    ids = set(itertools.chain.from_iterable(ids.tolist() for _, ids in training))
    assert ids == {3, 7}, "the image without boxes is trained on too"


def test_labels_are_positions_among_the_models_classes(converted):
    opened = store.open_records(converted, "val")
    backwards = tuple(reversed(opened.categories))
    for (batch, _), (other, _) in zip(
        _evaluation(converted), _evaluation(converted, categories=backwards), strict=True
    ):
        for row, count in enumerate(batch["num_boxes"]):
            assert (batch["labels"][row, :count] == 5 - other["labels"][row, :count]).all()


def test_a_class_that_the_model_lacks_is_refused(converted):
    with pytest.raises(UserError, match="Class 1 of split `val` is `disk`, but the model does not have it"):
        _evaluation(converted, categories=(Category(id=99, name="cat"),))


def test_a_damaged_record_is_one_line(converted, tmp_path):
    opened = store.open_records(converted, "train")
    for name in opened.paths:
        path = tmp_path / name.rsplit("/", 1)[1]
        content = bytearray(Path(name).read_bytes())
        for offset, length in zip(opened.offsets, opened.lengths, strict=True):
            start = content.find(b"\xff\xd8\xff", int(offset), int(offset + length))
            content[start : start + 400] = bytes(400)
        path.write_bytes(content)
    damaged = {**vars(opened), "paths": tuple(str(tmp_path / name.rsplit("/", 1)[1]) for name in opened.paths)}
    with pytest.raises(UserError, match="damaged record") as caught:
        list(
            pipeline.training_batches(
                store.Records(**damaged),
                image_size=(64, 64),
                resize="half_pixel",
                batch_size=2,
                seed=0,
                augmentation=AugmentationConfig(),
                decode="fast",
                start_step=0,
                stop_step=1,
            )
        )
    assert "\n" not in str(caught.value)


_EVERYTHING = AugmentationConfig(mosaic=0.5, mixup=0.5, policy="randaugment", grid_mask=0.5, hue=0.1, brightness=0.2)
_EACH = [
    {"mosaic": 0.9},
    {"mixup": 0.9},
    {"grid_mask": 0.9},
    {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
    {"policy": "randaugment"},
]


@pytest.mark.slow
def test_a_stream_with_every_augmentation_may_start_anywhere_and_repeats(converted):
    whole = _training(converted, 0, 6, augmentation=_EVERYTHING)
    _assert_equal(_training(converted, 0, 6, augmentation=_EVERYTHING), whole)
    _assert_equal(_training(converted, 4, 6, augmentation=_EVERYTHING), whole[4:])


@pytest.mark.parametrize("knobs", _EACH, ids=lambda knobs: "-".join(knobs))
def test_each_augmentation_changes_pixels_and_keeps_the_contract(converted, knobs):
    plain = _training(converted, 0, 3)
    changed = _training(converted, 0, 3, augmentation=AugmentationConfig(**knobs))
    room = pipeline.box_room(store.open_records(converted, "train"))
    room *= 4 if "mosaic" in knobs else 2 if "mixup" in knobs else 1
    for (batch, ids), (other, other_ids) in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(ids, other_ids)
        assert (batch["images"] != other["images"]).any()
        assert other["boxes"].shape == (4, room, 4)
        assert {name: value.dtype for name, value in other.items()} == {n: v.dtype for n, v in batch.items()}
        for boxes, count in zip(other["boxes"], other["num_boxes"], strict=True):
            assert (boxes[:count, :2] < boxes[:count, 2:]).all()
            assert boxes.min() >= 0
            assert boxes.max() <= 63
            assert not boxes[count:].any()


def test_mosaics_have_more_boxes(converted):
    counts = [
        sum(batch["num_boxes"].sum() for batch, _ in _training(converted, 0, 5, augmentation=augmentation))
        for augmentation in (AugmentationConfig(), AugmentationConfig(mosaic=1.0))
    ]
    assert counts[1] > 2 * counts[0]


def test_crowds_of_other_images_are_no_targets_either(tmp_path):
    little_datasets.write_coco(tmp_path / "images")
    conversion.convert("coco", tmp_path / "images", output=tmp_path / "records", num_workers=1)
    mosaic = AugmentationConfig(mosaic=1.0, scale_min=1.0, scale_max=1.0)
    training = _training(str(tmp_path / "records"), 0, 4, batch_size=2, augmentation=mosaic)
    assert 1 < max(batch["num_boxes"].max() for batch, _ in training) <= 4, "one an image, crowds left out"
