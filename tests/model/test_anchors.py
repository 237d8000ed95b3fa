"""Anchors: golden values of google/automl's code, and sizes that the network really makes."""

import dataclasses

import numpy as np
import pytest

from efficientdet import boxes, presets
from efficientdet.config import ModelConfig
from efficientdet.model import anchors
from efficientdet.model.efficientdet import EfficientDet

_D0 = ModelConfig()

# The first place of level 3 of a 512 px image, float64.
_FIRST_NINE = [
    [-12.0, -12.0, 20.0, 20.0],
    [-7.2, -18.4, 15.2, 26.4],
    [-18.4, -7.2, 26.4, 15.2],
    [-16.15873679831797, -16.15873679831797, 24.15873679831797, 24.15873679831797],
    [-10.111115758822578, -24.222231517645156, 18.111115758822578, 32.222231517645156],
    [-24.222231517645156, -10.111115758822578, 32.222231517645156, 18.111115758822578],
    [-21.39841683149119, -21.39841683149119, 29.39841683149119, 29.39841683149119],
    [-13.778891782043832, -31.557783564087664, 21.778891782043832, 39.557783564087664],
    [-31.557783564087664, -13.778891782043832, 39.557783564087664, 21.778891782043832],
]


def _per_level(image_size, max_level=7):
    return [9 * h * w for h, w in anchors.feature_sizes(image_size, max_level)[3:]]


@pytest.fixture(scope="module")
def anchors_512():
    return anchors.anchor_boxes(_D0)


def test_512_has_49104_anchors(anchors_512):
    assert anchors_512.shape == (49104, 4)
    assert anchors_512.dtype == np.float32
    assert _per_level((512, 512)) == [36864, 9216, 2304, 576, 144]


def test_512_starts_with_the_golden_rows(anchors_512):
    np.testing.assert_allclose(anchors_512[:9], _FIRST_NINE, rtol=1e-6)


def test_512_ends_with_the_golden_row(anchors_512):
    expected = [-120.92453702540263, 163.5377314872987, 1016.9245370254026, 732.4622685127013]
    np.testing.assert_allclose(anchors_512[-1], expected, rtol=1e-6)


def test_512_has_the_golden_sum_and_mean(anchors_512):
    # float64 sums of float32 numbers: each is off by up to 3e-5, the errors mostly cancel.
    assert anchors_512.sum(dtype=np.float64) == pytest.approx(50282496.0, abs=1.0)
    mean = [225.15924424196882, 225.1592442419489, 286.8407557580439, 286.84075575806764]
    np.testing.assert_allclose(anchors_512.mean(axis=0, dtype=np.float64), mean, rtol=1e-6)


def test_each_level_of_512_starts_with_a_square_of_twice_the_side(anchors_512):
    starts = np.cumsum([0, 36864, 9216, 2304, 576])
    expected = [[-12 * f, -12 * f, 20 * f, 20 * f] for f in (1, 2, 4, 8, 16)]
    np.testing.assert_array_equal(anchors_512[starts], expected)


def test_511_x_513_matches_the_golden_values():
    odd = anchors.anchor_boxes(_D0, (511, 513))
    assert _per_level((511, 513)) == [37440, 9504, 2448, 648, 180]
    assert len(odd) == 50220
    np.testing.assert_allclose(odd[0], [-11.9765625, -11.838461538461539, 19.9609375, 19.730769230769234], rtol=1e-6)
    np.testing.assert_allclose(
        odd[-1], [-120.68835628902491, 233.6857128952878, 1014.9383562890249, 689.7142871047121], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("size", "max_level", "count"),
    [
        (640, 7, 76725),
        (768, 7, 110484),
        (896, 7, 150381),
        (1024, 7, 196416),
        (1280, 7, 306900),
        (1536, 7, 441936),
        (1536, 8, 442260),
    ],
)
def test_a_size_has_its_number_of_anchors(size, max_level, count):
    config = dataclasses.replace(_D0, image_size=(size, size), max_level=max_level)
    assert sum(_per_level((size, size), max_level)) == count
    assert size > 1024 or len(anchors.anchor_boxes(config)) == count


def test_aspect_ratios_are_width_then_height(anchors_512):
    y1, x1, y2, x2 = anchors_512[1]
    assert x2 - x1 == pytest.approx(1.4 * 32)
    assert y2 - y1 == pytest.approx(0.7 * 32)


def test_octaves_grow_by_the_cube_root_of_2(anchors_512):
    areas = np.asarray(boxes.area(anchors_512[:9])).reshape(3, 3)
    np.testing.assert_allclose(areas[1:] / areas[:-1], 4 ** (1 / 3), rtol=1e-5)


def test_anchors_go_along_a_row_first():
    tall = anchors.anchor_boxes(_D0, (64, 128))
    centers = (tall[:, :2] + tall[:, 2:]) / 2
    np.testing.assert_allclose(centers[:: anchors.anchors_per_cell(_D0)][:18:16], [[4, 4], [12, 4]], atol=1e-5)
    np.testing.assert_allclose(centers[9], [4, 12], atol=1e-5)


def test_the_scale_of_d7_makes_larger_anchors():
    d7 = anchors.anchor_boxes(presets.MODELS["d7"], (512, 512))
    np.testing.assert_array_equal(d7[0], [-16, -16, 24, 24])


def test_feature_sizes_halve_and_round_up():
    expected = [(511, 513), (256, 257), (128, 129), (64, 65), (32, 33), (16, 17), (8, 9), (4, 5)]
    assert anchors.feature_sizes((511, 513), 7) == expected


def test_the_network_makes_one_prediction_an_anchor_at_odd_sizes(tiny):
    size = (67, 101)
    model = EfficientDet(tiny)
    image = np.zeros((1, *size, 3), np.uint8)
    features = model.feature_network(model.backbone(model.normalize(image)))
    assert [tuple(x.shape[1:3]) for x in features] == anchors.feature_sizes(size, 7)[3:]
    assert model.class_head(features).shape == (1, len(anchors.anchor_boxes(tiny, size)), tiny.num_classes)
