"""The body of a request -> pictures as they were sent.

Either the body is a picture, or it is multipart/form-data and each part is one. It stays in memory, which is counted
while it arrives; a name that a client gives is shown in answers and is never a path.
"""

import asyncio
import contextlib
import dataclasses
import email.parser
import re
from collections.abc import AsyncIterator, Iterator

from starlette.requests import Request

from efficientdet.serving.admission import Budget, Limits, Refusal

_FORM = "multipart/form-data"
_MOST_HEADERS = 4096  # bytes of a part's
_LONGEST_NAME = 255
_BOUNDARY = re.compile(r'boundary=(?:"([^"\x00-\x1f]{1,70})"|([^\s";,]{1,70}))(?:;|$)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Upload:
    """A picture as it was sent."""

    name: str
    content: bytes


@contextlib.asynccontextmanager
async def received(request: Request, limits: Limits, memory: Budget) -> AsyncIterator[list[Upload]]:
    """Receives the pictures of a request; their memory is counted until the block ends.

    Args:
        request: its body has not been read.
        limits: of the service.
        memory: bytes for the bodies of all requests.

    Raises:
        Refusal: 400, 408, 413, 415 or 503.
    """
    kind = _content_kind(request)
    body = bytearray()
    try:
        try:
            async with asyncio.timeout(limits.upload_seconds):
                await _fill(body, request, limits, memory)
        except TimeoutError:
            raise Refusal(408, f"The body was not there within {limits.upload_seconds:g} s.") from None
        if not body:
            raise Refusal(400, "The body is empty; send a picture.")
        if kind == _FORM:
            uploads = list(_split(bytes(body), _boundary(request), limits))
        else:
            uploads = [Upload("picture", bytes(body))]
        yield uploads
    finally:
        memory.give(len(body))


def _content_kind(request: Request) -> str:
    """Reads how the body is packed.

    Raises:
        Refusal: it is none of the ways that are understood, or too large.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "Compressed bodies are not taken; send the picture as it is.")
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind != _FORM and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise Refusal(
            415, f"Content-Type is {kind[:80]!r}; send a picture as image/jpeg or the like, or several as {_FORM}."
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


def _boundary(request: Request) -> bytes:
    found = _BOUNDARY.search(request.headers["content-type"])
    if found is None:
        raise Refusal(400, f"Content-Type {_FORM} names no boundary.")
    return (found[1] or found[2]).encode("latin-1")


def _split(body: bytes, boundary: bytes, limits: Limits) -> Iterator[Upload]:
    """Splits multipart/form-data (RFC 7578) into its parts."""
    delimiter = b"\r\n--" + boundary
    _, *parts = (b"\r\n" + body).split(delimiter, limits.max_pictures + 2)
    if len(parts) > limits.max_pictures + 1:
        raise Refusal(413, f"There are more than {limits.max_pictures} pictures in the request.")
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise Refusal(400, "The form is damaged or cut short: its last boundary is missing.")
    for number, part in enumerate(parts[:-1], 1):
        head, gap, content = part.partition(b"\r\n\r\n")
        if not gap or len(head) > _MOST_HEADERS or head.lstrip(b" \t")[:2] not in (b"", b"\r\n"):
            raise Refusal(400, f"Part {number} of the form has no proper headers.")
        name = _name(head, number)
        if not content:
            raise Refusal(400, f"`{name}` is empty; send a picture.")
        yield Upload(name, content)


def _name(head: bytes, number: int) -> str:
    """Reads what a part is called.

    Raises:
        Refusal: it has no name, or one that is a path.
    """
    # Headers of a form are UTF-8 (RFC 7578, section 5.1).
    headers = email.parser.HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip(), headersonly=True)
    if headers.get_content_disposition() != "form-data":
        raise Refusal(400, f"Part {number} of the form has no Content-Disposition of form-data.")
    name = headers.get_filename() or headers.get_param("name", header="content-disposition")
    if not isinstance(name, str) or not name:
        raise Refusal(400, f"Part {number} of the form has no name.")
    if len(name) > _LONGEST_NAME or name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise Refusal(
            400, f"The name of part {number} is a path, has control characters or is longer than {_LONGEST_NAME}."
        )
    return name
