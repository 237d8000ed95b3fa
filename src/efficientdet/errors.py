"""The one exception that a person can mend, and how it is shown."""


class UserError(ValueError):
    """A mistake in what a user gave: a file, an argument, a setting.

    The message names the file or the argument in backticks with its value, says what was expected, what came,
    and what to do. The command line prints it as one line and exits with status 1; any other exception is a
    bug of ours and shows its traceback.
    """


class UsageError(UserError):
    """A word of the command line that cannot be; the command line exits with status 2."""


def one_line(text: str) -> str:
    """Writes a text in one line; what could steer a terminal, as names of files may hold, becomes `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
