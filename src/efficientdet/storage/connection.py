"""One question to a web server and its answer; what goes wrong on the way becomes a few plain words."""

import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3

from efficientdet.errors import UserError

_Answer = TypeVar("_Answer")

_CHUNK = 2**18  # bytes
_MOST_REDIRECTS = 10
_PASSING = {429, 500, 502, 503, 504}
_REASONS = {401: "wants a password", 403: "is not open to us", 404: "does not exist", 410: "does not exist any more"}


class BrokenError(Exception):
    """A question without a whole answer; the message says why, without a full stop.

    Attributes:
        is_passing: asking again may help even if nothing has ever arrived.
    """

    def __init__(self, reason: str, *, is_passing: bool):
        """Takes the reason in a few words."""
        super().__init__(reason)
        self.is_passing = is_passing


def check_url(url: str) -> None:
    """Raises a UserError for anything but the address of a file on the web."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is not a number
        usable = False
    if not usable:
        raise UserError(f"`{url}` is not an address of a file on the web; expected http://... or https://...")


def without_secrets(url: str) -> str:
    """Leaves out what may be a password or a key: the user, and what stands behind `?`."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


@contextlib.contextmanager
def ask(
    url: str, *, timeout: float, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> Iterator[requests.Response]:
    """Asks a server and gives its answer, whose body has not been read yet.

    Args:
        url: http or https; ten redirects are followed, to http and https only.
        timeout: seconds of silence after which the server is taken for dead.
        headers: of the question. Compression on the way is never asked for: sizes and ranges would be those of
            something else than the file.
        method: GET, or HEAD for an answer without body.

    Raises:
        BrokenError: there is no answer, or one that may be another soon.
    """
    own = {"User-Agent": "efficientdet-keras", "Accept-Encoding": "identity"}
    with requests.Session() as session:
        session.max_redirects = _MOST_REDIRECTS
        try:
            response = session.request(
                method, url, headers=own | dict(headers or {}), timeout=timeout, stream=True, allow_redirects=True
            )
        except requests.RequestException as error:
            raise _broken(error, url, timeout) from error
        with response:
            if response.status_code in _PASSING:
                raise BrokenError(f"the server answers {_status(response)}", is_passing=True)
            yield response


def within(seconds: float, work: Callable[[], _Answer]) -> _Answer:
    """Does some work, at most so long, and returns its result; work that takes longer goes on, and nobody waits for it.

    A server can keep each single wait short and never come to an end, so the time is measured from outside.

    Raises:
        TimeoutError: it takes longer. What the work raises is raised too.
    """
    answer: concurrent.futures.Future[_Answer] = concurrent.futures.Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(timeout=seconds)


def refusal(url: str, response: requests.Response) -> UserError:
    """Makes the error for an answer that is not the file."""
    reason = _REASONS.get(response.status_code, "cannot be fetched")
    return UserError(f"`{without_secrets(url)}` {reason} (the server answers {_status(response)}).")


def _status(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason}".strip()


def chunks(response: requests.Response, url: str, timeout: float) -> Iterator[bytes]:
    """Gives the bytes of an answer as they come, as they stand on the server.

    Raises:
        BrokenError: the connection broke off, or the server fell silent.
    """
    while True:
        try:
            chunk = response.raw.read1(_CHUNK, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _broken(error, url, timeout) from error
        if not chunk:
            return
        yield chunk


def _broken(error: Exception, url: str, timeout: float) -> BrokenError:
    """Says in a few words why a connection failed."""
    causes = list(_causes(error))

    def caused_by(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    host = urlsplit(without_secrets(url)).netloc
    if caused_by(urllib3.exceptions.ProxyError):
        reason = "the proxy that this computer is set to use does not answer"
    elif caused_by(requests.exceptions.SSLError, urllib3.exceptions.SSLError):
        reason = f"the certificate of {host} cannot be verified"
    elif caused_by(socket.gaierror, urllib3.exceptions.NameResolutionError):
        reason = f"the name {host} is not known, perhaps this computer is offline"
    elif caused_by(ConnectionRefusedError):
        reason = f"{host} refuses the connection"
    elif caused_by(urllib3.exceptions.NewConnectionError):  # which urllib3 counts among the time-outs
        reason = f"there is no way to {host}, perhaps this computer is offline"
    elif caused_by(TimeoutError, urllib3.exceptions.TimeoutError):
        reason = f"{host} was silent for {timeout:g} s"
    elif caused_by(urllib3.exceptions.ProtocolError, ConnectionResetError):
        return BrokenError(f"the connection to {host} broke off", is_passing=True)
    else:  # such as a redirect in a circle, or to an address that is none
        reason = f"{host} gives no usable answer ({type(error).__name__})"
    return BrokenError(reason, is_passing=False)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walks from an error to what it was raised from, and to the errors that it wraps."""
    yield error
    for cause in (error.__cause__, getattr(error, "reason", None), *error.args):
        if isinstance(cause, BaseException):
            yield from _causes(cause)
