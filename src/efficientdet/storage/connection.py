"""One request to a web server and its response; network errors become short plain messages."""

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
_REASONS = {401: "needs a password", 403: "is not accessible", 404: "does not exist", 410: "no longer exists"}


class BrokenError(Exception):
    """A request without a complete response; the message gives the reason, without a period.

    Attributes:
        is_passing: whether a retry may help even if nothing has arrived yet.
    """

    def __init__(self, reason: str, *, is_passing: bool):
        """Stores a short reason and whether a retry may help."""
        super().__init__(reason)
        self.is_passing = is_passing


def check_url(url: str) -> None:
    """Raises a UserError unless the URL is a web address."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is not a number
        usable = False
    if not usable:
        raise UserError(f"`{url}` is not a web address; expected http://... or https://...")


def without_secrets(url: str) -> str:
    """Removes parts of a URL that may hold a password or a key: the user, and everything after `?`."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


@contextlib.contextmanager
def ask(
    url: str, *, timeout: float, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> Iterator[requests.Response]:
    """Sends a request and yields the response, whose body has not been read yet.

    Args:
        url: http or https; follows up to ten redirects, to http and https only.
        timeout: seconds without data after which the server counts as dead.
        headers: request headers. Compression is never requested, because sizes and ranges would then not be those of
            the file.
        method: GET, or HEAD for a response without a body.

    Raises:
        BrokenError: there is no response, or only a temporary error.
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
                raise BrokenError(f"the server responded with {_status(response)}", is_passing=True)
            yield response


def within(seconds: float, work: Callable[[], _Answer]) -> _Answer:
    """Runs a function in a thread for at most `seconds` and returns its result; after that, the thread is abandoned.

    A server can keep each single wait short and never finish, so the total time is measured from outside.

    Raises:
        TimeoutError: it takes longer. Exceptions of the function are raised too.
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
    """Makes the error for a response that is not the file."""
    reason = _REASONS.get(response.status_code, "cannot be fetched")
    return UserError(f"`{without_secrets(url)}` {reason} (the server responded with {_status(response)}).")


def _status(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason}".strip()


def chunks(response: requests.Response, url: str, timeout: float) -> Iterator[bytes]:
    """Yields the raw bytes of a response as they arrive.

    Raises:
        BrokenError: the connection was lost, or the server stopped sending.
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
    """Describes briefly why a connection failed."""
    causes = list(_causes(error))

    def caused_by(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    host = urlsplit(without_secrets(url)).netloc
    if caused_by(urllib3.exceptions.ProxyError):
        reason = "the configured proxy does not respond"
    elif caused_by(requests.exceptions.SSLError, urllib3.exceptions.SSLError):
        reason = f"the certificate of {host} cannot be verified"
    elif caused_by(socket.gaierror, urllib3.exceptions.NameResolutionError):
        reason = f"the host {host} was not found; this computer may be offline"
    elif caused_by(ConnectionRefusedError):
        reason = f"{host} refused the connection"
    elif caused_by(urllib3.exceptions.NewConnectionError):  # which urllib3 counts among the timeouts
        reason = f"{host} cannot be reached; this computer may be offline"
    elif caused_by(TimeoutError, urllib3.exceptions.TimeoutError):
        reason = f"{host} sent nothing for {timeout:g} s"
    elif caused_by(urllib3.exceptions.ProtocolError, ConnectionResetError):
        return BrokenError(f"the connection to {host} was lost", is_passing=True)
    else:  # such as a redirect loop, or a redirect to an invalid address
        reason = f"{host} sent no usable response ({type(error).__name__})"
    return BrokenError(reason, is_passing=False)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, its causes and the errors that it wraps."""
    yield error
    for cause in (error.__cause__, getattr(error, "reason", None), *error.args):
        if isinstance(cause, BaseException):
            yield from _causes(cause)
