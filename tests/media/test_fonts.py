"""Letters of any script are drawn, or the class is a number that is explained."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from efficientdet.inference.detections import ImageDetections
from efficientdet.media import draw, fonts
from efficientdet.structures import Category

_WITHOUT_LETTERS = "\U0001f9a0\ue000"  # private use: no font has it


@pytest.mark.parametrize("name", ["cat", "café", "señal", "собака", "γάτα", "قطة", "Straße"])
def test_a_name_is_drawn_with_its_own_letters(name):
    assert fonts.show([name]) == [name]
    letters = [letter for letter in name if not letter.isspace()]
    missing = _drawn("\uffff", fonts.load(name, 24))
    assert not any(np.array_equal(_drawn(letter, fonts.load(name, 24)), missing) for letter in letters)


def _drawn(text, font):
    image = Image.new("L", (64, 48))
    ImageDraw.Draw(image).text((8, 8), text, fill=255, font=font)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("name", "numbers", "shown"),
    [
        pytest.param(_WITHOUT_LETTERS, None, "#0", id="no font has it: its position"),
        pytest.param(_WITHOUT_LETTERS, [17], "#17", id="or the number it is given"),
        pytest.param("", [3], "#3", id="nothing to write"),
        pytest.param("ｃａｔ\ue000", [3], "#3", id="one letter is enough"),
    ],
)
def test_a_name_without_letters_is_a_number(name, numbers, shown):
    assert fonts.show([name], numbers) == [shown]


def test_accents_go_where_only_they_are_missing(monkeypatch):
    monkeypatch.setattr(fonts, "_find", lambda letters: None)
    assert fonts.show(["café", "猫"]) == ["cafe", "#1"]


def test_ascii_needs_no_other_font_than_pillow_s():
    assert fonts.load("cat 91%", 12).getname() == ("Aileron", "Regular")


def test_numbers_in_an_image_are_the_ids_of_the_classes(monkeypatch):
    asked = []
    monkeypatch.setattr(draw, "draw_detections", lambda pixels, b, labels, s, names, **_: asked.append(names) or pixels)
    found = ImageDetections(
        size=(8, 8),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        scores=np.zeros(0, np.float32),
        categories=(Category(id=5, name="café"), Category(id=9, name=_WITHOUT_LETTERS)),
    )
    found.draw(np.zeros((8, 8, 3), np.uint8))
    assert asked == [["café", "#9"]]
