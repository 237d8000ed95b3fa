"""What a run warns of, each in one line that says what to change."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.config import DataConfig, ExperimentConfig, ModelConfig, TrainingConfig
from efficientdet.data.records import box_sample, store, tfrecord
from efficientdet.evaluation import plausibility
from efficientdet.structures import Category
from efficientdet.training import dataset
from efficientdet.training.logs import cautions, metrics
from efficientdet.training.validation import ValidationResult

_CLASSES = tuple(Category(id=number, name=name) for number, name in enumerate(("cat", "dog", "cow"), start=1))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A file with one record, whose box is its whole image."""
    path = tmp_path_factory.mktemp("cautions") / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        record = tfrecord.serialize(
            encoded=b"",
            file_name="a.jpg",
            id=1,
            height=96,
            width=96,
            boxes=np.array([[0, 0, 1, 1]], np.float32),
            category_ids=np.array([1]),
            category_names=["cat"],
            is_crowd=np.array([False]),
            area=np.array([96**2], np.float32),
        )
        writer.write(record)
    return path, len(record)


def _split(shard, number, boxes_per_class):
    """A split of one record, many times."""
    return store.Records(
        name="x",
        paths=(str(shard[0]),),
        shards=np.zeros(number, np.int32),
        offsets=np.full(number, tfrecord.NUM_HEADER_BYTES),
        lengths=np.full(number, shard[1]),
        categories=_CLASSES,
        max_boxes=3,
        num_boxes=sum(boxes_per_class),
        boxes_per_class=boxes_per_class,
        checksum="",
    )


def _dataset(train, validation=None, num_validation=None):
    return dataset.Dataset(
        categories=_CLASSES,
        num_examples=len(train),
        num_validation=num_validation or len(validation or ()),
        training_batches=None,
        plain_batches=None,
        validation_batches=None,
        train_records=train,
        validation_records=validation,
    )


@pytest.fixture
def start(tmp_path, tiny, shard):
    """Says what a run says at its start: images and boxes a class for training, then for validation."""

    def start(train, validation=None, num_validation=None, **training):
        data = _dataset(_split(shard, *train), validation and _split(shard, *validation), num_validation)
        config = ExperimentConfig(model=tiny, training=TrainingConfig(**{"batch_size": 8, **training}))
        said = []
        found = cautions.Cautions(config, data, tmp_path, 1, said.append)
        found.start()
        assert said == [f"warning: {text}" for text in found.said]
        return found.said

    return start


def test_nothing_is_said_of_data_that_are_large_and_whole(start):
    assert start((200, (90, 90, 90)), (200, (20, 20, 10))) == []


def test_a_batch_larger_than_the_data_is_said_with_a_smaller_one(start):
    assert start((16, (9, 9, 9)), batch_size=64, epochs=1) == [
        "`training.batch_size` is 64, more than the 16 training images: each update sees every image 4.0 times, and "
        "the whole run is only 1 update. Use `--training.batch-size 8` and enough `--training.epochs` for a few "
        "hundred updates."
    ]


def test_classes_without_training_boxes_are_named(start):
    assert start((200, (9, 0, 0))) == [
        "2 of 3 classes have no training boxes and will never be detected: dog, cow. Add images of them, or convert "
        "the dataset without these classes."
    ]


def test_validation_without_boxes_is_said_with_the_way_without(start):
    assert start((200, (9, 9, 9)), (30, (0, 0, 0))) == [
        "the 30 validation images have no boxes: losses are computed, but AP stays `-` and weights/best is not "
        "written. Pass data with boxes (`--data.validation`) or turn validation off (`--data.validation none`)."
    ]


