"""Whatever a caller has an image in; everything else is told what it is."""

import base64
import io
import os
import sys

import little_server
import numpy as np
import pytest
from PIL import Image

from efficientdet.errors import UserError
from efficientdet.media import images, inputs


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)


def _encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_one_image_has_the_same_pixels_however_it_is_given(pixels, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content = _encode(Image.fromarray(pixels))
    path = tmp_path / "a b.png"
    path.write_bytes(content)

    class Named:
        def __fspath__(self):
            return str(path)

    coded = base64.b64encode(content).decode()
    given = [pixels, Image.fromarray(pixels), path, str(path), os.fspath(path), Named(), path.as_uri()]
    given += [content, bytearray(content), memoryview(content), io.BytesIO(content), f"data:image/png;base64,{coded}"]
    for each in given:
        assert inputs.is_one(each)
        np.testing.assert_array_equal(inputs.to_array(each), pixels)
    with path.open("rb") as file:
        np.testing.assert_array_equal(inputs.to_array(file), pixels)
    with path.open("rb") as file:
        kept = inputs.to_keep(file)
    np.testing.assert_array_equal(inputs.to_array(kept), pixels)
    with little_server.serve() as server:
        server.files["/a.png"] = little_server.File(content=content)
        np.testing.assert_array_equal(inputs.to_array(f"{server.address}/a.png?key=1"), pixels)
        with pytest.raises(UserError, match=r"/no\.png` does not exist"):
            inputs.to_array(f"{server.address}/no.png")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param(None, r"`image` is None \(`cv2\.imread` returns it", id="None"),
        pytest.param(3, "`image` is of type int; expected a path, a URL, bytes", id="a number"),
        pytest.param({"a": 1}, "`image` is of type dict", id="a dictionary"),
        pytest.param(b"", "`image` is empty; expected the bytes", id="no bytes"),
        pytest.param(b"hello", "`image` is not a supported image", id="other bytes"),
        pytest.param("", "`image` is an empty string", id="no name"),
        pytest.param("no.jpg", r"`no\.jpg` is missing", id="a file that is not there"),
        pytest.param("ftp://host/a.jpg", "is not a supported URL", id="another address"),
        pytest.param("data:image/png,abc", "is a data: URL without base64", id="data without base64"),
        pytest.param("data:image/png;base64,???", "is not valid base64", id="damaged base64"),
        pytest.param(
            io.BytesIO(), r"has no bytes left to read; open it again, or call `seek\(0\)`", id="a file at its end"
        ),
        pytest.param(io.StringIO("abc"), "is open in text mode; open it with mode 'rb'", id="a file of text"),
        pytest.param(io.TextIOWrapper(io.BytesIO(b"\xff\xd8")), "is open in text mode", id="an image open as text"),
        pytest.param(
            "/9j/" * 5000, "is a string of 20000 characters, too long for a path; if it is base64", id="bare base64"
        ),
        pytest.param(os.path.dirname(__file__), "is a folder; expected an image file", id="a directory"),  # noqa: PTH120
        pytest.param(np.zeros((8, 8, 3)), r"float64\[8, 8, 3\].*\(255 \* image\)", id="floats"),
        pytest.param(np.zeros((8, 8), np.uint8), r"uint8\[8, 8\].*np\.stack\(\[image\] \* 3", id="grey"),
        pytest.param(np.zeros((8, 8, 1), np.uint8), r"image\.repeat\(3", id="grey with a channel"),
        pytest.param(np.zeros((8, 8, 4), np.uint8), r"image\[\.\.\., :3\]", id="with alpha"),
        pytest.param(np.zeros((3, 8, 8), np.uint8), r"np\.moveaxis\(image, 0, -1\)", id="channels first"),
        pytest.param(np.zeros((2, 8, 8, 3), np.uint8), "several images as a list", id="several"),
        pytest.param(np.zeros((8, 8, 3), np.uint16), r"uint16\[8, 8, 3\]; expected uint8.* in RGB", id="16 bits"),
    ],
)
def test_everything_else_gets_a_message_that_fits(given, said):
    with pytest.raises(UserError, match=said) as caught:
        inputs.to_array(given)
    assert "\n" not in str(caught.value)


