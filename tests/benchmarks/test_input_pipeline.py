"""The input benchmark runs from records to a file, and its yardstick does the same work in another order."""

import json

import numpy as np
import pytest
import tensorflow as tf

from efficientdet import cli, presets
from efficientdet.benchmarks import conventional, input_growth, input_pipeline
from efficientdet.config import AugmentationConfig
from efficientdet.data import conversion, pipeline, synthetic
from efficientdet.data.records import store
from efficientdet.errors import UserError
from efficientdet.model import anchors as anchor_boxes
from efficientdet.training import targets

_SIZE = (64, 96)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("input")
    synthetic.write_coco_folder(root / "images", {"train": 12}, (80, 120), seed=0)
    conversion.convert("coco", root / "images", output=root / "records", num_workers=1)
    return str(root / "records")


def test_it_measures_writes_and_names_the_limiting_stage(converted, tmp_path, capsys):
    output = tmp_path / "input.json"
    options = ["--image-size", "64", "96", "--batch-size", "4", "--num-images", "8", "--rounds", "2"]
    assert cli.main(["benchmark", "input", converted, *options, "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert set(written["ratios"]) == {"input_vs_conventional", "input_vs_decode"}
    for spread in written["ratios"].values():
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert set(written["stages"]) == {"read", "decode", "resize", "batch"}
    assert written["limiting_stage"] in written["stages"]
    assert written["stages"][written["limiting_stage"]] == max(written["stages"].values())
    assert {row["name"] for row in written["rows"]} >= {"bare decoding", "conventional", "ours"}
    assert written["images"]["count"] == 12
    assert 64 < written["images"]["mean_height"] < 96
    assert {"hardware", "versions", "commit", "command", "what"} <= set(written)
    shown = capsys.readouterr().out
    assert f"limiting stage is `{written['limiting_stage']}`" in " ".join(shown.split())


def test_a_stage_is_what_it_adds_within_a_round():
    times = {"read": [1.0, 10.0], "decode": [2.0, 12.0], "resize": [4.0, 15.0], "ours": [5.0, 15.5]}
    assert input_pipeline._stage_times(times) == {"read": 5.5, "decode": 1.5, "resize": 2.5, "batch": 0.75}


def test_fewer_images_than_a_batch_are_refused(converted):
    with pytest.raises(UserError, match="`num_images` is 3"):
        input_pipeline.benchmark_input(converted, batch_size=4, num_images=3)


def _statistics(images, valid, boxes):
    return [images[valid].mean(), images[valid].std(), valid.mean(), boxes.mean()]


def test_the_conventional_order_gives_images_of_the_same_statistics(converted):
    """Mean and spread of pixels, share that is not padding, boxes an image; 192 examples of 12 images."""
    opened, augmentation = store.open_records(converted, "train"), AugmentationConfig(scale_min=0.5)
    model = presets.MODELS["d0"]
    model = type(model)(**vars(model) | {"image_size": _SIZE})
    options = {"augmentation": augmentation, "batch_size": 32, "seed": 0}
    whole = conventional.batches(opened, model=model, num_steps=6, **options)
    theirs = {name: np.concatenate([batch[name] for batch in whole.as_numpy_iterator()]) for name in next(iter(whole))}
    read = pipeline.training_batches(
        opened, image_size=_SIZE, resize="half_pixel", decode="fast", start_step=0, stop_step=6, **options
    )
    ours = [batch for batch, _ in read]
    sizes = np.concatenate([batch["valid_size"] for batch in ours])
    valid = (np.arange(_SIZE[0])[:, None] < sizes[:, 0, None, None]) & (np.arange(_SIZE[1]) < sizes[:, 1, None, None])
    images = np.concatenate([batch["images"] for batch in ours]) / np.float32(255)
    images = (images - np.float32(model.pixel_mean)) / np.float32(model.pixel_std)
    found = _statistics(images, valid, np.concatenate([batch["num_boxes"] for batch in ours]))
    expected = _statistics(theirs["images"], (theirs["images"] != 0).any(-1), theirs["num_boxes"])
    # Other draws of the same distribution: pixels within a tenth of their spread, the rest within a tenth.
    np.testing.assert_allclose(found[:2], expected[:2], atol=0.1)
    np.testing.assert_allclose(found[2:], expected[2:], rtol=0.1)


def test_an_example_of_the_conventional_order_is_ours():
    """The same draws, the same images, but for cuts that begin at whole pixels after scaling instead of before."""
    image, _, _ = synthetic.draw_image(0, 1, (80, 120))
    smooth = tf.image.resize(tf.image.resize(image, (10, 15)), (80, 120))
    encoded, boxes = tf.io.encode_png(tf.cast(smooth, tf.uint8)), tf.constant([[0.2, 0.3, 0.9, 0.8]])
    config = AugmentationConfig(scale_min=0.5)
    for number in range(12):
        seed = tf.constant([number, 3])
        raw = (encoded, boxes, tf.constant([0]))
        ours = conventional.cropping.fill(raw, seed, _SIZE, "half_pixel", config, "exact")
        theirs, moved = conventional.scale_and_cut(smooth, boxes, seed, _SIZE, config)
        assert np.abs(ours[0].numpy() - theirs.numpy()).mean() < 4, "of an image whose neighbours differ by up to 20"
        np.testing.assert_array_equal(ours[2], moved[conventional.cropping.has_area(moved)])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_its_targets_are_those_of_training(count, tiny, rng):
    anchors = anchor_boxes.anchor_boxes(tiny)
    corners = rng.uniform(0, 60, (count, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1) + 4], axis=-1).reshape(-1, 4)
    boxes[3:4] = boxes[2:3]  # two that want the same anchor
    labels = np.arange(count, dtype=np.int32)
    truth = {"boxes": np.zeros((1, 8, 4), np.float32), "labels": np.zeros((1, 8), np.int32)}
    truth["boxes"][0, :count], truth["labels"][0, :count] = boxes, labels
    expected = targets.assign(anchors, truth | {"num_boxes": np.array([count], np.int32)}, 0.5)
    found, deltas = conventional.match(tf.constant(boxes), tf.constant(labels), anchors, 0.5)
    np.testing.assert_array_equal(found, np.asarray(expected["labels"])[0])
    np.testing.assert_allclose(deltas, np.asarray(expected["box_deltas"])[0], atol=1e-4)


@pytest.mark.slow
def test_growth_is_measured(converted, monkeypatch):
    for name, value in (("_SHARDS", (1, 4)), ("_BOXES", (1, 5)), ("_SIDES", (64,)), ("_MEASURED", 8)):
        monkeypatch.setattr(input_growth, name, value)
    rows = input_growth.measure(store.open_records(converted, "train"), batch_size=4, rounds=1)
    assert [row["value"] for row in rows] == [1, 4, 1, 5, 64]
    assert all(row["median"] > 0 for row in rows)
    assert input_growth.table(rows).row_count == 5


@pytest.mark.slow
def test_without_records_images_are_generated():
    result = input_pipeline.benchmark_input(image_size=_SIZE, batch_size=2, num_images=4, rounds=1)
    assert result.images["count"] == 64
