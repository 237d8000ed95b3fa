"""Images with boxes: readable tags, nothing touched elsewhere, any size of image."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientdet.media import draw

_NAMES = ("disk", "square", "a class with quite a long name")


def _draw(image, boxes, labels, scores=None, **options):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = None if scores is None else np.array(scores, np.float32)
    return draw.draw_detections(image, boxes, np.array(labels, np.int32), scores, _NAMES, **options)


def _grey(height, width):
    return np.full((height, width, 3), 127, np.uint8)


@pytest.mark.parametrize("label", range(200))
def test_a_tag_can_be_read(label):
    background = draw.colour(label)
    assert draw.contrast(draw.text_colour(background), background) >= 4.5


def test_contrast_of_black_and_white_is_21():
    assert draw.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert draw.contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21)
    assert draw.contrast((9, 80, 200), (9, 80, 200)) == 1


def test_classes_have_colours_of_their_own():
    colours = np.array([draw.colour(label) for label in range(24)], np.float64)
    for first, second in itertools.combinations(colours, 2):
        assert np.abs(first - second).sum() > 30
    for first, second in itertools.pairwise(colours):
        assert np.abs(first - second).sum() > 150


def test_no_detections_give_an_equal_copy():
    image = _grey(50, 60)
    drawn = _draw(image, [], [], [])
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)
    np.testing.assert_array_equal(_draw(image, [], []), image)


def test_the_given_image_stays_as_it_is():
    image = _grey(100, 100)
    drawn = _draw(image, [[20, 20, 80, 80]], [0], [0.9])
    assert (image == 127).all()
    assert (drawn != image).any()


def test_only_the_box_and_its_tag_change():
    drawn = _draw(_grey(400, 400), [[150, 100, 350, 300]], [0], [0.9])
    changed = (drawn != 127).any(axis=-1)
    assert changed[150, 100:300].all()
    assert changed[349, 100:300].all()
    assert changed[150:350, 100].all()
    assert changed[150:350, 299].all()
    assert not changed[160:340, 110:290].any()
    assert not changed[:120].any()
    assert not changed[355:].any()
    assert not changed[:, :95].any()
    assert not changed[:, 305:].any()


def test_padding_and_faint_boxes_are_left_out():
    image = _grey(100, 100)
    np.testing.assert_array_equal(_draw(image, [[10, 10, 90, 90]], [-1], [0.0]), image)
    np.testing.assert_array_equal(_draw(image, [[10, 10, 90, 90]], [1], [0.29], score_threshold=0.3), image)
    assert (_draw(image, [[10, 10, 90, 90]], [1], [0.31], score_threshold=0.3) != image).any()


def test_the_best_box_lies_on_top():
    boxes = [[40, 40, 160, 160], [40, 40, 160, 160]]
    for scores, top in (((0.9, 0.5), 0), ((0.5, 0.9), 1)):
        drawn = _draw(_grey(200, 200), boxes, [0, 1], scores)
        assert tuple(drawn[159, 100]) == draw.colour(top)


def test_truth_has_no_percentage():
    truth, detections = (_draw(_grey(300, 300), [[100, 100, 250, 250]], [0], scores) for scores in (None, [0.5]))
    tag_end = [np.nonzero((drawn[92] != 127).any(axis=-1))[0].max() for drawn in (truth, detections)]
    assert tag_end[0] < tag_end[1]


@pytest.mark.parametrize("box", [[-50, -50, -10, -10], [300, 10, 340, 50], [10, 300, 50, 340], [-20, 10, 0, 50]])
def test_a_box_outside_the_image_is_not_drawn(box):
    image = _grey(200, 200)
    np.testing.assert_array_equal(_draw(image, [box], [0], [0.9]), image)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    boxes=st.lists(st.tuples(*[st.floats(-400, 700)] * 4), max_size=12),
    is_truth=st.booleans(),
)
def test_any_box_can_be_drawn_on_any_image(height, width, boxes, is_truth):
    boxes = [(min(a, b), min(c, d), max(a, b), max(c, d)) for a, b, c, d in boxes]
    scores = None if is_truth else np.linspace(0, 1, len(boxes))
    drawn = _draw(_grey(height, width), boxes, np.arange(len(boxes)) % 3, scores)
    assert drawn.shape == (height, width, 3)
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(32, 32), (4000, 3000)])
def test_lines_and_letters_follow_the_image(height, width):
    box = [height * 0.5, width * 0.1, height * 0.9, width * 0.9]
    drawn = _draw(_grey(height, width), [box], [0], [0.98])
    column = (drawn[:, width // 2] == draw.colour(0)).all(axis=-1)
    line = np.count_nonzero(column[round(height * 0.8) :])
    assert line == max(1, round((height + width) * 0.0022))


def test_tags_of_one_place_do_not_cover_each_other():
    font = draw._font(14)
    frames = dict.fromkeys(range(6), (100, 100, 300, 300))
    tags = draw._place_tags(frames, {row: ["disk 50%"] for row in frames}, font, 2, (400, 400))
    for (first, _), (second, _) in itertools.combinations(tags.values(), 2):
        assert draw._overlap(first, second) == 0


def test_a_tag_without_room_is_shortened_then_left_out():
    texts = {0: ["disk 98%", "disk"]}
    frames = {0: (0, 0, 10, 10)}
    font = draw._font(9)
    assert draw._place_tags(frames, texts, font, 1, (100, 100))[0][1] == "disk 98%"
    assert draw._place_tags(frames, texts, font, 1, (30, 30))[0][1] == "disk"
    assert draw._place_tags(frames, texts, font, 1, (10, 10)) == {}


def test_enlarging_keeps_boxes_on_their_objects():
    image = _grey(40, 50)
    image[10:20, 30:45] = 255
    larger, boxes = draw.enlarge(image, np.array([[10, 30, 20, 45]], np.float32), 100)
    assert larger.shape == (120, 150, 3)
    assert boxes.tolist() == [[30, 90, 60, 135]]
    assert (larger[33:57, 93:132] > 250).all()
    same, _ = draw.enlarge(image, np.zeros((0, 4), np.float32), 40)
    assert same is image


def test_side_by_side_holds_both_images_below_their_captions():
    left, right = _grey(60, 80), np.full((60, 80, 3), 10, np.uint8)
    sheet = draw.side_by_side(left, right, ("truth", "a caption that is far too long for such a small image"))
    np.testing.assert_array_equal(sheet[-60:, :80], left)
    np.testing.assert_array_equal(sheet[-60:, -80:], right)
    assert (sheet[:-60, :80] < 100).any()
    assert (sheet[:-60, 80:85] > 200).all()


def test_a_contact_sheet_shows_every_image():
    images = [np.full((20 + number, 30, 3), 40 * number, np.uint8) for number in range(5)]
    sheet = draw.contact_sheet(images, 2)
    for number, photo in enumerate(images):
        assert np.count_nonzero((sheet == 40 * number).all(axis=-1)) == photo[..., 0].size
    assert draw.contact_sheet(images[:1], 4).shape[1] < 40


def test_beyond_300_boxes_the_worst_have_no_tag():
    image = np.full((200, 400, 3), 128, np.uint8)
    many = np.tile(np.array([[10, 10, 40, 40]], np.float32), (300, 1))
    boxes = np.concatenate([many, [[100, 300, 140, 340]]]).astype(np.float32)
    scores = np.linspace(0.9, 0.5, 301).astype(np.float32)
    drawn = draw.draw_detections(image, boxes, np.zeros(301, np.int32), scores, ["cat"])
    changed = np.argwhere((drawn[:, 200:] != 128).any(axis=-1))
    assert changed.min(axis=0).tolist() == [100, 100]
    assert changed.max(axis=0).tolist() == [139, 139], "its frame alone"