def _animation(format, colours=(250, 130, 10)):
    frames = [Image.new("RGB", (20, 10), (level, 0, 0)) for level in colours]
    options = {"lossless": True} if format == "WEBP" else {}
    return _encode(frames[0], format, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_all_frames_are_read_and_of_one_alone_it_is_said(format):
    content = _animation(format)
    assert images.count_frames(content, "a") == 3
    assert images.inspect(content, "a").has_more_frames
    found = list(images.read_frames(content, "a"))
    assert [total for total, _ in found] == [3, 3, 3]
    assert all(abs(int(frame[5, 5, 0]) - level) < 12 for (_, frame), level in zip(found, (250, 130, 10), strict=True))
    with pytest.warns(UserWarning, match="`image` has 3 frames; only the first is used"):
        first = inputs.to_array(content)
    np.testing.assert_array_equal(first, found[0][1])


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG", "JPEG", "BMP"])
def test_a_still_image_has_one_frame(format, pixels):
    content = _encode(Image.fromarray(pixels), format)
    assert not images.inspect(content, "a").has_more_frames
    ((total, frame),) = images.read_frames(content, "a")
    assert total == images.count_frames(content, "a") == 1
    np.testing.assert_array_equal(frame, images.read_image(content, "a"))


def test_reduced_copies_in_a_tiff_are_no_pages():
    pages = [Image.new("L", (40, 20), 9), Image.new("L", (20, 10), 9), Image.new("L", (30, 20), 9)]
    for page, kind in zip(pages, (0, 1, 0), strict=True):
        page.encoderinfo = {"tiffinfo": {254: kind}}
    content = _encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert [frame.shape[:2] for _, frame in images.read_frames(content, "a")] == [(20, 40), (20, 30)]


def test_a_frame_that_is_damaged_comes_after_those_that_are_not():
    content = _animation("TIFF")
    cut = content[: _strips(content)[2] - 4]
    frames = images.read_frames(cut, "cut")
    with pytest.raises(UserError, match="`cut`"):
        for _ in frames:
            pass


def _strips(content):
    """Finds where the strips of each page of a TIFF begin."""
    with Image.open(io.BytesIO(content)) as image:
        places = []
        for place in range(image.n_frames):
            image.seek(place)
            places.append(image.tag_v2[273][0])
        return places


def test_heic_without_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = b"\x00\x00\x00\x18ftypheic" + bytes(20)
    with pytest.raises(UserError, match=r"`a\.heic` is HEIC, which needs pillow-heif.*efficientdet-keras\[heif\]"):
        images.read_image(content, "a.heic")


def test_heic_is_read_upright(pixels):
    """What a telephone writes: HEVC with an EXIF rotation, which libheif applies."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    large = pixels.repeat(16, axis=0).repeat(16, axis=1)
    turned = Image.Exif()
    turned[0x0112] = 6
    content = _encode(Image.fromarray(large), "HEIF", quality=95, exif=turned.tobytes())
    assert images.inspect(content, "a").format == "HEIF"
    found = images.read_image(content, "a").astype(int)
    np.testing.assert_allclose(found[8::16, 8::16], np.rot90(pixels, -1), atol=12)
    with pytest.raises(UserError, match="`a` cannot be decoded; it is damaged or truncated"):
        images.read_image(content[: len(content) // 2], "a")


def test_avif_is_read_where_pillow_can(pixels):
    from PIL import features

    if not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    large = pixels.repeat(8, axis=0).repeat(8, axis=1)
    content = _encode(Image.fromarray(large), "AVIF", quality=95)
    assert images.inspect(content, "a").format == "AVIF"
    np.testing.assert_allclose(images.read_image(content, "a")[4::8, 4::8].astype(int), pixels, atol=40)
