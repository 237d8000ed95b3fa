"""Uploads of somebody who means harm: image files, forms and requests, each made here."""

import io
import struct
import zipfile
import zlib

import little_service
import numpy as np
from PIL import Image

_MANY = 60_000  # px of a side that is only announced


def _png(width, height, data, *, kind=2, depth=8, before=b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + before + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _tiff(tags, data=b"") -> bytes:
    """Writes a TIFF of one directory, its data behind it; a value of None is where the data begins."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [
        struct.pack("<HHII", tag, 4, 1, start if value is None else value) for tag, value in sorted(tags.items())
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data


def _plain_tiff(width, height, **more):
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1} | {int(k[1:]): v for k, v in more.items()}
    return tags


def tile_bomb(side: int) -> bytes:
    """Makes a TIFF of 10 x 10 px whose one tile has side * side."""
    data = zlib.compress(bytes(side) * side, 9)
    return _tiff(_plain_tiff(10, 10, t322=side, t323=side, t324=None, t325=len(data)), data)


def _webp(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", lossless=True)
    frame = buffer.getvalue()[12:]
    canvas = bytes(4) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    content = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + frame
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _scans(count):
    """A progressive JPEG that repeats its last scan."""
    content = little_service.encode(little_service.image(0), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + b"\xff\xd9"


def _zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.png", _good())
    return buffer.getvalue()


def _good() -> bytes:
    return little_service.encode(little_service.image(0))


def _jpeg() -> bytes:
    return little_service.encode(little_service.image(0), "JPEG")


def _with_exif(exif: bytes) -> bytes:
    jpeg = _jpeg()
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def _jpeg_of(width, height):
    jpeg = bytearray(_jpeg())
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(jpeg)


def _gif(width, height):
    small = bytearray(little_service.encode(little_service.image(0), "GIF"))
    small[6:10] = struct.pack("<HH", width, height)
    return bytes(small)


def _bmp(width, height):
    small = bytearray(little_service.encode(little_service.image(0), "BMP"))
    small[18:26] = struct.pack("<ii", width, height)
    return bytes(small)


_SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><image href='file:///etc/passwd'/></svg>"


def images() -> dict[str, tuple[bytes, set[int]]]:
    """Makes files: what each is -> content, and the statuses that are right."""
    good, jpeg = _good(), _jpeg()
    flat = np.zeros((4000, 5000), np.uint8)
    return {
        "PNG of 20 million pixels in 20 kB": (little_service.encode(flat), {413}),
        "PNG of 3.6 billion pixels, announced": (_png(_MANY, _MANY, zlib.compress(bytes(100))), {413}),
        "PNG of 2^31 - 1 px a side": (_png(2**31 - 1, 2**31 - 1, b""), {413, 415, 422}),
        "PNG of no height": (_png(10, 0, b""), {415, 422}),
        "PNG with a gigabyte behind its pixels, never unpacked": (_png(10, 10, _deflated(10**9)), {200}),
        "PNG with a text of a gigabyte": (_png(10, 10, zlib.compress(bytes(310)), before=_text(10**9)), {422}),
        "PNG cut short": (good[: len(good) // 2], {422}),
        "PNG of its signature alone": (good[:8], {415, 422}),
        "PNG with a wrong checksum": (good[:20] + b"\x01" + good[21:], {415, 413, 422}),
        "JPEG of 3.6 billion pixels, announced": (_jpeg_of(_MANY, _MANY), {413}),
        "JPEG of 10 million pixels, most without data": (_jpeg_of(4000, 2500), {200, 422}),
        "JPEG cut short": (jpeg[: len(jpeg) // 2], {422}),
        "JPEG of its first bytes alone": (jpeg[:3], {415, 422}),
        "JPEG of a thousand scans": (_scans(1000), {422}),
        "JPEG whose EXIF points outside": (_with_exif(b"Exif\0\0MM\0*" + b"\xff" * 60_000) + b"\0", {200, 422}),
        "JPEG with an orientation that is none": (_with_exif(_orientation(60_000)), {200}),
        "WebP of 268 million pixels, announced": (_webp(16383, 16383), {413}),
        "WebP cut short": (little_service.encode(little_service.image(0), "WEBP")[:60], {415, 422}),
        "GIF of 3.6 billion pixels, announced": (_gif(_MANY, _MANY), {413}),
        "GIF cut short": (_gif(90, 70)[:400], {422}),
        "BMP of 3.6 billion pixels, announced": (_bmp(_MANY, _MANY), {413}),
        "BMP of a negative width": (_bmp(-10, 10), {413, 415, 422}),
        "TIFF of 3.6 billion pixels, announced": (_tiff(_plain_tiff(_MANY, _MANY, t273=8, t279=8)), {413}),
        "TIFF of 10 x 10 px in one tile of 400 MB": (tile_bomb(20_000), {413}),
        "TIFF of tiles whose size is a text": (_tiff(_plain_tiff(10, 10, t322=2**32 - 1, t323=2**32 - 1)), {413, 422}),
        "TIFF whose directory is itself": (b"II*\0" + struct.pack("<I", 4), {415, 422}),
        "SVG with a script": (_SVG, {415}),
        "SVG behind a PNG's signature": (good[:8] + _SVG, {415, 422}),
        "HTML with an image behind": (b"<html><script>alert(1)</script>" + jpeg, {415}),
        "a script in a GIF's clothes": (b"GIF89a/*" + b" " * 200 + b"*/=1;alert(1)//", {415, 422}),
        "PDF with a JPEG inside": (b"%PDF-1.4\n" + jpeg, {415}),
        "ZIP with an image inside": (_zip(), {415}),
        "PNG's signature, then a ZIP": (good[:8] + _zip(), {415, 422}),
        "JPEG's first bytes, then a PNG": (b"\xff\xd8\xff" + good, {415, 422}),
        "ELF program": (b"\x7fELF" + bytes(2000), {415}),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n", {415}),
        "pickle": (b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", {415}),
        "noise": (np.random.default_rng(0).bytes(50_000), {415}),
        "zeros": (bytes(3_000_000), {415}),
        "nothing": (b"", {400}),
        "5 MB": (good + bytes(5_000_000), {413}),
    }


def _deflated(count):
    packer = zlib.compressobj(9)
    block = bytes(10**6)
    return b"".join([*(packer.compress(block) for _ in range(count // 10**6)), packer.flush()])


def _text(count):
    return _chunk(b"zTXt", b"Comment\0\0" + _deflated(count))


def _orientation(value):
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, value, 0)


def forms() -> dict[str, tuple[bytes, dict[str, str], set[int]]]:
    """Makes forms: what each is -> body, headers, statuses."""
    good = _good()
    paths = {
        f"form with the name {name!r}": (*little_service.form([(name, good)]), {400})
        for name in ("../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "a\tb.png", "..", "x" * 300)
    }
    body, headers = little_service.form([("a.png", good)])
    kind = "multipart/form-data"
    return paths | {
        "form without its last boundary": (body[:-12], headers, {400}),
        "form cut short": (body[:100], headers, {400}),
        "form of another boundary": (body, {"Content-Type": f"{kind}; boundary=other"}, {400}),
        "form without a boundary": (body, {"Content-Type": kind}, {400}),
        "form of a boundary of 1,000 letters": (body, {"Content-Type": f"{kind}; boundary={'x' * 1000}"}, {400}),
        "form whose part has 50 kB of headers": (body.replace(b"name=", b"x" * 50_000 + b"; name="), headers, {400}),
        "form whose part has no headers": (b"--limit\r\nhello\r\n--limit--\r\n", headers, {400}),
        "form whose part is not form-data": (body.replace(b"form-data;", b"attachment;"), headers, {400}),
        "form of 17 images": (*little_service.form([("a.png", good)] * 17), {413}),
        "form of 100,000 empty parts": (b"--limit\r\n" * 100_000 + b"--limit--", headers, {400, 413}),
        "form of line breaks": (b"--limit\r\n" + b"\r\n" * 1_500_000, headers, {400}),
        "form of an image and an SVG": (*little_service.form([("a.png", good), ("b.png", _SVG)]), {415}),
        "form of a text field": (body.replace(good, b"0.5"), headers, {415}),
    }


def requests() -> dict[str, tuple[str, bytes | None, dict[str, str], set[int]]]:
    """Makes other requests: what each is -> path, body, headers, statuses."""
    good, png = _good(), {"Content-Type": "image/png"}
    queries = (
        "score_threshold=high",
        "score_threshold=nan",
        "score_threshold=2",
        "score_threshold=",
        "score_threshold=0.1&score_threshold=0.2",
        "classes=unicorn",
        "classes=",
        "weights=/etc/passwd",
        "classes=%00",
    )
    asked: dict[str, tuple[str, bytes | None, dict[str, str], set[int]]] = {
        f"query {query}": (f"/v1/detect?{query}", good, png, {422}) for query in queries
    }
    for path in (
        "/../../etc/passwd",
        "/page/../../service.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page.js/..",
    ):
        asked[f"path {path}"] = (path, None, {}, {404})
    return asked | {
        "JSON": ("/v1/detect", b'{"image": "file:///etc/passwd"}', {"Content-Type": "application/json"}, {415}),
        "a web form": ("/v1/detect", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, {415}),
        "a packed body": ("/v1/detect", zlib.compress(good), png | {"Content-Encoding": "gzip"}, {415}),
        "an image for another route": ("/healthz", good, png, {405}),
        "no image": ("/v1/detect", None, {}, {405}),
    }


def raw() -> dict[str, tuple[bytes, set[int]]]:
    """Makes what no client library sends: what each is -> bytes, statuses."""
    head = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    return {
        "20 kB of headers": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", {400, 431}),
        "a path of 20 kB": (b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404}),
        "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", {400}),
        "a negative length": (head + b"Content-Length: -1\r\n\r\n", {400}),
        "two lengths": (head + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", {400}),
        "a length of 10^30": (head + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n", {400, 413}),
        "chunks of 6 MB without a length": (chunked + (b"186a0\r\n" + bytes(100_000) + b"\r\n") * 60, {413}),
        "a chunk of no number": (chunked + b"zz\r\nabc\r\n", {400}),
        "a chunk of 2^64 bytes": (chunked + b"1" + b"0" * 16 + b"\r\nabc", {408}),
        "a body that never comes": (head + b"Content-Length: 1000\r\n\r\n", {408}),
        "half a body": (head + b"Content-Length: 1000\r\n\r\n" + bytes(500), {408}),
        "half a head": (head, {408}),
    }
