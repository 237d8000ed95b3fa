"""A real web server on this computer that can be told to misbehave."""

import contextlib
import dataclasses
import http.server
import re
import threading
from collections.abc import Iterator


@dataclasses.dataclass(kw_only=True)
class File:
    """What is served under one path.

    Attributes:
        content: the bytes.
        headers: sent with it, such as ETag.
        knows_ranges: answers a question for a part with that part.
        knows_if_range: only if the file is still the one of the condition.
        shift: answers a question for a part with one that begins so many bytes later.
        pieces: of the next answers to a question for a part, how many bytes they have at most.
        cuts: of the next answers, how many bytes of each body are sent before the connection ends.
        statuses: of the next answers; 200 or 206 afterwards.
        hangs_after: bytes of the body after which nothing comes any more; none: it does not hang.
        length: what Content-Length says; none: the truth; "chunked": nothing, the body comes in chunks.
    """

    content: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: {"ETag": '"1"'})
    knows_ranges: bool = True
    knows_if_range: bool = True
    shift: int = 0
    pieces: list[int] = dataclasses.field(default_factory=list)
    cuts: list[int] = dataclasses.field(default_factory=list)
    statuses: list[int] = dataclasses.field(default_factory=list)
    hangs_after: int | None = None
    length: int | str | None = None


class Server:
    """Files by their paths, and what was asked and sent."""

    def __init__(self):
        """Serves nothing yet."""
        self.files: dict[str, File] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.num_sent = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.address = ""

    def gets(self) -> list[dict[str, str]]:
        """Gives the headers of each GET."""
        return [headers for method, _, headers in self.asked if method == "GET"]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body):
        server, self.close_connection = self.server.little, True
        path = self.path.partition("?")[0]
        with server.lock:
            server.asked.append((self.command, path, dict(self.headers)))
        file = server.files.get(path)
        if file is None:
            self.send_error(404)
            return
        if file.statuses:
            self.send_response(file.statuses.pop(0))
            self._end(file.headers | {"Content-Length": "0"})
            return
        first = self._first(file)
        if first >= len(file.content) > 0:
            self.send_response(416)
            self._end({"Content-Range": f"bytes */{len(file.content)}", "Content-Length": "0"})
            return
        end = first + file.pieces.pop(0) if first and file.pieces else len(file.content)
        body = file.content[first:end]
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(file.content)}")
        is_chunked = file.length == "chunked"
        length = {"Transfer-Encoding": "chunked"} if is_chunked else {"Content-Length": str(file.length or len(body))}
        self._end(file.headers | length)
        if with_body:
            self._send(file, body, is_chunked)

    def _first(self, file):
        """Says from which byte on an answer begins."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        known = (file.headers.get("ETag"), file.headers.get("Last-Modified"))
        is_same = self.headers.get("If-Range") in known or not file.knows_if_range
        return int(asked[1]) + file.shift if asked and file.knows_ranges and is_same else 0

    def _end(self, headers):
        for name, value in ({"Connection": "close"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, file, body, is_chunked):
        cut = file.cuts.pop(0) if file.cuts else None
        end = min([len(body), *(number for number in (cut, file.hangs_after) if number is not None)])
        for start in range(0, end, 2**16):
            piece = body[start : min(start + 2**16, end)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
            with self.server.little.lock:
                self.server.little.num_sent += len(piece)
        if is_chunked and end == len(body):
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        if file.hangs_after is not None:
            self.server.little.closing.wait()


class _ThreadingServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    little: Server

    def handle_error(self, *_):
        """Says nothing when a client goes away."""


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Runs a server on a free port while the block runs."""
    little = Server()
    with _ThreadingServer(("127.0.0.1", 0), _Handler) as server:
        server.little = little
        little.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield little
        finally:
            little.closing.set()
            server.shutdown()
            thread.join()
