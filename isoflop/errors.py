"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one line: it names the offending value and the way out. The CLI prints it and exits with 2; from
    Python it is an ordinary exception. Raise it before anything on disk is changed.
    """

    exit_code = 2
