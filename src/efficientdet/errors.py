"""The one exception that a person can mend, and how it is shown."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake in what a user gave: a file, an argument, a setting.

    The message names the file or the argument in backticks with its value, says what was expected, what came,
    and what to do. The command line prints it as one line and exits with status 1; any other exception is a
    bug of ours and shows its traceback.
    """


class UsageError(UserError):
    """Arguments that cannot be right, whatever the files hold; the command line exits with status 2."""


def refuse(function: Callable[..., Any], given: Mapping[str, Any], why: str) -> None:
    """Raises a UsageError for the first argument that differs from its default.

    Args:
        function: whose defaults count.
        given: arguments that would have no effect, by name.
        why: ends the message, such as "no model runs".
    """
    parameters = inspect.signature(function).parameters
    for name, value in given.items():
        if value != parameters[name].default:
            raise UsageError(f"`{name}` is {value}, but {why}.")


def first_line(error: Exception) -> str:
    """Takes the first line of what another library says of an error, without its full stop."""
    return str(getattr(error, "message", error)).strip().splitlines()[0].rstrip(".")


def one_line(text: str) -> str:
    """Writes a text in one line; what could steer a terminal, as names of files may hold, becomes `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
