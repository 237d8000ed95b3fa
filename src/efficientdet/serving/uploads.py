"""Parses the body of a request into undecoded images and options.

The body is an image, or multipart/form-data where each part is an image except for option fields (`wishes.NAMES`)
without a file name, or JSON with base64 images. It stays in memory, which is counted as it arrives. A name that a
client sends is only shown in answers and never used as a path.
"""

import asyncio
import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import multipart
from starlette.requests import Request

from efficientdet.errors import UserError
from efficientdet.media import inputs
from efficientdet.serving import wishes
from efficientdet.serving.admission import Budget, Limits, Refusal

_FORM = "multipart/form-data"
_JSON = "application/json"
_MOST_VALUES = 10_000  # in a JSON body; base64 has no brackets and no commas
_LONGEST_FIELD = 4096  # bytes
_LONGEST_NAME = 255


@dataclasses.dataclass(frozen=True)
class Upload:
    """An image as it was sent."""

    name: str
    content: bytes


@dataclasses.dataclass(frozen=True)
class Body:
    """The parsed body of a request.

    Attributes:
        uploads: images, at least one.
        asked: options: pairs of a name from `wishes.NAMES` and a value.
    """

    uploads: list[Upload]
    asked: list[tuple[str, str]]


@contextlib.asynccontextmanager
async def received(request: Request, limits: Limits, memory: Budget) -> AsyncIterator[Body]:
    """Receives the images of a request; their memory stays reserved until the block ends.

    Args:
        request: must not have been read yet.
        limits: limits of the service.
        memory: budget for the bodies of all requests, bytes.

    Raises:
        Refusal: 400, 408, 413, 415, 422 or 503.
    """
    kind = _content_kind(request)
    body = bytearray()
    taken = 0
    try:
        try:
            async with asyncio.timeout(limits.upload_seconds):
                await _fill(body, request, limits, memory)
        except TimeoutError:
            raise Refusal(408, f"The body did not arrive within {limits.upload_seconds:g} s.") from None
        if not body:
            raise Refusal(400, "The body is empty; send an image.")
        if kind == _FORM:
            yield _of_form(bytes(body), request.headers["content-type"], limits)
        elif kind == _JSON:
            if not memory.try_take(len(body)):  # for the decoded images
                raise Refusal(503, "Too many uploads at once; try again later.", retry_after=1)
            taken = len(body)
            yield await asyncio.to_thread(_of_json, bytes(body), limits)
        else:
            yield Body([Upload("image", bytes(body))], [])
    finally:
        memory.give(len(body) + taken)


def _content_kind(request: Request) -> str:
    """Reads the content type of the body.

    Raises:
        Refusal: the type or encoding is not supported.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "Compressed bodies are not supported; send the image as is.")
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind not in (_FORM, _JSON, "application/octet-stream") and not kind.startswith("image/"):
        raise Refusal(
            415,
            f"Content-Type is {kind[:80]!r}; send one image as image/jpeg or similar, several as {_FORM}, "
            f"or base64 images as {_JSON}.",
        )
    return kind


async def _fill(body: bytearray, request: Request, limits: Limits, memory: Budget) -> None:
    """Reads the whole body."""
    most = int(limits.max_upload_mb * 1e6)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_large(limits)
    async for chunk in request.stream():
        if len(body) + len(chunk) > most:
            raise _too_large(limits)
        if not memory.try_take(len(chunk)):
            raise Refusal(503, "Too many uploads at once; try again later.", retry_after=1)
        body += chunk


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The body is larger than {limits.max_upload_mb:g} MB.")


def _of_form(body: bytes, content_type: str, limits: Limits) -> Body:
    """Splits a form into image files and options."""
    uploads: list[Upload] = []
    asked: list[tuple[str, str]] = []
    for name, is_file, content in _split(body, content_type, limits):
        if is_file or name not in wishes.NAMES:
            if not content:
                raise Refusal(400, f"`{name}` is empty; send an image.")
            uploads.append(Upload(name, content))
        elif len(content) > _LONGEST_FIELD:
            raise Refusal(422, f"{name} has more than {_LONGEST_FIELD:,} bytes.")
        else:
            asked.append((name, content.decode("utf-8", "replace").strip()))
    if len(uploads) > limits.max_images:
        raise _too_many(limits)
    if not uploads:
        raise Refusal(400, "The form has no image; send one as a file.")
    return Body(uploads, asked)


def _of_json(body: bytes, limits: Limits) -> Body:
    """Reads `{"image": BASE64}` or `{"images": [BASE64, ...]}` and the options next to it."""
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_VALUES:
        raise Refusal(413, f"The JSON has more than {_MOST_VALUES:,} values.")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not valid JSON.") from None
    if not isinstance(document, dict) or ("image" in document) == ("images" in document):
        raise Refusal(422, "The JSON must have either `image`, in base64, or `images`, a list of base64 images.")
    images: Any = document.pop("images", None)
    images = [document.pop("image")] if images is None else images
    if not isinstance(images, list) or not images:
        raise Refusal(422, "`images` must be a non-empty list of base64 images.")
    if len(images) > limits.max_images:
        raise _too_many(limits)
    wishes.check([(str(name), "") for name in document], "JSON")
    uploads = []
    for number, text in enumerate(images, 1):
        name = "image" if len(images) == 1 else f"image {number}"
        if not isinstance(text, str):
            raise Refusal(422, f"`{name}` has type {type(text).__name__}; expected a base64 string.")
        try:
            uploads.append(Upload(name, inputs.decode_base64(text, name)))
        except UserError as error:
            raise Refusal(415, str(error)) from None
    return Body(uploads, wishes.flatten(document))


def _too_many(limits: Limits) -> Refusal:
    return Refusal(413, f"The request has more than {limits.max_images} images.")


def _split(body: bytes, content_type: str, limits: Limits) -> Iterator[tuple[str, bool, bytes]]:
    """Splits multipart/form-data (RFC 7578) into its parts: name, whether it is a file, content."""
    boundary = multipart.parse_options_header(content_type)[1].get("boundary")
    if not boundary:
        raise Refusal(400, f"Content-Type {_FORM} has no boundary.")
    number, content = 0, b""
    try:
        with multipart.PushMultipartParser(boundary) as parser:
            for event in parser.parse(body):
                if isinstance(event, multipart.MultipartSegment):
                    number, content, segment = number + 1, b"", event
                elif event is not None:
                    content += event  # comes in one piece, since the whole body was passed
                elif number > limits.max_images + len(wishes.NAMES):
                    raise _too_many(limits)
                else:
                    yield _name(segment, number), segment.filename is not None, content
    except multipart.MultipartError as error:
        raise Refusal(400, f"The form is damaged or truncated in part {number or 1}: {error.args[0]}.") from None


def _name(segment: multipart.MultipartSegment, number: int) -> str:
    """Returns the checked name of a form part.

    Raises:
        Refusal: it has no name, or the name is a path.
    """
    name = segment.filename or segment.name
    if not name:
        raise Refusal(400, f"Part {number} of the form has no name.")
    if len(name) > _LONGEST_NAME or name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise Refusal(
            400,
            f"The name of part {number} is a path, has control characters, or is longer than "
            f"{_LONGEST_NAME} characters.",
        )
    return str(name)
