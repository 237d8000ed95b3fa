"""Images of every kind become upright RGB; what is not an image is refused by name."""

import io

import hostile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efficientdet.errors import UserError
from efficientdet.media import images

# 16 x 24 px: large enough for JPEG's blocks to keep four flat colours apart.
_PIXELS = np.zeros((16, 24, 3), np.uint8)
_PIXELS[:8, :8], _PIXELS[:8, 8:], _PIXELS[8:, :8], _PIXELS[8:, 8:] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (200, 200, 200),
)


def _encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}),
    ],
)
def test_every_format_gives_the_same_pixels(format, options):
    pixels = images.read_image(_encode(Image.fromarray(_PIXELS), format, **options), "image")
    assert pixels.dtype == np.uint8
    # 3 levels: JPEG rounds in YCbCr.
    np.testing.assert_allclose(pixels.astype(int), _PIXELS, atol=3 if format == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16", "I"])
def test_every_pixel_type_becomes_rgb(mode):
    grey = Image.fromarray(np.full((16, 24), 255, np.uint8))
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((16, 24), 65535, np.uint16 if mode == "I;16" else np.int32))
    else:
        image = grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)
    pixels = images.read_image(_encode(image, "TIFF"), "image")
    np.testing.assert_array_equal(pixels, np.full((16, 24, 3), 255))


def test_sixteen_bits_are_scaled_and_not_cut():
    values = np.asarray([[0, 257, 128 * 257, 65535]], np.uint16)
    pixels = images.read_image(_encode(Image.fromarray(values), "PNG"), "image")
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 128, 255])


def test_a_transparent_image_lies_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, 2:, 3] = 255
    pixels = images.read_image(_encode(Image.fromarray(rgba), "PNG"), "image")
    np.testing.assert_array_equal(pixels[:, :2], 255)
    np.testing.assert_array_equal(pixels[:, 2:], 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    stored = {
        1: _PIXELS,
        2: _PIXELS[:, ::-1],
        3: _PIXELS[::-1, ::-1],
        4: _PIXELS[::-1],
        5: _PIXELS.swapaxes(0, 1),
        6: np.rot90(_PIXELS, 1),
        7: np.rot90(_PIXELS.swapaxes(0, 1), 2),
        8: np.rot90(_PIXELS, -1),
    }[orientation]
    content = _encode(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=_exif(orientation))
    np.testing.assert_array_equal(images.read_image(content, "image"), _PIXELS)
    facts = images.inspect(content, "image")
    assert facts.orientation == orientation
    assert facts.upright_size == (16, 24)
    assert facts.stored_size == stored.shape[:2]


def test_only_a_common_jpeg_is_plain():
    image = Image.fromarray(_PIXELS)
    assert images.inspect(_encode(image, "JPEG"), "image").is_plain_jpeg
    assert images.inspect(_encode(image, "JPEG", progressive=True), "image").is_plain_jpeg
    assert images.inspect(_encode(image.convert("L"), "JPEG"), "image").is_plain_jpeg
    assert not images.inspect(_encode(image.convert("CMYK"), "JPEG"), "image").is_plain_jpeg
    assert not images.inspect(_encode(image, "PNG"), "image").is_plain_jpeg


def test_a_new_jpeg_is_plain_upright_and_close():
    content = _encode(Image.fromarray(np.ascontiguousarray(np.rot90(_PIXELS))), "PNG", exif=_exif(6))
    jpeg = images.to_jpeg(content, "image")
    facts = images.inspect(jpeg, "image")
    assert facts.is_plain_jpeg
    assert facts.orientation == 1
    assert facts.stored_size == (16, 24)
    # 12 levels: quality 95 rings a little at the hard edges of the four colours.
    np.testing.assert_allclose(images.read_image(jpeg, "image").astype(int), _PIXELS, atol=12)


def test_stripping_exif_removes_the_rotation_and_keeps_the_pixels():
    tagged = _encode(Image.fromarray(_PIXELS), "JPEG", exif=_exif(6))
    plain = images.strip_exif(tagged)
    assert images.inspect(plain, "image").orientation == 1
    np.testing.assert_array_equal(
        images.read_image(plain, "image"), images.read_image(_encode(Image.fromarray(_PIXELS), "JPEG"), "image")
    )
    assert images.strip_exif(plain) == plain


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_cut_short_is_refused_by_name(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = _encode(Image.fromarray(noise), format)[:-500]
    for read in (images.read_image, images.check_decodes, images.to_jpeg):
        with pytest.raises(UserError, match="`cut`") as caught:
            read(content, "cut")
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="`notes`"):
        images.read_image(b"not an image", "notes")
    with pytest.raises(UserError, match=r"`gone` is missing"):
        images.read_image(tmp_path / "gone.jpg", "gone")
    with pytest.raises(UserError, match="`folder`"):
        images.read_image(tmp_path, "folder")


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = _encode(Image.new("1", (14_000, 14_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(UserError, match="`bomb` has more than 178,956,970 pixels"):
        images.read_image(bomb, "bomb")


def test_a_tiff_is_judged_by_its_tiles_too():
    small = hostile.tile_bomb(500)
    assert images.inspect(small, "small").decoded_pixels == 250_000
    assert images.read_image(small, "small").shape == (10, 10, 3)
    with pytest.raises(images.TooManyPixelsError, match="`bomb` has more than 178,956,970 pixels"):
        images.read_image(hostile.tile_bomb(14_000), "bomb")


def test_floating_point_pixels_are_refused():
    content = _encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(UserError, match="`heights` has floating-point pixels"):
        images.read_image(content, "heights")


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_give_an_image_or_a_user_error(data):
    format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"]))
    content = bytearray(_encode(Image.fromarray(_PIXELS), format))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    try:
        images.inspect(bytes(content), "damaged")
        pixels = images.read_image(bytes(content), "damaged")
    except UserError as error:
        assert "`damaged`" in str(error)  # noqa: PT017 - either outcome is right
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert pixels.ndim == 3
