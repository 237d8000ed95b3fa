"""What is said of an evaluation that measures something else than how good a detector is."""

import json

import numpy as np
import pytest

from efficientdet.evaluation import plausibility


def _batch(*images):
    """Makes a batch of images (confident boxes, objects, is a crowd among them); none only fills it."""
    room, rows = 100, len(images)
    real = [image or (0, 0, False) for image in images]
    scores = np.full((rows, room), 0.3, np.float32)
    is_crowd = np.zeros((rows, room), bool)
    for row, (confident, objects, has_crowd) in enumerate(real):
        scores[row, :confident] = 0.95
        is_crowd[row, : objects * has_crowd] = True
    return (
        {
            "ids": np.array([-1 if image is None else 7 + row for row, image in enumerate(images)]),
            "num_boxes": np.array([objects for _, objects, _ in real]),
            "is_crowd": is_crowd,
        },
        {"scores": scores, "num_detections": np.array([room] * rows)},
    )


_IMAGES = {
    "as many as objects": ((3, 3, False), False),
    "each object three times": ((9, 3, False), False),
    "one below the limit": ((15, 3, False), False),
    "2 for each object and 10 more": ((16, 3, False), True),
    "none is there": ((10, 0, False), True),
    "a hundred of fifty": ((100, 50, False), False),
    "a hundred of two": ((100, 2, False), True),
    "a crowd may be any number": ((100, 2, True), False),
    "only fills the batch": (None, False),
}


@pytest.mark.parametrize("name", _IMAGES)
def test_an_image_is_full_when_confident_boxes_are_far_beyond_its_objects(name):
    image, expected = _IMAGES[name]
    watch = plausibility.Watch()
    watch.add(*_batch((1, 1, False), image, (2, 2, False)))
    assert [full.position for full in watch.full] == [1] * expected


@pytest.mark.parametrize(("confident", "expected"), [(49, 0), (50, 1)])
def test_where_nothing_is_annotated_only_very_many_boxes_count(confident, expected):
    watch = plausibility.Watch()
    watch.add(*_batch((confident, 0, False), (12, 0, False)))
    assert len(watch.full) == expected


def test_the_warning_names_the_fullest_images_and_says_what_to_do():
    watch = plausibility.Watch()
    watch.add(*_batch((1, 1, False), (20, 1, False), None))
    watch.add(*_batch(*[(30 + number, 1, False) for number in range(6)]))
    assert watch.warning("{}.jpg".format) == (
        "7 of 8 images have far more boxes with a score of at least 0.9 than objects: 7.jpg (35), 6.jpg (34), "
        "5.jpg (33), 4.jpg (32), 3.jpg (31), 2 more. Each of them lowers AP. Either objects in these images are not "
        "annotated, or activations explode. Train longer or with a larger batch, start from `--backbone imagenet`, or "
        "lower `--optimizer.learning-rate` (docs/troubleshooting.md)."
    )


def test_nothing_is_said_of_an_evaluation_without_full_images():
    watch = plausibility.Watch()
    watch.add(*_batch((3, 3, False)))
    assert watch.warning("{}.jpg".format) is None


@pytest.mark.parametrize(
    ("training", "validation", "is_far"),
    [(0.47, 26.9, True), (1.0, 5.1, True), (1.0, 5.0, False), (0.4, 0.41, False), (None, 9.0, False), (1, None, False)],
)
def test_a_validation_loss_is_far_above_training_beyond_five_times(training, validation, is_far):
    said = plausibility.warn_of_losses(training, validation)
    assert (said is not None) == is_far
    if validation == 26.9:
        assert said.startswith("the validation loss, 26.9, is 57 times the training loss, 0.47: activations explode")


def test_the_losses_of_a_run_are_its_last_ones(tmp_path):
    assert plausibility.read_losses(tmp_path) == (None, None)
    lines = [("train", 3.0), ("validation", 2.0), ("train", 1.5), ("validation", 2.5)]
    texts = [json.dumps({"kind": kind, "values": {"loss": loss}}) + "\n" for kind, loss in lines]
    (tmp_path / "metrics.jsonl").write_text("".join([*texts, "[]\n", "{\n", '{"kind": "train", "val']))
    assert plausibility.read_losses(tmp_path) == (1.5, 2.5)
