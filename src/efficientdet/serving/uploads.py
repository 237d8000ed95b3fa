"""The body of a request -> images as they were sent, and what is asked for beside them.

The body is an image; or multipart/form-data, where each part is one, but for fields that are called as what can be
asked for (`wishes.NAMES`) and have no file name; or JSON with images in base64. It stays in memory, which is counted
while it arrives; a name that a client gives is shown in answers and is never a path.
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
_MOST_VALUES = 10_000  # of a JSON body; base64 has no brackets and no commas
_LONGEST_FIELD = 4096  # bytes
_LONGEST_NAME = 255


@dataclasses.dataclass(frozen=True)
class Upload:
    """An image as it was sent."""

    name: str
    content: bytes


@dataclasses.dataclass(frozen=True)
class Body:
    """What was sent.

    Attributes:
        uploads: images, at least one.
        asked: names of `wishes.NAMES` and values.
    """

    uploads: list[Upload]
    asked: list[tuple[str, str]]


@contextlib.asynccontextmanager
async def received(request: Request, limits: Limits, memory: Budget) -> AsyncIterator[Body]:
    """Receives the images of a request; their memory is counted until the block ends.

    Args:
        request: its body has not been read.
        limits: of the service.
        memory: bytes for the bodies of all requests.

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
            raise Refusal(408, f"The body was not there within {limits.upload_seconds:g} s.") from None
        if not body:
            raise Refusal(400, "The body is empty; send an image.")
        if kind == _FORM:
            yield _of_form(bytes(body), request.headers["content-type"], limits)
        elif kind == _JSON:
            if not memory.try_take(len(body)):  # for what is decoded
                raise Refusal(503, "Too many uploads at once.", retry_after=1)
            taken = len(body)
            yield await asyncio.to_thread(_of_json, bytes(body), limits)
        else:
            yield Body([Upload("image", bytes(body))], [])
    finally:
        memory.give(len(body) + taken)


def _content_kind(request: Request) -> str:
    """Reads how the body is packed.

    Raises:
        Refusal: it is none of the ways that are understood, or too large.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "Compressed bodies are not taken; send the image as it is.")
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind not in (_FORM, _JSON, "application/octet-stream") and not kind.startswith("image/"):
        raise Refusal(
            415,
            f"Content-Type is {kind[:80]!r}; send an image as image/jpeg or the like, several as {_FORM}, "
            f"or base64 as {_JSON}.",
        )
    return kind


async def _fill(body: bytearray, request: Request, limits: Limits, memory: Budget) -> None:
    """Reads the body to its end."""
    most = int(limits.max_upload_mb * 1e6)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_large(limits)
    async for chunk in request.stream():
        if len(body) + len(chunk) > most:
            raise _too_large(limits)
        if not memory.try_take(len(chunk)):
            raise Refusal(503, "Too many uploads at once.", retry_after=1)
        body += chunk


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The body is larger than {limits.max_upload_mb:g} MB.")


def _of_form(body: bytes, content_type: str, limits: Limits) -> Body:
    """Parts the files of a form from what is asked for."""
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
    """Reads `{"image": BASE64}` or `{"images": [BASE64, ...]}`, with what is asked for beside it."""
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_VALUES:
        raise Refusal(413, f"The JSON has more than {_MOST_VALUES:,} values.")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not valid JSON.") from None
    if not isinstance(document, dict) or ("image" in document) == ("images" in document):
        raise Refusal(422, "The JSON has no image; expected an object with `image`, in base64, or a list `images`.")
    images: Any = document.pop("images", None)
    images = [document.pop("image")] if images is None else images
    if not isinstance(images, list) or not images:
        raise Refusal(422, "`images` is not a list of images in base64.")
    if len(images) > limits.max_images:
        raise _too_many(limits)
    wishes.check([(str(name), "") for name in document], "JSON")
    uploads = []
    for number, text in enumerate(images, 1):
        name = "image" if len(images) == 1 else f"image {number}"
        if not isinstance(text, str):
            raise Refusal(422, f"`{name}` is of type {type(text).__name__}; expected a text in base64.")
        try:
            uploads.append(Upload(name, inputs.decode_base64(text, name)))
        except UserError as error:
            raise Refusal(415, str(error)) from None
    return Body(uploads, wishes.flatten(document))


def _too_many(limits: Limits) -> Refusal:
    return Refusal(413, f"There are more than {limits.max_images} images in the request.")


def _split(body: bytes, content_type: str, limits: Limits) -> Iterator[tuple[str, bool, bytes]]:
    """Splits multipart/form-data (RFC 7578) into its parts: name, whether it is a file, content."""
    boundary = multipart.parse_options_header(content_type)[1].get("boundary")
    if not boundary:
        raise Refusal(400, f"Content-Type {_FORM} names no boundary.")
    number, content = 0, b""
    try:
        with multipart.PushMultipartParser(boundary) as parser:
            for event in parser.parse(body):
                if isinstance(event, multipart.MultipartSegment):
                    number, content, segment = number + 1, b"", event
                elif event is not None:
                    content += event  # all of it at once: the whole body was given
                elif number > limits.max_images + len(wishes.NAMES):
                    raise _too_many(limits)
                else:
                    yield _name(segment, number), segment.filename is not None, content
    except multipart.MultipartError as error:
        raise Refusal(400, f"The form is damaged or cut short, part {number or 1}: {error.args[0]}.") from None


def _name(segment: multipart.MultipartSegment, number: int) -> str:
    """Checks what a part is called.

    Raises:
        Refusal: it has no name, or one that is a path.
    """
    name = segment.filename or segment.name
    if not name:
        raise Refusal(400, f"Part {number} of the form has no name.")
    if len(name) > _LONGEST_NAME or name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise Refusal(
            400, f"The name of part {number} is a path, has control characters or is longer than {_LONGEST_NAME}."
        )
    return str(name)
