"""Reads image files of all common formats as uint8 RGB, or re-encodes them as plain JPEG.

Images are untrusted, so the header is checked before pixels are decoded, a file that decodes only in part is refused,
and each refusal is a `UserError` that names the file. Needs only Pillow, not TensorFlow or Keras.

Choices on which image readers differ:
- EXIF rotation is applied (PyTorch's and TensorFlow's decoders ignore it; people and phones do not).
- A transparent image is composited over white, as in a browser; dropping the alpha channel would reveal whatever color
  an editor left in the transparent part.
- 16 bits become 8 by round(v / 257), so that 65535 is 255. Values beyond 16 bits and floats have no agreed white, so
  they are refused.
"""

import contextlib
import dataclasses
import glob
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, features

from efficientdet.errors import UserError


class UnknownFormatError(UserError):
    """The file is not an image of a supported format."""


class TooManyPixelsError(UserError):
    """The image is larger than `MAX_PIXELS`."""


MAX_PIXELS = 178_956_970
"""Maximum number of pixels to decode (0.5 GB as RGB): Pillow's own limit for a decompression bomb."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".avif", ".heic", ".heif"),
)
"""Suffixes of image files, lower case."""

# Pillow opens the photographs with an embedded second image that phones write (MPO) as JPEG.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
# Brands in the first box of an ISO 14496-12 file.
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# Formats with several images of equal rank. The second image of an MPO is a preview or a depth map.
_OF_SEVERAL = ("GIF", "WEBP", "TIFF", "PNG", "AVIF")
_SUBFILE_TYPE = 254  # of a TIFF's page; bit 0: a reduced copy of another page, bit 2: a mask
_EXIF_ORIENTATION = 0x0112
# Start-of-frame markers: baseline, extended sequential, progressive. Few decoders support lossless or arithmetic JPEG.
_COMMON_FRAMES = (0xC0, 0xC1, 0xC2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What the header of an image file says.

    Attributes:
        format: Pillow's name of the file format, such as "JPEG".
        mode: Pillow's name of the pixel type, such as "RGB", "L", "CMYK", "I;16".
        height: stored rows, px, before any rotation.
        width: stored columns, px.
        orientation: EXIF orientation 1..8; 1 is upright.
        is_plain_jpeg: whether any decoder can read it: baseline or progressive JPEG, RGB or gray.
        has_more_frames: whether it is an animation or has several pages.
        decoded_pixels: number of pixels to decode: more than the image has if a TIFF's tiles are larger than it.
    """

    format: str
    mode: str
    height: int
    width: int
    orientation: int
    is_plain_jpeg: bool
    has_more_frames: bool
    decoded_pixels: int

    @property
    def stored_size(self) -> tuple[int, int]:
        """Returns the height and width in the file, px."""
        return self.height, self.width

    @property
    def upright_size(self) -> tuple[int, int]:
        """Returns the height and width after the EXIF rotation, px."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_image(source: Path | bytes, name: str) -> np.ndarray:
    """Decodes an image, upright.

    Args:
        source: the file or its content.
        name: name of the image in errors.

    Returns:
        uint8[H, W, 3], RGB.

    Raises:
        UserError: the file is missing, not an image, truncated, or larger than `MAX_PIXELS`.
    """
    with _open(source, name) as image:
        return upright(image, name)


def upright(image: Image.Image, name: str) -> np.ndarray:
    """Returns the pixels of a Pillow image, rotated upright according to its EXIF orientation.

    Args:
        image: an open image; its current frame is used.
        name: name of the image in errors.

    Returns:
        uint8[H, W, 3], RGB.

    Raises:
        UserError: it is damaged, larger than `MAX_PIXELS`, or its pixels have no agreed white.
    """
    with _explained(name):
        _check_pixels(image)
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image), name))


def read_frames(source: Path | bytes, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes every frame of an animation or page of a TIFF, one at a time; most files have one.

    Skips reduced copies and masks among the pages of a TIFF.

    Args:
        source: the file or its content.
        name: name of the image in errors.

    Yields:
        The number of frames, and a frame: uint8[H, W, 3], RGB, upright; sizes may differ.

    Raises:
        UserError: as in `read_image`; frames before a damaged one are still yielded.
    """
    content = source if isinstance(source, bytes) else read_file(source, name)
    with contextlib.ExitStack() as closed_at_the_end:
        with _explained(name), _quiet():  # not across a yield: other code that runs in between may warn
            image = closed_at_the_end.enter_context(_opened(content, name))
            places = _frame_places(image)
        for place in places:
            with _explained(name), _quiet():
                if place:
                    image.seek(place)
                pixels = upright(image, name)
            yield len(places), pixels


