"""The exception for mistakes that a user can correct."""


class UserError(ValueError):
    """An invalid input from the user: a path, a size, a name, the content of a file.

    The message is one line that says what is wrong and what to do. The command line prints it and
    exits with code 2. For users of the library it is a `ValueError`.
    """
