"""Converts any kind of image to upright pixels: arrays, Pillow images, paths, bytes, open files and URLs.

Arrays must be RGB. OpenCV's `imread` returns BGR: reverse it with `image[..., ::-1]`; the two cannot be told apart by
their values. Only the first frame of a file is used, with a warning if there are more.
"""

import base64
import binascii
import errno
import io
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image

from efficientdet.errors import UserError
from efficientdet.media import images

AnyImage = np.ndarray | Image.Image | os.PathLike | str | bytes | bytearray | memoryview | BinaryIO
"""uint8[h, w, 3] (RGB, upright), a Pillow image, a path, a URL (http, https, file, data), the bytes of a file, or a
file that is open for reading in binary mode."""

_EXPECTED = "expected a path, a URL, bytes, an open file, a Pillow image, or uint8[height, width, 3] in RGB"
_ADDRESS = re.compile(r"(https?|file|data):", re.IGNORECASE)


def is_one(value: object) -> bool:
    """Returns whether a value is one image rather than several."""
    return isinstance(value, np.ndarray | Image.Image | os.PathLike | str | bytes | bytearray | memoryview) or _is_file(
        value
    )


def to_array(image: AnyImage, name: str | None = None) -> np.ndarray:
    """Returns the upright pixels of any kind of image.

    Args:
        image: see `AnyImage`.
        name: name of the image in errors; None means its path, or `image`.

    Returns:
        uint8[H, W, 3], RGB; an array is returned unchanged.

    Raises:
        UserError: the value is not an image, or `images.read_image` refuses the file.
    """
    if isinstance(image, np.ndarray):
        return _check_array(image, name or "image")
    if isinstance(image, Image.Image):
        return images.upright(image, name or str(getattr(image, "filename", "")) or "image")
    source, shown = _content(image, name)
    content = source if isinstance(source, bytes) else images.read_file(source, shown)
    if (count := images.count_frames(content, shown)) > 1:
        warnings.warn(
            f"`{shown}` has {count} frames; only the first is used. `efficientdet predict` processes all of them.",
            stacklevel=2,
        )
    return images.read_image(content, shown)


def to_keep(image: Any) -> Any:
    """Returns an image in a form that can be read again: an open file becomes bytes, anything else is unchanged."""
    if not _is_file(image) or isinstance(image, Image.Image):
        return image
    return _content(image, None)[0]


def decode_base64(text: str, name: str) -> bytes:
    """Decodes an image file in base64, with or without `data:image/...;base64,` in front.

    Args:
        text: may have line breaks and use the URL-safe alphabet.
        name: name of the image in errors.

    Raises:
        UserError: it is empty or not valid base64.
    """
    head, comma, body = text.partition(",")
    if text[:5].lower() != "data:":
        body = text
    elif not comma or not head.lower().endswith(";base64"):
        raise UserError(f"`{name}` is a data: URL without base64; expected data:image/...;base64,...")
    compact = "".join(body.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        content = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"`{name}` is not valid base64; expected the bytes of an image file in base64.") from error
    if not content:
        raise UserError(f"`{name}` is empty; expected the bytes of an image file in base64.")
    return content


def _content(image: Any, name: str | None) -> tuple[Path | bytes, str]:
    """Returns the path or content of an image file, and its name."""
    if isinstance(image, bytes | bytearray | memoryview):
        if not len(image):
            raise UserError(f"`{name or 'image'}` is empty; expected the bytes of an image file.")
        return bytes(image), name or "image"
    if isinstance(image, os.PathLike) and isinstance(os.fspath(image), str):
        return Path(image), name or str(image)
    if isinstance(image, str):
        return _from_address(image, name) if _ADDRESS.match(image) else _from_path(image, name)
    if _is_file(image):
        shown = name or str(getattr(image, "name", None) or "image")
        content = "" if isinstance(image, io.TextIOBase) else image.read()
        if isinstance(content, bytes) and content:
            return content, shown
        if isinstance(content, str):
            raise UserError(f"`{shown}` is open in text mode; open it with mode 'rb'.")
        if content is not None and not isinstance(content, bytes):
            raise UserError(f"`{shown}` returns {type(content).__name__} when read; {_EXPECTED}.")
        raise UserError(f"`{shown}` has no bytes left to read; open it again, or call `seek(0)`.")
    raise UserError(f"`{name or 'image'}` is {_description(image)}; {_EXPECTED}.")


def _from_path(text: str, name: str | None) -> tuple[Path, str]:
    if not text.strip():
        raise UserError(f"`{name or 'image'}` is an empty string; {_EXPECTED}.")
    if "://" in text:
        raise UserError(f"`{text}` is not a supported URL; expected http://, https:// or a path.")
    try:
        Path(text).stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"`{name or 'image'}` is a string of {len(text)} characters, too long for a path; if it is base64, "
                "put data:image/jpeg;base64, in front of it."
            ) from None
    return Path(text), name or text


def _from_address(address: str, name: str | None) -> tuple[Path | bytes, str]:
    """Fetches a URL, within the size and time limits of `predict`."""
    scheme = address.partition(":")[0].lower()
    if scheme == "data":
        return decode_base64(address, name or "image"), name or "image"
    if scheme == "file":
        path = url2pathname(urlsplit(address).path)
        return Path(path), name or path
    from efficientdet.media import locations
    from efficientdet.storage import connection, web

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        fetched = Path(folder) / "image"
        most, seconds = locations.MAX_BYTES["image"], locations.MAX_SECONDS["image"]
        web.fetch_within(address, fetched, max_bytes=most, max_seconds=seconds)
        return fetched.read_bytes(), name or unquote(connection.without_secrets(address))


def _check_array(array: np.ndarray, name: str) -> np.ndarray:
    """Returns the array if it is uint8[h, w, 3]; otherwise raises a UserError that says how to convert it."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3 and array.size:
        return array
    shape = array.shape
    hint = ""
    if array.ndim == 4:
        hint = "; pass several images as a list"
    elif array.ndim == 2:
        hint = "; convert grayscale with np.stack([image] * 3, axis=-1)"
    elif array.ndim == 3 and shape[-1] == 4:
        hint = "; drop the alpha channel with image[..., :3]"
    elif array.ndim == 3 and shape[-1] == 1:
        hint = "; convert grayscale with image.repeat(3, axis=-1)"
    elif array.ndim == 3 and shape[0] in (1, 3, 4) and shape[-1] != 3:
        hint = "; move the channels to the end with np.moveaxis(image, 0, -1)"
    elif np.issubdtype(array.dtype, np.floating) and array.size:
        hint = "; convert values in 0..1 with (255 * image).round().astype(np.uint8)"
    raise UserError(f"`{name}` is {array.dtype}{list(shape)}; expected uint8[height, width, 3] in RGB{hint}.")


def _description(value: object) -> str:
    """Briefly describes a value that is not an image, and its likely cause."""
    if value is None:
        return "None (`cv2.imread` returns it for files that it cannot read)"
    module, name = type(value).__module__.partition(".")[0], type(value).__qualname__
    if hasattr(value, "__array__") and module not in ("builtins", "numpy"):
        return f"of type {module}.{name} (convert it with np.asarray(...))"
    return f"of type {name}"


def _is_file(value: object) -> bool:
    return hasattr(value, "read") and callable(value.read)
