"""Errors that users can fix, and how they are shown."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake in user input: a file, an argument, a setting.

    The message names the file or argument in backticks with its value and says what was expected, what was found,
    and what to do. The command line prints it as one line and exits with status 1; any other exception is a bug and
    shows its traceback.
    """


class UsageError(UserError):
    """Arguments that are invalid whatever the files contain; the command line exits with status 2."""


def refuse(function: Callable[..., Any], given: Mapping[str, Any], why: str) -> None:
    """Raises a UsageError for the first argument that differs from its default.

    Args:
        function: function with the defaults.
        given: arguments that would have no effect, by name.
        why: end of the message, such as "no model runs".
    """
    parameters = inspect.signature(function).parameters
    for name, value in given.items():
        if value != parameters[name].default:
            raise UsageError(f"`{name}` is {value}, but {why}.")


def first_line(error: Exception) -> str:
    """Returns the first line of another library's error message, without its period."""
    return str(getattr(error, "message", error)).strip().splitlines()[0].rstrip(".")


def one_line(text: str) -> str:
    """Joins a text into one line and replaces control characters, as in malicious file names, by `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
