"""The page for people, in a real browser: an image, the threshold, the keyboard, a phone, the download."""

import base64
import json
import time

import little_browser
import little_service
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(little_browser.missing() is not None, reason=str(little_browser.missing())),
]
_BOXES = "document.querySelectorAll('.box').length"
_FOCUS = "return document.activeElement.id || document.activeElement.className"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with little_browser.run(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "two <b>words.png"
    path.write_bytes(little_service.encode(little_service.image(3)))
    return path


@pytest.fixture
def page(service, browser):
    browser.open(service.address)
    browser.wait("document.body.dataset.ready")
    return browser


def _count(service, file, threshold):
    answer = service.detect(file.read_bytes(), f"?score_threshold={threshold}")
    return len(answer.json["images"][0]["detections"])


def _choose(page, file):
    page.type("#file", str(file))
    page.wait(f"{_BOXES} > 0")


def test_a_chosen_image_is_shown_with_its_boxes(page, service, file):
    _choose(page, file)
    assert page.run(f"return {_BOXES}") == _count(service, file, 0.3) > 2
    assert page.run("return document.querySelectorAll('#list li').length") == _count(service, file, 0.3)
    found = service.detect(file.read_bytes(), "?score_threshold=0.3").json["images"][0]
    shown = page.run(
        "const [box, image] = ['.box', '#image'].map("
        "(each) => document.querySelector(each).getBoundingClientRect());"
        "return [box.left - image.left, box.top - image.top, box.width, box.height].map("
        "(side, place) => side / (place % 2 ? image.height : image.width))"
    )
    box = found["detections"][0]["box"]
    width, height = found["width"], found["height"]
    expected = [
        box["x1"] / width,
        box["y1"] / height,
        (box["x2"] - box["x1"]) / width,
        (box["y2"] - box["y1"]) / height,
    ]
    assert shown == pytest.approx(expected, abs=0.005)
    assert "two <b>words.png, 90 × 70 pixels" in page.run("return document.getElementById('status').textContent")


def test_the_threshold_moves_by_keyboard_and_hides_boxes(page, service, file):
    _choose(page, file)
    page.run("document.getElementById('threshold').focus()")
    page.press(*[little_browser.RIGHT] * 10)
    assert page.run("return document.getElementById('value').textContent") == "40%"
    assert page.run(f"return {_BOXES}") == _count(service, file, 0.4) < _count(service, file, 0.3)
    page.press(*[little_browser.LEFT] * 20)
    assert page.run(f"return {_BOXES}") == _count(service, file, 0.2) > _count(service, file, 0.3)


def test_everything_is_reached_by_keyboard_in_order(page, file):
    _choose(page, file)
    page.run("document.activeElement.blur()")
    reached = []
    for _ in range(8):
        page.press(little_browser.TAB)
        reached.append(page.run(_FOCUS))
    assert reached[1:4] == ["file", "threshold", "chip"]
    assert "row" in reached
    assert page.run("return document.querySelectorAll('.box.lit').length") == 1, "the row in focus lights its box"
    page.run("document.querySelector('.chip').focus()")
    before = page.run(f"return {_BOXES}")
    page.press(little_browser.SPACE)
    assert page.run(f"return {_BOXES}") < before
    assert page.run("return document.activeElement.getAttribute('aria-pressed')") == "false"
    page.press(little_browser.SPACE)
    assert page.run(f"return {_BOXES}") == before


def test_what_is_shown_is_downloaded(page, service, file, tmp_path):
    page.save_downloads(tmp_path)
    _choose(page, file)
    page.run("document.getElementById('download').focus()")
    page.press(little_browser.ENTER)
    until = time.monotonic() + 20
    while not (found := list(tmp_path.glob("*.json"))):
        assert time.monotonic() < until
        time.sleep(0.05)
    downloaded = json.loads(found[0].read_text())
    expected = service.detect(file.read_bytes(), "?score_threshold=0.3").json
    assert downloaded["images"][0].pop("name") == file.name
    del expected["images"][0]["name"]
    assert downloaded == expected


def test_a_dropped_image_is_detected_in_and_a_refusal_is_told(page, file):
    drop = (
        "const moved = new DataTransfer();"
        "moved.items.add(new File([Uint8Array.from(atob(arguments[0]), (each) => each.charCodeAt(0))], arguments[1],"
        " { type: 'image/png' }));"
        "document.getElementById('drop').dispatchEvent("
        "new DragEvent('drop', { dataTransfer: moved, bubbles: true, cancelable: true }))"
    )
    page.run(drop, base64.b64encode(file.read_bytes()).decode(), file.name)
    page.wait(f"{_BOXES} > 0")
    page.run(drop, base64.b64encode(b"<svg onload='alert(1)'>").decode(), "a.svg")
    page.wait("!document.getElementById('error').hidden")
    assert "is not a supported image" in page.run("return document.getElementById('error').textContent")
    assert page.run(f"return {_BOXES}") == 0
    assert page.run("return document.getElementById('download').disabled")


def test_a_phone_sees_all_of_it(page, file, tmp_path):
    page.resize(360, 740)
    try:
        _choose(page, file)
        assert page.run("return document.documentElement.scrollWidth") <= 360
        narrow = page.run(
            "return [...document.querySelectorAll('.button, #download, .chip, .row')].filter("
            "(each) => each.getBoundingClientRect().height < 36).length"
        )
        assert narrow == 0, "a thumb hits every button"
        page.take_screenshot(tmp_path / "phone.png")
        assert (tmp_path / "phone.png").stat().st_size > 10_000
    finally:
        page.resize(1280, 860)


def test_every_control_has_a_name_and_nothing_comes_from_elsewhere(page, service, file):
    _choose(page, file)
    unnamed = page.run(
        "return [...document.querySelectorAll('button, input, a, img')].filter((each) =>"
        " !(each.textContent.trim() || each.labels?.length || each.hasAttribute('alt'))).length"
    )
    assert unnamed == 0
    loaded = page.run("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert loaded
    assert all(name.startswith((service.address, f"blob:{service.address}")) for name in loaded)