def count_frames(source: Path | bytes, name: str) -> int:
    """Counts the frames that `read_frames` yields, without decoding pixels."""
    with _open(source, name) as image:
        return len(_frame_places(image))


def _frame_places(image: Image.Image) -> list[int]:
    """Finds the frames of equal rank in an open file."""
    count = getattr(image, "n_frames", 1) if image.format in _OF_SEVERAL else 1
    if count == 1 or not isinstance(image, TiffImagePlugin.TiffImageFile):
        return list(range(count))
    places = []
    for place in range(count):
        image.seek(place)
        if not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & 0b101:
            places.append(place)
    image.seek(0)
    return places or [0]


def inspect(source: Path | bytes, name: str) -> Facts:
    """Reads the header of an image, without decoding pixels."""
    content = source if isinstance(source, bytes) else read_file(source, name)
    with _open(content, name) as image:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        is_plain = image.format == "JPEG" and image.mode in ("RGB", "L") and _frame_type(content) in _COMMON_FRAMES
        return Facts(
            format=image.format or "",
            mode=image.mode,
            height=image.height,
            width=image.width,
            orientation=orientation if orientation in range(1, 9) else 1,
            is_plain_jpeg=is_plain,
            has_more_frames=image.format in _OF_SEVERAL and bool(getattr(image, "is_animated", False)),
            decoded_pixels=_decoded_pixels(image),
        )


def check_decodes(source: Path | bytes, name: str) -> None:
    """Raises a UserError unless every pixel of the image can be decoded."""
    with _open(source, name) as image:
        image.load()


def to_jpeg(source: Path | bytes, name: str, *, rotate: bool = True) -> bytes:
    """Re-encodes an image as RGB JPEG without EXIF: quality 95, no chroma subsampling (4:4:4).

    Args:
        source: the file or its content.
        name: name of the image in errors.
        rotate: apply the EXIF rotation first.
    """
    with _open(source, name) as image:
        rgb = _to_rgb(ImageOps.exif_transpose(image) if rotate else image, name)
        if max(rgb.size) > 65_500:
            raise UserError(
                f"`{name}` is {rgb.height} x {rgb.width} px; a JPEG can have at most 65500 px per side. "
                "Make it smaller."
            )
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=95, subsampling=0, exif=b"")
        return buffer.getvalue()


