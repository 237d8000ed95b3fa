"""The one exception that a person can mend."""


class UserError(ValueError):
    """A mistake in what a user gave: a file, an argument, a setting.

    The message names the file or the argument in backticks with its value, says what was expected, what came,
    and what to do. The command line prints it as one line and exits with status 1; any other exception is a
    bug of ours and shows its traceback.
    """
