"""Moved pixels are found where the moved boxes say; changes inside boxes stay inside."""

import numpy as np
import pytest
import tensorflow as tf

from efficientdet.data.augment import geometry

_HEIGHT, _WIDTH = 60, 90
_BOX = (20, 30, 40, 70)  # y1, x1, y2, x2, px


def _painted(*boxes, value=255):
    image = np.zeros((_HEIGHT, _WIDTH, 3), np.uint8)
    for y1, x1, y2, x2 in boxes:
        image[y1:y2, x1:x2] = (value, 0, 0)
    return image


def _fractions(*boxes):
    return np.array(boxes, np.float32).reshape(-1, 4) / np.array([_HEIGHT, _WIDTH] * 2, np.float32)


def _pixels(fractions):
    return np.asarray(fractions) * ([_HEIGHT, _WIDTH] * 2)


def _everywhere(move, image, boxes):
    """Moves an image with its boxes eagerly and inside tf.data, which must agree."""
    eager_image, eager_boxes = move(tf.constant(image), tf.constant(boxes))
    dataset = tf.data.Dataset.from_tensors((image, boxes)).map(move)
    inside_image, inside_boxes = next(iter(dataset.as_numpy_iterator()))
    np.testing.assert_array_equal(eager_image.numpy(), inside_image)
    np.testing.assert_allclose(eager_boxes.numpy(), inside_boxes, atol=1e-6)
    return inside_image, _pixels(inside_boxes)


def _extent(image):
    """Finds the smallest box around the pixels that are red by half or more."""
    is_red = image[..., 0].astype(int) - image[..., 1] > 127
    rows, columns = np.nonzero(is_red.any(axis=1))[0], np.nonzero(is_red.any(axis=0))[0]
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(lambda i, b: geometry.shift(i, b, 0.0, 0.0), id="shift"),
        pytest.param(lambda i, b: geometry.shear(i, b, 0.0, 0.0), id="shear"),
        pytest.param(lambda i, b: geometry.rotate(i, b, 0.0), id="rotation"),
    ],
)
def test_moving_by_nothing_changes_nothing(move, rng):
    image = rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), np.uint8)
    moved, boxes = _everywhere(move, image, _fractions(_BOX))
    np.testing.assert_array_equal(moved, image)
    np.testing.assert_allclose(boxes, [_BOX], atol=1e-4)


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        pytest.param(lambda i, b: geometry.shift(i, b, 5.0, 0.0), (25, 30, 45, 70), id="down"),
        pytest.param(lambda i, b: geometry.shift(i, b, -7.0, 0.0), (13, 30, 33, 70), id="up"),
        pytest.param(lambda i, b: geometry.shift(i, b, 0.0, 12.0), (20, 42, 40, 82), id="right"),
        pytest.param(lambda i, b: geometry.shift(i, b, 0.0, -50.0), (20, 0, 40, 20), id="left, half of it outside"),
        pytest.param(lambda i, b: geometry.shear(i, b, 0.0, 0.5), (20, 40, 40, 90), id="right by half of y"),
        pytest.param(lambda i, b: geometry.shear(i, b, -0.1, 0.0), (13, 30, 37, 70), id="up by a tenth of x"),
        pytest.param(lambda i, b: geometry.rotate(i, b, 90.0), (15, 35, 55, 55), id="a quarter, clockwise"),
        pytest.param(lambda i, b: geometry.rotate(i, b, 180.0), (20, 20, 40, 60), id="upside down"),
    ],
)
def test_boxes_move_as_worked_out_by_hand(move, expected):
    image, boxes = _everywhere(move, _painted(_BOX), _fractions(_BOX))
    np.testing.assert_allclose(boxes, [expected], atol=1e-3)
    assert np.abs(_extent(image) - expected).max() <= 1


@pytest.mark.parametrize("degrees", [-30.0, -11.0, 7.0, 24.0, 45.0])
def test_pixels_fill_the_box_of_any_rotation(degrees):
    image, boxes = _everywhere(lambda i, b: geometry.rotate(i, b, degrees), _painted(_BOX), _fractions(_BOX))
    assert np.abs(_extent(image) - boxes[0]).max() <= 1.5  # a corner covers its pixel by less than half


def test_clockwise_turns_the_right_side_down():
    image = _painted((28, 80, 32, 84))
    moved, _ = _everywhere(lambda i, b: geometry.rotate(i, b, 20.0), image, _fractions())
    assert _extent(moved)[0] > 32


def test_what_comes_in_is_grey():
    moved, _ = _everywhere(lambda i, b: geometry.shift(i, b, 0.0, 30.0), _painted(), _fractions())
    assert (moved[:, :29] == 128).all()
    assert not moved[:, 31:].any()


def test_a_box_that_leaves_the_image_stays_gone():
    """Turned about the middle, a strip at the border would get an area again."""
    _, boxes = _everywhere(lambda i, b: geometry.shift(i, b, 0.0, 70.0), _painted(_BOX), _fractions(_BOX, (0, 0, 9, 9)))
    assert boxes[0].tolist() == [0, 0, 0, 0]
    assert boxes[1, 1] > 69
    _, turned = geometry.rotate(tf.constant(_painted()), tf.constant(_fractions((0, 0, 0, 0))), 30.0)
    assert turned.numpy().tolist() == [[0, 0, 0, 0]]


def test_an_image_without_boxes_moves_too():
    _, boxes = _everywhere(lambda i, b: geometry.rotate(i, b, 10.0), _painted(), _fractions())
    assert boxes.shape == (0, 4)


def _invert(image, boxes, probability, seed=3):
    return _everywhere(
        lambda i, b: (
            geometry.change_in_boxes(i, b, probability, tf.constant([seed, 1]), lambda part, _: 255 - part),
            b,
        ),
        image,
        boxes,
    )[0]


def test_a_change_in_boxes_stays_inside_of_them():
    boxes = [(5, 5, 20, 25), (30, 40, 60, 90)]
    found = _invert(_painted(), _fractions(*boxes), 1.0)
    expected = np.zeros_like(found)
    for y1, x1, y2, x2 in boxes:
        expected[y1:y2, x1:x2] = 255
    np.testing.assert_array_equal(found, expected)


def test_no_box_is_changed_with_probability_zero_nor_without_boxes_nor_in_an_empty_one():
    image = _painted(_BOX)
    np.testing.assert_array_equal(_invert(image, _fractions(_BOX), 0.0), image)
    np.testing.assert_array_equal(_invert(image, _fractions(), 1.0), image)
    np.testing.assert_array_equal(_invert(image, _fractions((0, 0, 0, 0), (9, 9, 9, 20)), 1.0), image)


def test_each_box_is_drawn_by_itself():
    boxes = [(y, x, y + 10, x + 10) for y in (0, 20, 40) for x in (0, 20, 40, 60)]
    counts = []
    for seed in range(20):
        found = _invert(_painted(), _fractions(*boxes), 1 / 3, seed)
        counts.append(sum(found[y, x, 0] == 255 for y, x, _, _ in boxes))
    assert 2.5 < np.mean(counts) < 5.5
    assert len(set(counts)) > 3