def read_file(path: Path, name: str) -> bytes:
    """Reads an image file without parsing it.

    Raises:
        UserError: it is missing or cannot be read.
    """
    if path.is_dir():
        raise UserError(f"`{name}` is a folder; expected an image file.")
    if not path.is_file():
        others = sorted(other.name for other in path.parent.glob(f"{glob.escape(path.stem)}.*") if other.is_file())
        hint = f", but there is {others[0]}" if others else ""
        raise UserError(f"`{name}` is missing: there is no file {path}{hint}.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"`{name}` cannot be read: {error.strerror}.") from error


def strip_exif(jpeg: bytes) -> bytes:
    """Removes the EXIF block of a JPEG, and with it the rotation; the pixels don't change."""
    kept = [jpeg[:2]]
    for marker, start, end in _segments(jpeg):
        if not (marker == 0xE1 and jpeg[start + 4 : start + 10] == b"Exif\x00\x00"):
            kept.append(jpeg[start:end])
    return b"".join(kept)


@contextlib.contextmanager
def _open(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Opens an image; anything Pillow raises inside the block becomes a UserError that names the file."""
    content = source if isinstance(source, bytes) else read_file(source, name)
    with _explained(name), _quiet(), _opened(content, name) as image:
        yield image


def _opened(content: bytes, name: str) -> Image.Image:
    """Opens the content of a file and checks its header."""
    further = _further_formats(content, name)
    try:
        image = Image.open(io.BytesIO(content), formats=(*_FORMATS, *further))
    except UnidentifiedImageError:
        if further:  # its first bytes identify the format
            raise UserError(f"`{name}` cannot be decoded; it is damaged or truncated.") from None
        raise UnknownFormatError(
            f"`{name}` is not a supported image{_what_else(content)}; expected {', '.join(_FORMATS)}."
        ) from None
    _check_pixels(image)
    return image


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow's warnings about files that it can still read: broken EXIF, odd palettes, large images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _further_formats(content: bytes, name: str) -> tuple[str, ...]:
    """Detects AVIF and HEIC, which Pillow cannot always read, and registers a decoder if needed.

    Raises:
        UserError: the decoder is not installed.
    """
    if content[4:8] != b"ftyp":
        return ()
    brand = content[8:12]
    if brand in _AVIF_BRANDS and features.check("avif"):
        return ("AVIF",)
    if brand not in (*_AVIF_BRANDS, *_HEIC_BRANDS):
        return ()
    kind = "AVIF" if brand in _AVIF_BRANDS else "HEIC"
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        raise UserError(
            f"`{name}` is {kind}, which needs pillow-heif; run `pip install 'efficientdet-keras[heif]'`."
        ) from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _what_else(content: bytes) -> str:
    """Describes a file that is not an image, if its first bytes show what it is."""
    start = content[:512].lstrip().lower()
    if not content:
        return " (it is an empty file)"
    if start.startswith(b"version https://git-lfs"):
        return " (it is a Git LFS pointer; run `git lfs pull` to download the image)"
    if start.startswith((b"<!doctype html", b"<html")):
        return " (it is a web page, perhaps a server's error page)"
    return ""


def _check_pixels(image: Image.Image) -> None:
    if _decoded_pixels(image) > MAX_PIXELS:
        raise Image.DecompressionBombError


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns anything Pillow raises inside the block into a UserError that names the image."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise TooManyPixelsError(f"`{name}` has more than {MAX_PIXELS:,} pixels; make it smaller.") from None
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"`{name}` cannot be decoded; it is damaged or truncated: {reason}.") from error


def _decoded_pixels(image: Image.Image) -> int:
    """Counts the pixels to decode; a TIFF of 10 x 10 px may have one tile of gigabytes."""
    pixels = image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
        width, height = (int(image.tag_v2.get(tag, 0)) for tag in tags)
        pixels = max(pixels, width * height)
    return pixels


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Converts any pixel type to 8-bit RGB; see the choices in the module docstring."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "F":
        raise UserError(f"`{name}` has floating-point pixels, whose range is unknown; save it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"`{name}` has pixel values {values.min()}..{values.max()}; save it with 8 or 16 bits.")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _frame_type(jpeg: bytes) -> int:
    """Finds the start-of-frame marker of a JPEG, or 0 if there is none."""
    frames = (marker for marker, _, _ in _segments(jpeg) if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))
    return next(frames, 0)


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of each segment after the first two bytes; the last one is all scan data."""
    start = 2
    while start + 4 <= len(jpeg):
        marker, end = jpeg[start + 1], start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
        if jpeg[start] != 0xFF or marker == 0xDA:
            break
        if marker == 0xFF:  # a fill byte may precede any marker
            end = start + 1
        yield marker, start, end
        start = end
    yield 0xDA, start, len(jpeg)