def test_validation_too_small_for_ap_is_said_with_its_interval(start):
    assert start((200, (9, 9, 9)), (64, (70, 3, 0))) == [
        "AP on 64 validation images may be off by 6 points; the interval next to AP shows the actual margin, and "
        "smaller differences mean nothing; AP of classes with fewer than 10 validation boxes means little: dog (3), "
        "cow (0). For a more precise AP, convert with a larger `--val-fraction`, or pass more images with "
        "`--data.validation`."
    ]
    (line,) = start((200, (9, 9, 9)), (500, (70, 3, 0)), num_validation=50)
    assert "AP on 50 validation images may be off by 7 points" in line
    assert "raise `--evaluation.max-images`" in line


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        # The smallest anchors have 32 x 32 px at 512 x 512, or 0.98 of that area; half of it is a box of 22.4 px.
        ([23.0] * 10, None),
        ([22.0] * 1 + [200.0] * 10, None),  # 9 %
        (
            [22.0] * 2 + [200.0] * 8,
            "20% of the training boxes in a sample of 10 images are too small for the anchors: at 512 x 512 px they "
            "cover less than 50% of the smallest anchor (32 x 32 px). `--model.image-size 640 640` or "
            "`--model.anchor-scale 3.9` would leave about 5%.",
        ),
        (
            [8.0] * 10,
            "100% of the training boxes in a sample of 10 images are too small for the anchors: at 512 x 512 px they "
            "cover less than 50% of the smallest anchor (32 x 32 px). `--model.anchor-scale 1.4` would leave about 5%.",
        ),
        (
            [4.0] * 10,
            "100% of the training boxes in a sample of 10 images are too small for the anchors: at 512 x 512 px they "
            "cover less than 50% of the smallest anchor (32 x 32 px). Cut the images into tiles.",
        ),
    ],
)
def test_boxes_too_small_for_the_anchors_are_said_with_a_size_that_fits(sides, expected):
    # The images are twice as large as the network input, and so are the boxes in them.
    sizes = np.repeat(2 * np.array(sides)[:, None], 2, axis=1)
    sample = box_sample.BoxSample(num_images=10, sizes=sizes, image_sizes=np.full((len(sizes), 2), 1024.0))
    assert cautions.small_boxes(ModelConfig(), 0.5, sample, num_examples=500) == expected


@pytest.mark.parametrize("advice", [{"image_size": (640, 640)}, {"anchor_scale": 3.9}])
def test_what_is_advised_for_small_boxes_helps(advice):
    sizes = np.repeat(2 * np.array([22.0] * 2 + [200.0] * 8)[:, None], 2, axis=1)
    sample = box_sample.BoxSample(num_images=10, sizes=sizes, image_sizes=np.full((10, 2), 1024.0))
    assert cautions.small_boxes(ModelConfig(**advice), 0.5, sample, num_examples=10) is None


def _found(loss, confident=0):
    watch = plausibility.Watch()
    originals = {"ids": np.array([3]), "num_boxes": np.array([1]), "is_crowd": np.zeros((1, 1), bool)}
    watch.add(originals, {"scores": np.full((1, 100), 0.99), "num_detections": np.array([confident])})
    return ValidationResult(losses={"loss": loss}, evaluation=None, watch=watch, examples=[])


@pytest.fixture
def running(tmp_path):
    """The cautions of a run on generated images with a learning rate of 0.08, and what they say."""
    config = ExperimentConfig(data=DataConfig(train="synthetic"))
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.08))
    said = []
    return cautions.Cautions(config, dataset.open_dataset(config), tmp_path, 1, said.append), said


def test_an_evaluation_that_explodes_is_said_by_loss_and_by_image(running):
    run, said = running
    run.trained([0.5, 0.44])
    run.evaluated(_found(0.6))
    assert said == []
    run.evaluated(_found(26.9, confident=100))
    assert said[0].startswith("warning: 1 of 1 images has far more boxes with a score of at least 0.9 than objects")
    assert "image 0 (100)" in said[0]
    assert said[1].startswith("warning: the validation loss, 26.9, is 57 times the training loss, 0.47: ")
    assert run.said == [text.removeprefix("warning: ") for text in said]
    run.evaluated(_found(27.9))
    assert len(said) == 3
    assert run.said == [said[2].removeprefix("warning: ")], "the summary has those of the last evaluation"


def test_a_loss_that_diverges_is_said_once_and_at_the_end(running):
    run, said = running
    for losses in ([1.24] * 60, [31.7] * 60, [31.7] * 300):
        run.trained(losses)
    assert said == [
        "warning: the training loss is diverging: 24.7 over the last steps, up from a low of 1.24. Start a new run "
        "with `--optimizer.learning-rate 0.027` (a third of this run's) and a new `--run-dir`."
    ]
    assert run.ending() == "; the loss diverged: 31.7 at the end, up from a low of 1.24"
    assert len(said) == 1


def test_a_loss_that_rises_just_before_the_end_is_said_there(running):
    run, said = running
    run.trained([1.24] * 60 + [31.7] * 20)
    assert said == []
    assert run.ending().startswith("; the loss diverged: ")
    assert len(said) == 1


def test_a_resumed_run_remembers_the_loss(running, tmp_path):
    run, _ = running
    lines = [{"kind": "train", "step": step, "epoch": 0, "time": 0, "values": {"loss": 1.24}} for step in (20, 40)]
    (tmp_path / metrics.LINES_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    resumed = cautions.Cautions(run._config, run._dataset, tmp_path, 1, print)
    resumed.trained([31.7] * 20)
    assert "up from a low of 1.24" in resumed.ending()
    run.trained([31.7] * 20)
    assert run.ending() == "", "without the lines it has only seen one level"
