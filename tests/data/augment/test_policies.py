"""Policies: the published tables, one sequence an image, every step found in pixels and boxes."""

import typing

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.config import Policy
from efficientdet.data import synthetic
from efficientdet.data.augment import policies

_POLICIES = [name for name in typing.get_args(Policy) if name != "none"]


@pytest.fixture(scope="module")
def photo():
    image, boxes, _ = synthetic.draw_image(0, 5, (96, 128))
    return image, boxes / np.array([96, 128, 96, 128], np.float32)


def _apply(policy, image, boxes, seed, magnitude=15.0, num_layers=1):
    return policies.apply_policy(policy, image, boxes, seed, num_layers=num_layers, magnitude=magnitude)


def _in_pipeline(policy, photo, num_seeds, **options):
    """Applies a policy inside tf.data under several seeds."""
    image, boxes = (tf.constant(values) for values in photo)
    seeds = tf.data.Dataset.range(num_seeds).map(lambda seed: tf.stack([tf.cast(seed, tf.int32), 9]))
    return list(seeds.map(lambda seed: _apply(policy, image, boxes, seed, **options)).as_numpy_iterator())


def test_no_policy_changes_nothing(photo):
    image, boxes = _apply("none", *photo, [1, 2])
    assert image is photo[0]
    assert boxes is photo[1]


@pytest.mark.slow
@pytest.mark.parametrize("policy", _POLICIES)
def test_a_policy_is_the_same_eagerly_in_tf_data_and_again(policy, photo):
    found = _in_pipeline(policy, photo, 6)
    for (image, boxes), (other, other_boxes) in zip(found, _in_pipeline(policy, photo, 6), strict=True):
        np.testing.assert_array_equal(image, other)
        np.testing.assert_array_equal(boxes, other_boxes)
    for seed, (image, boxes) in enumerate(found):
        eager_image, eager_boxes = _apply(policy, *(tf.constant(values) for values in photo), tf.constant([seed, 9]))
        assert image.dtype == np.uint8
        # A graph may round another way where a value is half; a shifted edge would differ by far more.
        assert np.abs(eager_image.numpy().astype(int) - image).max() <= 1
        np.testing.assert_allclose(eager_boxes.numpy(), boxes, atol=1e-5)


@pytest.mark.parametrize("policy", _POLICIES)
def test_a_policy_does_different_things_and_keeps_sizes_and_boxes(policy, photo):
    found = _in_pipeline(policy, photo, 30)
    assert {image.shape for image, _ in found} == {photo[0].shape}
    assert len({image.tobytes() for image, _ in found}) > 5
    assert len({boxes.tobytes() for _, boxes in found}) > 2
    for _, boxes in found:
        assert boxes.shape == photo[1].shape
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        is_gone = (boxes == 0).all(axis=1)
        assert ((boxes[:, 2:] > boxes[:, :2]).all(axis=1) | is_gone).all()


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_a_painted_object(seed):
    """Green on black: every change of colour leaves green the largest channel or inverts all."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[30:60, 40:80, 1] = 255
    box = np.array([[30 / 96, 40 / 128, 60 / 96, 80 / 128]], np.float32)
    for change in (policies._shift_x, policies._shift_y, policies._shear_x, policies._rotate):
        steps = (policies.Step(change, 1.0, 5), policies.Step(policies._shear_y, 1.0, 10))
        moved, boxes = policies.apply_steps(steps, tf.constant(image), tf.constant(box), tf.constant([seed, 4]))
        is_green = moved.numpy()[..., 1].astype(int) - moved.numpy()[..., 0] > 127
        rows, columns = np.nonzero(is_green.any(axis=1))[0], np.nonzero(is_green.any(axis=0))[0]
        extent = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
        found = boxes.numpy()[0] * [96, 128, 96, 128]
        # A box holds its object; it is the hull of a hull after the second change, so larger, not smaller.
        assert (found[:2] <= extent[:2] + 1.5).all()
        assert (found[2:] >= extent[2:] - 1.5).all()
        assert np.abs(found - extent).max() < 16


def test_the_published_tables_have_their_sizes():
    tables = policies.AUTOAUGMENT
    assert {name: len(table) for name, table in tables.items()} == {"v0": 5, "v1": 20, "v2": 15, "v3": 15}
    assert tables["v0"] == tables["v1"][:5]
    assert {len(sequence) for sequence in tables["v1"] + tables["v3"]} == {2}
    assert {len(sequence) for sequence in tables["v2"]} == {2, 3}
    assert len(policies.RANDAUGMENT) == 10
    for step in (step for table in tables.values() for sequence in table for step in sequence):
        assert 0 <= step.probability <= 1
        assert 0 <= step.level <= 10


def test_lengths_grow_with_the_image():
    """Level 4 of 10 is 100 px for a longer side of 640 px, so 20 px for 128 px."""
    steps = (policies.Step(policies._shift_x, 1.0, 4),)
    box = tf.constant([[0.4, 0.4, 0.6, 0.6]])
    for size in ((96, 128), (480, 640)):
        _, moved = policies.apply_steps(steps, tf.zeros([*size, 3], tf.uint8), box, tf.constant([1, 1]))
        assert abs(abs(float(moved[0, 1]) - 0.4) - 100 / 640) < 1e-5


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.3, 15, 45), (1.0, 100, 100)])
def test_a_step_happens_with_its_probability(probability, least, most):
    image = tf.fill([4, 4, 3], tf.constant(100, tf.uint8))
    steps = (policies.Step(policies._solarize_add, probability, 10),)
    seeds = tf.data.Dataset.range(100).map(lambda seed: tf.stack([tf.cast(seed, tf.int32), 2]))
    found = seeds.map(lambda seed: policies.apply_steps(steps, image, tf.zeros([0, 4]), seed)[0][0, 0, 0])
    assert least <= sum(value == 210 for value in found.as_numpy_iterator()) <= most


def test_a_step_in_boxes_happens_with_a_third_of_its_probability_in_each():
    boxes = np.array([[y / 8, x / 8, (y + 1) / 8, (x + 1) / 8] for y in range(8) for x in range(8)], np.float32)
    image = tf.fill([64, 64, 3], tf.constant(100, tf.uint8))
    steps = (policies._in_boxes(policies._solarize_add, 0.9, 10),)
    changed, same_boxes = policies.apply_steps(steps, image, tf.constant(boxes), tf.constant([3, 3]))
    assert 8 < (changed.numpy()[4::8, 4::8, 0] == 210).sum() < 31  # 0.3 * 64 = 19
    np.testing.assert_array_equal(same_boxes.numpy(), boxes)


def test_layers_of_randaugment_come_one_after_the_other(photo):
    one = _in_pipeline("randaugment", photo, 12)
    three = _in_pipeline("randaugment", photo, 12, num_layers=3)
    distance = [[np.abs(image - photo[0].astype(int)).mean() for image, _ in found] for found in (one, three)]
    assert np.mean(distance[1]) > np.mean(distance[0])
